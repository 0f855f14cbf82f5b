"""The append-only record of every fitness: the journal is the run; resume and replay read it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mega_hf.errors import RunError
from mega_hf.tree import base

logger = logging.getLogger(__name__)

VERSION = 2
NAME = "journal.jsonl"

Counted = tuple[int | None, int]  # right answers (None where a logit was not finite), rows seen


@dataclass
class NodeRecord:
    """What the journal knows of one merge, since it was last begun.

    Attributes:
        journal: where lines go.
        node: the merge's name.
        key: the digest of everything that decides the merge; lines under another key are void.
        merged: the line that says what came of it, if it was finished.
        seconds: spent on evaluations, over all processes and resumptions.
    """

    journal: Journal
    node: str
    key: str
    merged: dict[str, Any] | None = None
    seconds: float = 0.0
    _known: dict[tuple[int, int], Counted] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._known)

    def find(self, generation: int, index: int) -> Counted | None:
        """Return what was recorded of an individual, or None."""
        return self._known.get((generation, index))

    def add(self, generation: int, index: int, fitness: Counted, seconds: float) -> None:
        """Append a fitness and flush it to the disk before anyone uses it."""
        line = {"kind": "fitness", "node": self.node, "generation": generation, "index": index}
        self.journal.append(line | {"correct": fitness[0], "n": fitness[1], "seconds": round(seconds, 4)})

    def finish(self, outcome: dict[str, Any]) -> None:
        """Append what came of the merge: its best individual, its history, the digests of its weights."""
        self.journal.append({"kind": "merged", "node": self.node, **outcome})


class Journal:
    """JSON lines, each of a `kind`; read whole when it is opened.

    `header`: the version, digests of recipe, parents and data rows, library versions, device kind, forward path; a
    later header (after an update) replaces the earlier. `node`: a merge begins, under the key of all that decides it;
    what stood of it under another key is void. `fitness`: node, generation, index, correct (null where a logit was not
    finite), n, seconds. `merged`: what came of a node. `order`: the parents from best to worst on validation.

    Args:
        path: the file; made with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.order: dict[str, Any] | None = None
        self.nodes: dict[str, NodeRecord] = {}
        self._whole = 0  # bytes up to the last whole line
        if path.exists():
            self._read()

    def begin(self, header: dict[str, Any], update: bool = False) -> None:
        """Write the header of a new journal, or check that the one there describes the same run.

        Parents that the header does not know yet are added to it. With `update` a new header takes the place of one
        that differs: the keys of the nodes decide what is still good.

        Raises:
            RunError: parents, data, device kind or forward path are not those that the journal was begun with.
        """
        if self.path.exists():
            os.truncate(self.path, self._whole)  # a torn last line is evaluated again
        there = self.header
        if there is None:
            return self.append({"kind": "header", "version": VERSION} | header)
        differing = _differing(there, header)
        if differing and not update:
            before, now = there.get(differing), header.get(differing)
            raise RunError(
                f"the journal was begun with other {differing.replace('_', ' ')}",
                where=str(self.path),
                expected=_difference(before, now),
                got=_difference(now, before),
                remedy="--update runs again what this changes; else another --out, or --overwrite to start afresh",
            )
        if there.get("versions") != header.get("versions"):
            was = _difference(there.get("versions"), header.get("versions"))
            logger.warning("begun with other releases, which may round otherwise: %s", was)
        if not update:  # those that an update does not need may be others by the time that they are needed
            header = header | {"parents": there["parents"] | header["parents"]}
        if differing or header["parents"] != there["parents"]:
            self.append({"kind": "header", "version": VERSION} | header)

    def forget(self, parents: Collection[str]) -> None:
        """Let parents, snapshots among them, be others from now on, as an update has made them."""
        if self.header is None:
            return
        kept = {name: sha256 for name, sha256 in self.header["parents"].items() if base(name) not in parents}
        if kept != self.header["parents"]:
            os.truncate(self.path, self._whole)
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
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(line)

    def _read(self) -> None:
        for number, raw in enumerate(self.path.read_bytes().splitlines(keepends=True), start=1):
            if not raw.endswith(b"\n"):
                return  # torn: the process died while it wrote
            try:
                self._take(json.loads(raw))
            except (ValueError, KeyError, TypeError) as error:
                where = f"{self.path}:{number}"
                raise RunError(
                    "a damaged line",
                    where=where,
                    expected="a journal's line",
                    got=error,
                    remedy="--overwrite starts afresh",
                ) from None
            self._whole += len(raw)

    def _take(self, line: dict[str, Any]) -> None:
        kind = line["kind"]
        if kind == "header":
            if line["version"] != VERSION:
                raise ValueError(f"version {line['version']}; this release reads {VERSION}")
            self.header = line
        elif kind == "order":
            self.order = line
        elif kind == "node":
            self.nodes[line["node"]] = NodeRecord(self, line["node"], line["key"])
        elif kind == "merged":
            self.nodes[line["node"]].merged = line
        elif kind == "fitness":
            node = self.nodes[line["node"]]
            node.seconds += line["seconds"]
            node._known[line["generation"], line["index"]] = (line["correct"], line["n"])
        else:
            raise ValueError(f"an unknown kind, {kind}")


def _differing(there: dict[str, Any], header: dict[str, Any]) -> str | None:
    """Name the first thing in which two headers of one run may not differ."""
    shared = there["parents"].keys() & header["parents"].keys()
    if any(there["parents"][name] != header["parents"][name] for name in shared):
        return "parents"
    keys = ("data", "device_kind", "forward_path", "batch_size")
    return next((key for key in keys if there.get(key) != header.get(key)), None)


def _difference(a: Any, b: Any) -> str:
    """Show of `a` what is not in `b`."""
    if isinstance(a, dict) and isinstance(b, dict):
        return json.dumps({k: v for k, v in a.items() if b.get(k) != v})
    return json.dumps(a)
