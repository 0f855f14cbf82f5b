"""The append-only record of every fitness: the journal is the run; resume and replay read it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from mega_hf.errors import RunError

logger = logging.getLogger(__name__)

VERSION = 1
NAME = "journal.jsonl"

Counted = tuple[int | None, int]  # right answers (None where a logit was not finite), rows seen


class Journal:
    """JSON lines: a header, then one line for each evaluated individual.

    The header (`kind: header`) holds the version, digests of recipe, parents and data rows, library versions, the
    device kind and the forward path. A line (`kind: fitness`) holds node, generation, index, correct (null where a
    logit was not finite), n and seconds.

    Args:
        path: the file; made with the first line.
        node: the merge whose individuals `find` and `add` mean.
    """

    def __init__(self, path: Path, node: str) -> None:
        self.path, self.node = path, node
        self.header: dict[str, Any] | None = None
        self.seconds = 0.0  # spent on evaluations, over all processes and resumptions
        self._known: dict[tuple[str, int, int], Counted] = {}
        self._whole = 0  # bytes up to the last whole line
        if path.exists():
            self._read()

    def find(self, generation: int, index: int) -> Counted | None:
        """Return what was recorded of an individual, or None."""
        return self._known.get((self.node, generation, index))

    def add(self, generation: int, index: int, fitness: Counted, seconds: float) -> None:
        """Append a fitness and flush it to the disk before anyone uses it."""
        line = {"kind": "fitness", "node": self.node, "generation": generation, "index": index}
        self._append(line | {"correct": fitness[0], "n": fitness[1], "seconds": round(seconds, 4)})
        self._known[self.node, generation, index] = fitness
        self.seconds += seconds

    def begin(self, header: dict[str, Any]) -> None:
        """Write the header of a new journal, or check that the one there is describes the same run.

        Raises:
            RunError: parents, data, device kind or forward path are not those that the journal was begun with.
        """
        if self.path.exists():
            os.truncate(self.path, self._whole)  # a torn last line is evaluated again
        if self.header is None:
            self.header = {"kind": "header", "version": VERSION} | header
            return self._append(self.header)
        for key in ("parents", "data", "device_kind", "forward_path", "batch_size"):
            if self.header.get(key) != header.get(key):
                raise RunError(
                    f"the journal was begun with other {key.replace('_', ' ')}",
                    where=str(self.path),
                    expected=_difference(self.header.get(key), header.get(key)),
                    got=_difference(header.get(key), self.header.get(key)),
                    remedy="another --out, or --overwrite to start afresh",
                )
        if self.header.get("versions") != header.get("versions"):
            was = _difference(self.header.get("versions"), header.get("versions"))
            logger.warning("begun with other releases, which may round otherwise: %s", was)

    def __len__(self) -> int:
        return len(self._known)

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

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
        if line["kind"] == "header":
            if line["version"] != VERSION:
                raise ValueError(f"version {line['version']}; this release reads {VERSION}")
            self.header = line
        else:
            self.seconds += line["seconds"]
            self._known[line["node"], line["generation"], line["index"]] = (line["correct"], line["n"])


def _difference(a: Any, b: Any) -> str:
    """Show of `a` what is not in `b`."""
    if isinstance(a, dict) and isinstance(b, dict):
        return json.dumps({k: v for k, v in a.items() if b.get(k) != v})
    return json.dumps(a)
