"""The append-only record of every fitness: the journal is the run; resume and replay read it."""

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
# bytes of a line; the longest, permutations, have some bytes a channel and place
_LONGEST = 1 << 24


@dataclass
class NodeRecord:
    """What the journal knows of one merge, since it was last begun.

    Attributes:
        journal: where lines go.
        node: the merge's name.
        key: the digest of everything that decides the merge; lines under another key are void.
        merged: the line that says what came of it, if it was finished.
        seconds: spent on evaluations, over all processes and resumptions.
        examples: forwarded for them.
        aligned: permutations of the parents' channels.
        proposed: what a strategy proposed: generation -> points.
        answers: who of those that were chosen between was right where: bits, in hexadecimal; None
            if nobody asked.
    """

    journal: Journal
    node: str
    key: str
    merged: dict[str, Any] | None = None
    seconds: float = 0.0
    examples: int = 0
    # parent -> groups of channels, and orders
    aligned: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    proposed: dict[int, list[list[float]]] = field(default_factory=dict)
    answers: list[str] | None = None
    _known: dict[tuple[int, int], tuple[Fitness, str]] = field(default_factory=dict)
    _genomes: dict[str, Fitness] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (generation, index) of each individual that was recorded, in the order of the
        lines."""
        return iter(self._known)

    def find(self, generation: int, index: int, genome: str | None) -> Fitness | None:
        """Return what was recorded of an individual, or None.

        Args:
            generation: 1 for the founders.
            index: its place in the generation.
            genome: its digest; None if it does not matter.

        Raises:
            RunError: another genome was recorded there.
        """
        known = self._known.get((generation, index))
        if known is None:
            return None
        fitness, there = known
        if genome is not None and there != genome:
            raise RunError(
                f"individual {index} of generation {generation} of {self.node} is not the one that"
                " was recorded",
                where=str(self.journal.path),
                expected=f"genome {there}",
                got=genome,
                hint=(
                    "the journal was changed, or this machine computes otherwise than the one that"
                    " began the run: go on there; or --overwrite starts afresh"
                ),
            )
        return fitness

    def genome(self, generation: int, index: int) -> str | None:
        """Return the digest of the genome that was recorded there, or None."""
        return self._known[generation, index][1] if (generation, index) in self._known else None

    def find_genome(self, genome: str) -> Fitness | None:
        """Return what was recorded of a genome, by its digest, in whatever generation; or None."""
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
        """Append a fitness and flush it to the disk before anyone uses it; of two on one individual
        the later holds.

        Args:
            generation: 1 for the founders.
            index: its place in the generation.
            genome: its digest.
            fitness: correct predictions, rows seen and loss; what is unseen is not written.
            seconds: that it took.
            examples: that were forwarded for it: none where its genome was known.
            write: on the main process; the others keep it in memory.
        """
        line = {
            "kind": "fitness",
            "node": self.node,
            "generation": generation,
            "index": index,
            "correct": fitness.correct,
        }
        line |= {
            "n": fitness.seen,
            "genome": genome,
            "seconds": round(seconds, 4),
            "pictures": examples,
        }
        line |= {"loss": fitness.loss} if fitness.loss else {}
        self._keep(line, write)

    def align(self, parent: str, groups: list[dict[str, Any]], write: bool = True) -> None:
        """Append how a parent's channels are put in the order of the first one's, before anything
        is bred of it."""
        self._keep(
            {"kind": "aligned", "node": self.node, "parent": parent, "groups": groups}, write
        )

    def propose(self, generation: int, points: list[list[float]], write: bool = True) -> None:
        """Append what a strategy proposes for a generation, before it is measured."""
        self._keep(
            {"kind": "proposed", "node": self.node, "generation": generation, "points": points},
            write,
        )

    def answer(self, right: list[str], write: bool = True) -> None:
        """Append who is right where, of individuals that are chosen between."""
        self._keep({"kind": "answered", "node": self.node, "right": right}, write)

    def _keep(self, line: dict[str, Any], write: bool) -> None:
        if write:
            self.journal.append(line)
        else:
            self.take(line)

    def take(self, line: dict[str, Any]) -> None:
        """Keep in memory what a line says of the merge."""
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
        """Append what came of the merge (its best individual, its history, digests), unless that
        stands there."""
        line = {"kind": "merged", "node": self.node, **outcome}
        if line != self.merged:
            self.journal.append(line)


class Journal:
    """JSON lines, each closed by a checksum over it and all before it; read whole when it is
    opened.

    What each kind of line holds stands in `lines.py`.

    Args:
        path: the file; made with the first line.

    Raises:
        RunError: a line is damaged, or of another version; a torn last line is dropped.
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
        """Write the header of a new journal, or check that the one there describes the same run.

        Parents that the header does not know yet are added to it, and so is a recipe that is
        written otherwise
        by now. With `update` a new header takes the place of one that differs: the keys of the
            nodes decide what is
        still good.

        Raises:
            RunError: parents, data, device kind or forward path are not those that the journal was
                begun with.
        """
        self._drop_torn()
        there = self.header
        if there is None:
            return self.append({"kind": "header", "version": VERSION} | header)
        differing = differing_entry(there, header)
        if differing and not update:
            before, now = there.get(differing), header.get(differing)
            raise RunError(
                f"the journal was begun with other {differing.replace('_', ' ')}",
                where=str(self.path),
                expected=difference(before, now),
                got=difference(now, before),
                hint=(
                    "--update runs again what this changes; else another --out, or --overwrite to"
                    " start afresh"
                ),
            )
        if there.get("versions") != header.get("versions"):
            was = difference(there.get("versions"), header.get("versions"))
            logger.warning("begun with other releases, which may round otherwise: %s", was)
        # those that an update does not need may be others by the time that they are needed
        if not update:
            header = header | {"parents": there["parents"] | header["parents"]}
        if differing or any(header[key] != there[key] for key in ("parents", "recipe")):
            self.append({"kind": "header", "version": VERSION} | header)

    def forget(self, parents: Collection[str]) -> None:
        """Let parents, snapshots among them, be others from now on, as an update has made them."""
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
        """Return what is known of a merge under this key; begin it where nothing is.

        Args:
            name: the node.
            key: the digest of everything that decides it.
            write: on the main process alone.
        """
        known = self.nodes.get(name)
        if known is None or known.key != key:
            if write:
                self.append({"kind": "node", "node": name, "key": key})
            else:
                self.nodes[name] = NodeRecord(self, name, key)
        return self.nodes[name]

    def has_merged(self, name: str, folder: str) -> bool:
        """Say whether a merge was finished, and left a folder with this digest."""
        merged = self.nodes[name].merged if name in self.nodes else None
        return merged is not None and merged.get("folder") == folder

    def append(self, line: dict[str, Any]) -> None:
        """Append one line and flush it to the disk."""
        raw, checksum = seal(line, self.checksum)
        with self.path.open("ab") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        self._whole, self.checksum = self._whole + len(raw), checksum
        self._take(line)

    def _drop_torn(self) -> None:
        """Cut off what a process that died left of its last line: it is made again."""
        if self._torn:
            os.truncate(self.path, self._whole)
            logger.warning(
                "%s: its last line was torn, as by a crash, and is dropped; it is made again",
                self.path,
            )
            self._torn = False

    def _read(self) -> None:
        with self.path.open("rb") as file:
            number = 0
            while raw := file.readline(_LONGEST):
                number += 1
                if not raw.endswith(b"\n") and len(raw) < _LONGEST:
                    self._torn = True
                    return
                try:
                    line, self.checksum = unseal(raw, self.checksum)
                    self._take(line)
                except (ValueError, KeyError, RecursionError) as error:
                    raise _damaged(f"{self.path}:{number}", number, error) from None
                self._whole += len(raw)

    def _take(self, line: dict[str, Any]) -> None:
        check_line(line)
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
    back = (
        f"cut it off there (head -n {number - 1}), and what follows is evaluated again; or "
        if number > 1
        else ""
    )
    return RunError(
        "a damaged line, or one before it is missing",
        where=where,
        expected="a journal's line, as it was written",
        got=error,
        hint=f"put a copy back; or {back}--overwrite starts afresh",
    )
