"""What a run leaves behind: the result's record, its table, its one honest sentence."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mega_hf.errors import RunError
from mega_hf.limits import RESULT_BYTES, parse_json, read_bytes
from mega_hf.result_checks import check_record
from mega_hf.statistics import wilson_interval

VERSION = 1
NAME = "result.json"
_COLUMNS = ("model", "role", "validation", "test", "95 % interval")


@dataclass(frozen=True)
class Report:
    """Every model's right answers on validation and test, and the paired test; `str` is a table."""

    models: list[dict[str, Any]]  # {name, role, validation: {correct, n}, test: {correct, n}}
    paired: dict[str, Any]  # {against, only_merged_right, only_other_right, p}

    @property
    def merged(self) -> dict[str, Any]:
        """The merged model's row."""
        return next(model for model in self.models if model["role"] == "merged")

    @property
    def verdict(self) -> str:
        """Say in one sentence whether the merged model is better than its best parent, and how sure that is."""
        other = next(model for model in self.models if model["name"] == self.paired["against"])
        best = f"the parent that is best on validation, {printable(other['name'])}"
        gain = 100 * (_accuracy(self.merged["test"]) - _accuracy(other["test"]))
        if gain == 0:
            return f"The merged model is not better than {best}: equal on test."
        test = f"McNemar's exact test, p {format_p(self.paired['p'])}"
        if self.paired["p"] >= 0.05:
            side = "above" if gain > 0 else "below"
            return (
                f"The merged model is not shown to be better than {best}: "
                f"{abs(gain):.2f} points {side} it on test, which may be chance ({test})."
            )
        word = "better" if gain > 0 else "worse"
        difference = f"{abs(gain):.2f} points on test ({test})"
        return f"The merged model is {word} than {best}: {difference}."

    @property
    def has_tree(self) -> bool:
        """Whether there are merges below the final one."""
        return any(model["role"] == "intermediate" for model in self.models)

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table as text cells, the head first; of a tree each model's level stands beside its role."""
        rows: list[tuple[str, ...]] = [_COLUMNS]
        for model in self.models:
            low, high = wilson_interval(model["test"]["correct"], model["test"]["n"])
            searched = " (selected on)" if model["role"] in ("merged", "intermediate") else ""
            validation = f"{100 * _accuracy(model['validation']):.2f} %{searched}"
            test = f"{100 * _accuracy(model['test']):.2f} %"
            level = f", level {model['level']}" if self.has_tree and model.get("level") else ""
            interval = f"{100 * low:.2f} to {100 * high:.2f}"
            rows.append((printable(model["name"]), printable(model["role"]) + level, validation, test, interval))
        return rows

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", self.verdict])


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
        return Report(self._entry("models"), self._entry("paired"))

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


def encode_record(record: dict[str, Any]) -> bytes:
    """Return what result.json holds."""
    return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()


def _accuracy(counted: dict[str, int]) -> float:
    return counted["correct"] / counted["n"]


def printable(text: object) -> str:
    """Return a text without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def format_p(value: float) -> str:
    """Return what follows `p` in a sentence; no p is ever shown as 0."""
    return "< 0.0001" if value < 1e-4 else f"= {value:.4f}"
