"""What a run leaves behind: the result's record, in its folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mega_hf.errors import RunError
from mega_hf.recipe.baselines import names_merged
from mega_hf.recipe.fields import Input, Name
from mega_hf.report.table import Report
from mega_hf.runtime.untrusted import RESULT_BYTES, parse_json, printable, read_bytes

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
                "not a whole result",
                where=str(self.folder / NAME),
                expected=f"the entry {key}",
                got="none",
                hint="delete it; the same mega-hf merge command makes it again",
            )
        return self.record[key]

    @property
    def has_tree(self) -> bool:
        """Whether there are merges below the final one."""
        return self.report.has_tree

    @property
    def made(self) -> list[dict[str, Any]]:
        """The merges, the searched baselines, and the second look, which then gave the merged
        model."""
        record = self.record
        last = [record["second_look"]] if record.get("second_look") else []
        return [*record["nodes"], *record.get("baselines", ()), *last]

    @property
    def folders(self) -> dict[str, Path]:
        """Where each of `made` lies in the run folder, by name."""
        names = [node["name"] for node in self.made]
        last = names_merged(names)
        return {
            name: self.merged if name == last else self.folder / "nodes" / name for name in names
        }

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
                hint="name a folder that does not exist",
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
            hint = "finish the run: the same mega-hf merge command resumes it"
            raise RunError(
                "no finished run", where=str(folder), expected=NAME, got="none", hint=hint
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            hint = "delete it; the same mega-hf merge command makes it again"
            raise RunError(
                "unreadable",
                where=str(path),
                expected="a result",
                got=printable(repr(error))[:500],
                hint=hint,
            ) from None
        if version != VERSION:
            raise RunError(
                "another version",
                where=str(path),
                expected=f"version {VERSION}",
                got=printable(version)[:100],
                hint="read it with the release of mega_hf that wrote it, or merge again",
            )
        return cls(record, Path(folder))


def tree_rows(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of the models in a run's tree by name, the final merge's own last."""
    root = record["nodes"][-1]["name"]
    rows = {m["name"]: m for m in record["models"] if "level" in m and m["role"] != "merged"}
    merged = next(m for m in record["models"] if m["role"] == "merged")
    # there, where a second look named the merged model
    return rows if root in rows else rows | {root: merged}


def encode_record(record: dict[str, Any]) -> bytes:
    """Return what result.json holds."""
    return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()


_Number = Annotated[int, Field(ge=0, le=10**15)]
_Level = Annotated[int, Field(ge=0, le=500)]
_Text = dict[str, Any]


class _Lenient(BaseModel):
    """Takes what it does not know: later releases write more."""

    model_config = ConfigDict(extra="allow", strict=True, hide_input_in_errors=True)


class _Counted(_Lenient):
    correct: _Number
    n: Annotated[int, Field(ge=1, le=10**15)]

    @model_validator(mode="after")
    def _at_most_all(self) -> _Counted:
        if self.correct > self.n:
            raise ValueError("more right answers than rows")
        return self


class _Model(_Lenient):
    name: str
    role: str
    level: _Level | None = None
    validation: _Counted
    test: _Counted


class _Paired(_Lenient):
    against: str
    only_merged_right: _Number = 0
    only_other_right: _Number = 0
    p: Annotated[float, Field(ge=0, le=1)]
    low: Annotated[float, Field(ge=-1, le=1)] | None = None
    high: Annotated[float, Field(ge=-1, le=1)] | None = None


class _Generation(_Lenient):
    generation: _Number
    best: _Number
    mean: Annotated[float, Field(ge=0)]
    failed: _Number = 0


class _Node(_Lenient):
    name: Name
    parents: list[Input] | None = None
    level: _Level | None = None
    merge: dict[str, Any] | None = None
    search: _Counted | None = None
    history: list[_Generation] | None = None


class _Finalist(_Counted):
    name: str


class _Choice(_Node):
    finalists: Annotated[list[_Finalist], Field(min_length=1)]
    chosen: str


class _Chosen(_Lenient):
    settings: dict[str, str]
    why: list[str]
    n: _Number


class _Parent(_Lenient):
    name: str
    train: _Text = {}


class _Split(_Lenient):
    rows: _Number
    spec: str
    sha256: str


class _Data(_Lenient):
    source: dict[str, str | None]
    validation: _Split
    test: _Split
    calibration: _Split | None = None
    second_look: _Split | None = None


class _Record(_Lenient):
    version: int
    name: str = ""
    library: str = ""
    architecture: str = ""
    parameters: _Number = 0
    recipe: _Text = {}
    models: Annotated[list[_Model], Field(min_length=1)] | None = None
    paired: _Paired | None = None
    search: _Counted | None = None
    history: list[_Generation] = []
    paired_soup: _Paired | None = None
    nodes: Annotated[list[_Node], Field(min_length=1)] | None = None
    baselines: list[_Node] = []
    second_look: _Choice | None = None
    chosen: _Chosen | None = None
    parents: list[_Parent] = []
    data: _Data | None = None
    digests: dict[str, str | None] = {}
    environment: _Text = {}
    notices: list[str] = []
    files: dict[str, str] = {}

    @model_validator(mode="after")
    def _named(self) -> _Record:
        made = [
            *(self.nodes or ()),
            *self.baselines,
            *([self.second_look] if self.second_look else []),
        ]
        told = [
            one for node in made for one in (node.parents, node.level, node.search, node.history)
        ]
        if self.models is not None and None in told:
            raise ValueError("nodes: one without parents, level, search or history")
        if self.models is not None and sum(model.role == "merged" for model in self.models) != 1:
            raise ValueError("models: not one merged model")
        names = [model.name for model in self.models or ()]
        for key, paired in (("paired", self.paired), ("paired_soup", self.paired_soup)):
            if self.models is not None and paired is not None and paired.against not in names:
                raise ValueError(f"{key}.against: no such model")
        if self.second_look and self.models is not None and self.second_look.chosen not in names:
            raise ValueError("second_look.chosen: no such model")
        return self


def check_record(record: dict[str, Any]) -> None:
    """Raise ValueError that names the first entry of this version's record which is not as it must
    be."""
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['msg']}"[:300]
        ) from None
