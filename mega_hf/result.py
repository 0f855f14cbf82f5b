"""What a run leaves behind: the result's record, its table, its one honest sentence."""

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
from mega_hf.statistics import wilson_interval

VERSION = 1
NAME = "result.json"
_ROLES = ("parent", "treated_parent", "searched", "merged")
_CHOOSING = ("greedy_soup", "line-sweep", "random")  # baselines that validation rows chose
_COLUMNS = ("model", "role", "validation", "test", "95 % interval")


@dataclass(frozen=True)
class Report:
    """Every model's right answers on validation and test, and the paired test; `str` is a table."""

    models: list[dict[str, Any]]  # {name, role, validation: {correct, n}, test: {correct, n}}
    paired: dict[str, Any]  # {against, only_merged_right, only_other_right, p, low, high}: against the best parent
    paired_soup: dict[str, Any] | None = None  # against the greedy soup, if there is one
    second_look: dict[str, Any] | None = None  # {chosen, search: {n}}, where rows were kept for it

    @property
    def comparisons(self) -> list[dict[str, Any]]:
        """The merged model's paired tests, that against the best parent first."""
        return [paired for paired in (self.paired, self.paired_soup) if paired is not None]

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
    def remarks(self) -> list[str]:
        """What else is to be said, a sentence each: who was chosen, the greedy soup, selection bias, the ensemble."""
        return [*self._choice(), *self._soup(), *self._bias(), *self._ceiling()]

    def _choice(self) -> list[str]:
        if self.second_look is None:
            return []
        name = self.second_look["chosen"]
        treated = any(model["role"] == "treated_parent" for model in self.models)
        parent = "the recalibrated parent" if treated else "the parent"
        role = {"parent": parent, "baseline": "the baseline", "searched": "the search's best,"}
        who = next((role.get(model["role"], "") for model in self.models if model["name"] == name), "")
        rows = self.second_look["search"]["n"]
        return [f"Named the merged model on {rows:,} rows that no search has seen: {who} {printable(name)}."]

    def _soup(self) -> list[str]:
        if self.paired_soup is None:
            return []
        paired, rows = self.paired_soup, self.merged["test"]["n"]
        gain = 100 * (paired["only_merged_right"] - paired["only_other_right"]) / rows
        low, high = 100 * paired["low"], 100 * paired["high"]
        interval = f"95 % interval {low:+.2f} to {high:+.2f} by paired bootstrap; p {format_p(paired['p'])}"
        return [f"Against {printable(paired['against'])}: {gain:+.2f} points on test ({interval})."]

    def _bias(self) -> list[str]:
        """Say by how much the search's best is better on the rows that chose it than on those that did not."""
        by_role = {role: [model for model in self.models if model["role"] == role] for role in _ROLES}
        searched = (by_role["searched"] or by_role["merged"])[0]
        parents = by_role["treated_parent"] or by_role["parent"]
        if "low" not in self.paired or not parents:
            return []  # of a release that did not say it
        own, *others = [_accuracy(model["validation"]) - _accuracy(model["test"]) for model in (searched, *parents)]
        return [
            f"Selection bias: on validation, which chose it, the search's best has {_points(own)} than on test; its "
            f"parents, which were not chosen there, have {_points(sum(others) / len(others))} on average."
        ]

    def _ceiling(self) -> list[str]:
        parents = sum(model["role"] == "parent" for model in self.models)
        return [
            f"The ensemble of the {parents} parents, which takes {parents} times as long to run, has "
            f"{100 * _accuracy(model['test']):.2f} % on test."
            for model in self.models
            if model["role"] == "ceiling"
        ]

    @property
    def has_tree(self) -> bool:
        """Whether there are merges below the final one."""
        return any(model["role"] == "intermediate" for model in self.models)

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table as text cells, the head first; of a tree each model's level stands beside its role."""
        rows: list[tuple[str, ...]] = [_COLUMNS]
        for model in self.models:
            low, high = wilson_interval(model["test"]["correct"], model["test"]["n"])
            searched = " (selected on)" if self._is_selected(model) else ""
            validation = f"{100 * _accuracy(model['validation']):.2f} %{searched}"
            test = f"{100 * _accuracy(model['test']):.2f} %"
            level = f", level {model['level']}" if self.has_tree and model.get("level") else ""
            interval = f"{100 * low:.2f} to {100 * high:.2f}"
            rows.append((printable(model["name"]), printable(model["role"]) + level, validation, test, interval))
        return rows

    def _is_selected(self, model: dict[str, Any]) -> bool:
        """Say whether a model was chosen by its validation figure, which is too high for that."""
        if model["role"] == "merged" and self.second_look is not None:
            chosen = next(one for one in self.models if one["name"] == self.second_look["chosen"])
            return self._is_selected(chosen)
        return model["role"] in ("merged", "searched", "intermediate") or model["name"] in _CHOOSING

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", self.verdict, *self.remarks])


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
        return Report(
            self._entry("models"),
            self._entry("paired"),
            self.record.get("paired_soup"),
            self.record.get("second_look"),
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


def _points(difference: float) -> str:
    return f"{abs(100 * difference):.2f} points {'more' if difference >= 0 else 'less'}"


def _accuracy(counted: dict[str, int]) -> float:
    return counted["correct"] / counted["n"]


def printable(text: object) -> str:
    """Return a text without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def format_p(value: float) -> str:
    """Return what follows `p` in a sentence; no p is ever shown as 0."""
    return "< 0.0001" if value < 1e-4 else f"= {value:.4f}"
