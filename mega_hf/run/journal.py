"""The journal: an append-only file of every fitness, from which a run is resumed or rebuilt."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mega_hf.errors import RunError
from mega_hf.recipe.tree import parent_name
from mega_hf.run.journal_format import (
    VERSION,
    check_line,
    difference,
    differing_entry,
    seal,
    unseal,
)
from mega_hf.search.population import Fitness

logger = logging.getLogger(__name__)

NAME = "journal.jsonl"
_MOST_BYTES = 1 << 24  # of a line; the longest lines hold permutations of channels


@dataclass
class NodeRecord:
    """The journal's lines on one merge.

    Attributes:
        journal: the journal, to which lines are appended.
        node: the name of the merge.
        key: the digest of everything that decides the merge. Lines under another key are ignored.
        merged: the line of the finished merge; None while the merge runs.
        seconds: time spent on evaluations, over all processes and resumed runs.
        examples: examples forwarded for these evaluations.
        aligned: parent -> permutations of its channels.
        proposed: generation -> points that a strategy proposed.
        answers: correct rows of each individual of a held-out selection, as bits in hexadecimal.
    """

    journal: Journal
    node: str
    key: str
    merged: dict[str, Any] | None = None
    seconds: float = 0.0
    examples: int = 0
    aligned: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    proposed: dict[int, list[list[float]]] = field(default_factory=dict)
    answers: list[str] | None = None
    _known: dict[tuple[int, int], tuple[Fitness, str]] = field(default_factory=dict)
    _genomes: dict[str, Fitness] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (generation, index) of each recorded individual, in the order of the lines."""
        return iter(self._known)

    def find(self, generation: int, index: int, genome: str | None) -> Fitness | None:
        """Return the recorded fitness of an individual, or None.

        Args:
            generation: 1 for the founders.
            index: its place in the generation.
            genome: the digest of its genome; None skips the check.

        Raises:
            RunError: a different genome is recorded for this individual.
        """
        known = self._known.get((generation, index))
        if known is None:
            return None
        fitness, recorded = known
        if genome is not None and recorded != genome:
            raise RunError(
                f"individual {index} of generation {generation} of {self.node} is not the one that"
                " was recorded",
                where=str(self.journal.path),
                expected=f"genome {recorded}",
                got=genome,
                hint="the journal was changed, or this machine gets different results from the one"
                " that began the run: resume the run there, or use --overwrite to start again",
            )
        return fitness

    def genome(self, generation: int, index: int) -> str | None:
        """Return the digest of the recorded genome of an individual, or None."""
        return self._known[generation, index][1] if (generation, index) in self._known else None

    def find_genome(self, genome: str) -> Fitness | None:
        """Return the recorded fitness of a genome, by its digest, in any generation; or None."""
        return self._genomes.get(genome)

    def add(
        self,
        generation: int,
        index: int,
        genome: str,
        fitness: Fitness,
        seconds: float,
        examples: int = 0,
        write: bool = True,
    ) -> None:
        """Append a fitness and flush it to disk before it is used; it replaces an earlier one.

        Args:
            generation: 1 for the founders.
            index: its place in the generation.
            genome: the digest of its genome.
            fitness: correct predictions, rows seen and loss; unseen rows are not written.
            seconds: time of its evaluation.
            examples: examples forwarded for it; 0 where the genome was known.
            write: True on the main process; the others keep the fitness in memory.
        """
        line = {
            "kind": "fitness",
            "node": self.node,
            "generation": generation,
            "index": index,
            "correct": fitness.correct,
            "n": fitness.seen,
            "genome": genome,
            "seconds": round(seconds, 4),
            "pictures": examples,
        }
        line |= {"loss": fitness.loss} if fitness.loss else {}
        self._keep(line, write)

    def align(self, parent: str, groups: list[dict[str, Any]], write: bool = True) -> None:
        """Append the permutations of a parent's channels, before the search starts."""
        self._keep(
            {"kind": "aligned", "node": self.node, "parent": parent, "groups": groups}, write
        )

    def propose(self, generation: int, points: list[list[float]], write: bool = True) -> None:
        """Append the points that a strategy proposes for a generation, before their evaluation."""
        self._keep(
            {"kind": "proposed", "node": self.node, "generation": generation, "points": points},
            write,
        )

    def answer(self, right: list[str], write: bool = True) -> None:
        """Append the correct rows of the individuals of a held-out selection."""
        self._keep({"kind": "answered", "node": self.node, "right": right}, write)

    def _keep(self, line: dict[str, Any], write: bool) -> None:
        if write:
            self.journal.append(line)
        else:
            self.take(line)

    def take(self, line: dict[str, Any]) -> None:
        """Keep a line of this merge in memory."""
        if line["kind"] == "merged":
            self.merged = line
        elif line["kind"] == "aligned":
            self.aligned[line["parent"]] = line["groups"]
        elif line["kind"] == "proposed":
            self.proposed[line["generation"]] = line["points"]
        elif line["kind"] == "answered":
            self.answers = line["right"]
        else:
            self._take_fitness(line)

    def _take_fitness(self, line: dict[str, Any]) -> None:
        fitness = Fitness(line["correct"], line["n"], loss=line.get("loss", 0))
        self._known[line["generation"], line["index"]] = (fitness, line["genome"])
        self._genomes[line["genome"]] = fitness
        self.seconds += line["seconds"]
        self.examples += line["pictures"]

    def finish(self, outcome: dict[str, Any]) -> None:
        """Append the best individual, the history and the digests, unless they are recorded."""
        line = {"kind": "merged", "node": self.node, **outcome}
        if line != self.merged:
            self.journal.append(line)


class Journal:
    """JSON lines, each with a checksum over itself and all lines before; `journal_format` has
    the fields.

    Args:
        path: the file, which is read now if it exists, and created with the first line.

    Raises:
        RunError: a line is damaged or of another version. An incomplete last line is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.order: dict[str, Any] | None = None
        self.chosen: dict[str, Any] | None = None  # by `method: auto`
        self.nodes: dict[str, NodeRecord] = {}
        self._whole = 0  # bytes up to the last whole line
        self._torn = False
        self.checksum = 0  # of all lines
        if path.exists():
            self._read()

    def begin(self, header: dict[str, Any], update: bool = False) -> None:
        """Write the header of a new journal, or check that an existing one fits this run.

        A new header is appended if the recipe is written differently, or if there are parents that
        an earlier part of the tree did not need. With `update` it may differ in anything: the keys
        of the nodes decide which lines are still valid.

        Raises:
            RunError: parents, data, device kind or forward path differ from the existing header's.
        """
        self._drop_torn()
        existing = self.header
        if existing is None:
            return self.append({"kind": "header", "version": VERSION} | header)
        differing = differing_entry(existing, header)
        if differing and not update:
            before, now = existing.get(differing), header.get(differing)
            raise RunError(
                f"the run was started with different {differing.replace('_', ' ')}",
                where=str(self.path),
                expected=difference(before, now),
                got=difference(now, before),
                hint="use --update to rerun what this changes, another --out, or --overwrite to"
                " start again",
            )
        if existing.get("versions") != header.get("versions"):
            was = difference(existing.get("versions"), header.get("versions"))
            logger.warning("started with other versions, which may round differently: %s", was)
        # after an update, parents that it did not need may have changed when they are needed
        if not update:
            header = header | {"parents": existing["parents"] | header["parents"]}
        if differing or any(header[key] != existing[key] for key in ("parents", "recipe")):
            self.append({"kind": "header", "version": VERSION} | header)

    def forget(self, parents: Collection[str]) -> None:
        """Drop parents and their snapshots from the header: an update trains them again."""
        if self.header is None:
            return
        kept = {
            name: sha256
            for name, sha256 in self.header["parents"].items()
            if parent_name(name) not in parents
        }
        if kept != self.header["parents"]:
            self._drop_torn()
            self.append(self.header | {"parents": kept})

    def node(self, name: str, key: str, write: bool = True) -> NodeRecord:
        """Return the record of a merge under a key, and begin a new one if there is none.

        Args:
            name: the name of the merge.
            key: the digest of everything that decides the merge.
            write: True on the main process, which appends the line.
        """
        known = self.nodes.get(name)
        if known is None or known.key != key:
            if write:
                self.append({"kind": "node", "node": name, "key": key})
            else:
                self.nodes[name] = NodeRecord(self, name, key)
        return self.nodes[name]

    def has_merged(self, name: str, folder: str) -> bool:
        """Return whether a merge was finished with a folder of this digest."""
        merged = self.nodes[name].merged if name in self.nodes else None
        return merged is not None and merged.get("folder") == folder

    def append(self, line: dict[str, Any]) -> None:
        """Append one line and flush it to disk."""
        raw, checksum = seal(line, self.checksum)
        with self.path.open("ab") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        self._whole, self.checksum = self._whole + len(raw), checksum
        self._take(line)

    def _drop_torn(self) -> None:
        """Truncate an incomplete last line, which a killed process left."""
        if self._torn:
            os.truncate(self.path, self._whole)
            logger.warning(
                "%s: dropped an incomplete last line, which a crash has left",
                self.path,
            )
            self._torn = False

    def _read(self) -> None:
        with self.path.open("rb") as file:
            number = 0
            while raw := file.readline(_MOST_BYTES):
                number += 1
                if not raw.endswith(b"\n") and len(raw) < _MOST_BYTES:
                    self._torn = True
                    return
                try:
                    line, self.checksum = unseal(raw, self.checksum)
                    check_line(line)
                    self._take(line)
                except (ValueError, KeyError, RecursionError) as error:
                    raise _damaged(f"{self.path}:{number}", number, error) from None
                self._whole += len(raw)

    def _take(self, line: dict[str, Any]) -> None:
        """Keep a line in memory."""
        kind = line["kind"]
        if kind == "header":
            self.header = line
        elif kind in ("order", "chosen"):
            setattr(self, kind, line)
        elif kind == "node":
            self.nodes[line["node"]] = NodeRecord(self, line["node"], line["key"])
        else:
            self.nodes[line["node"]].take(line)


def _damaged(where: str, number: int, error: Exception) -> RunError:
    cut = f"truncate it (head -n {number - 1}) to resume from there, or " if number > 1 else ""
    return RunError(
        "a damaged line, or one before it is missing",
        where=where,
        expected="a line of a journal, as it was written",
        got=error,
        hint=f"restore the journal from a copy, or {cut}use --overwrite to start again",
    )
