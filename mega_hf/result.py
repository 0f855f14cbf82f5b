"""What a run leaves behind: the result's record, in its folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mega_hf.errors import RunError
from mega_hf.finalists import names_merged
from mega_hf.limits import RESULT_BYTES, parse_json, read_bytes
from mega_hf.result_checks import check_record
from mega_hf.verdict import Report, printable

VERSION = 1
NAME = "result.json"


@dataclass(frozen=True)
class MergeResult:
    """A finished merge.

    Attributes:
        record: everything that result.json holds.
        folder: the run folder.
    """

    record: dict[str, Any]
    folder: Path

    @property
    def report(self) -> Report:
        """The table of all models."""
        final = (self.record.get("nodes") or [{}])[-1].get("merge") or {}
        return Report(
            self._entry("models"),
            self._entry("paired"),
            self.record.get("paired_soup"),
            self.record.get("second_look"),
            final.get("method") != "uniform_soup",
        )

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record a generation: {generation, best, mean, failed}, in right answers."""
        return self._entry("history")

    def _entry(self, key: str) -> Any:
        if self.record.get(key) is None:
            raise RunError(
                "not a whole result", where=str(self.folder / NAME), expected=f"the entry {key}", got="none",
                remedy="delete it; the same mega-hf merge command makes it again",
            )  # fmt: skip
        return self.record[key]

    @property
    def has_tree(self) -> bool:
        """Whether there are merges below the final one."""
        return self.report.has_tree

    @property
    def made(self) -> list[dict[str, Any]]:
        """The merges, the searched baselines, and the second look, which then gave the merged model."""
        record = self.record
        last = [record["second_look"]] if record.get("second_look") else []
        return [*record["nodes"], *record.get("baselines", ()), *last]

    @property
    def folders(self) -> dict[str, Path]:
        """Where each of `made` lies in the run folder, by name."""
        names = [node["name"] for node in self.made]
        last = names_merged(names)
        return {name: self.merged if name == last else self.folder / "nodes" / name for name in names}

    @property
    def merged(self) -> Path:
        """The folder that the parents' own library loads."""
        return self.folder / "merged"

    @cached_property
    def weights(self) -> dict[str, Any]:
        """The merged weights as stored: entry's name on disk -> tensor."""
        from safetensors.torch import load_file

        return {
            name: tensor
            for file in sorted(self.merged.glob("*.safetensors"))
            for name, tensor in load_file(file).items()
        }

    def save(self, folder: str | Path) -> Path:
        """Copy the merged model and its card to a new folder, and return it.

        Raises:
            RunError: the folder is there already and not empty.
        """
        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise RunError(
                "the folder is not empty",
                expected="a new folder",
                got=target,
                remedy="name a folder that does not exist",
            )
        shutil.copytree(self.merged, target, dirs_exist_ok=True)
        shutil.copyfile(self.folder / "README.md", target / "README.md")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> MergeResult:
        """Read a run folder.

        Raises:
            RunError: there is no finished run, or its result.json is damaged or of another version.
        """
        path = Path(folder) / NAME
        try:
            record = parse_json(read_bytes(path, RESULT_BYTES))
            version = record["version"]
            if version == VERSION:
                check_record(record)
        except FileNotFoundError:
            remedy = "finish the run: the same mega-hf merge command resumes it"
            raise RunError("no finished run", where=str(folder), expected=NAME, got="none", remedy=remedy) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            remedy = "delete it; the same mega-hf merge command makes it again"
            raise RunError(
                "unreadable", where=str(path), expected="a result", got=printable(repr(error))[:500], remedy=remedy
            ) from None
        if version != VERSION:
            raise RunError(
                "another version",
                where=str(path),
                expected=f"version {VERSION}",
                got=printable(version)[:100],
                remedy="read it with the release of mega_hf that wrote it, or merge again",
            )
        return cls(record, Path(folder))


def tree_rows(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of the models in a run's tree by name, the final merge's own last."""
    root = record["nodes"][-1]["name"]
    rows = {m["name"]: m for m in record["models"] if "level" in m and m["role"] != "merged"}
    merged = next(m for m in record["models"] if m["role"] == "merged")
    return rows if root in rows else rows | {root: merged}  # there, where a second look named the merged model


def encode_record(record: dict[str, Any]) -> bytes:
    """Return what result.json holds."""
    return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()
