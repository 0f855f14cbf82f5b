"""The types of result.json: everything that a finished run says of itself."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mega_hf.recipe.fields import Input, Name

VERSION: Literal[1] = 1

_Whole = Annotated[int, Field(ge=0, le=10**15)]
_Rows = Annotated[int, Field(ge=1, le=10**15)]
_Level = Annotated[int, Field(ge=0, le=500)]
Role = Literal[
    "parent", "treated_parent", "baseline", "ceiling", "intermediate", "searched", "merged"
]
_Share = Annotated[float, Field(ge=-1, le=1)]


class _Entry(BaseModel):
    """An entry of result.json. An optional field that is not set is left out of the file."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
        serialize_by_alias=True,
    )

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain values, as the file holds them."""
        return self.model_dump(exclude_defaults=True)


class Count(_Entry):
    """Correct predictions on a split."""

    correct: _Whole
    n: _Rows

    @property
    def accuracy(self) -> float:
        """The share of correct predictions, in [0, 1]."""
        return self.correct / self.n

    @model_validator(mode="after")
    def _check_correct(self) -> Self:
        if self.correct > self.n:
            raise ValueError("more correct predictions than rows")
        return self


class ModelRow(_Entry):
    """A model of the table: a parent, a baseline, or a merge."""

    name: str
    role: Role
    level: _Level | None = None  # in the tree of merges; 0 for the parents
    validation: Count
    test: Count


class PairedTest(_Entry):
    """McNemar's exact test of the merged model against another one on the test rows."""

    against: str
    only_merged_right: _Whole
    only_other_right: _Whole
    p: Annotated[float, Field(ge=0, le=1)]
    low: _Share  # 95 % interval of the difference in accuracy, by paired bootstrap
    high: _Share


class SearchResult(Count):
    """The best individual of a search, by its validation rows, and what the search cost."""

    generation: _Whole
    index: _Whole
    pictures_evaluated: _Whole
    pictures_full: _Whole  # what evaluating every individual on all rows would take
    evaluations: _Whole
    node: str


class Generation(_Entry):
    """A generation of a search: correct predictions of its best individual and on average."""

    generation: _Whole
    best: _Whole
    mean: Annotated[float, Field(ge=0)]
    failed: _Whole


class Digests(_Entry):
    """SHA-256 digests of a merge: its learned weights, statistics, file and state dict."""

    weights: str
    statistics: str | None
    file: str
    state: str


class RunDigests(Digests):
    """The digests of the merged model, and those of the run's recipe and journal."""

    recipe: str
    journal: str


class NodeResult(_Entry):
    """A merge of the run: one of the recipe's tree, or a baseline that was searched for."""

    name: Name
    parents: Annotated[list[Input], Field(min_length=1)]
    level: _Level
    merge: dict[str, Any]  # the settings, as in a recipe
    search: SearchResult
    history: list[Generation]
    digests: Digests
    seconds: dict[str, float]

    @property
    def unchanged_input(self) -> str | None:
        """The input whose learned weights the merge has, or None."""
        method, best, inputs = self.merge.get("method"), self.search, self.parents
        place = best.index
        if method == "line-sweep":  # from one parent to the other
            size = self.merge["population_size"]
            if best.generation > 1:  # Each later generation repeats the best point so far.
                place += size + (best.generation - 2) * (size - 1) - 1
            return {0: inputs[0], best.evaluations - 1: inputs[-1]}.get(place)
        if best.generation > 1 or method == "uniform_soup":
            return None
        if method in ("mega", "random") and not self.merge["founders"]["include_parents"]:
            return None
        if method == "cma-es":  # The average is evaluated before the parents.
            place -= 1
        return inputs[place] if 0 <= place < len(inputs) else None


class Finalist(_Entry):
    """A candidate of the held-out selection; no prediction is correct where none was finite."""

    name: str
    correct: _Whole | None
    n: _Rows

    @property
    def accuracy(self) -> float:
        """The share of correct predictions, in [0, 1]."""
        return (self.correct or 0) / self.n


class HeldOutSelection(NodeResult):
    """The choice of the merged model on rows that no search has seen."""

    finalists: Annotated[list[Finalist], Field(min_length=1)]
    chosen: str


class AutoSettings(_Entry):
    """The settings that `method: auto` chose, with reasons."""

    settings: dict[str, str]
    why: list[str]
    correct: dict[str, int]
    n: _Rows


class TrainedFrom(_Entry):
    """How a parent was trained for the run."""

    seed: int
    epoch: int | None = None  # of a snapshot
    start: str | None = Field(None, alias="from")


class ParentRow(_Entry):
    """A parent: its origin, which is one of four kinds, its license and its digest."""

    name: str
    hub: str | None = None  # with revision
    revision: str | None = None
    local: str | None = None
    weights: str | None = None  # with arch
    arch: str | None = None
    train: TrainedFrom | None = None
    license: str | list[str] | None = None
    license_name: str | list[str] | None = None
    license_link: str | list[str] | None = None
    sha256: str

    @property
    def license_fields(self) -> dict[str, Any]:
        """The license, as in a card's front matter."""
        return self.model_dump(exclude_defaults=True, include=_LICENSE)


_LICENSE = {"license", "license_name", "license_link"}


class DataSource(_Entry):
    """Where the data set came from: a pinned repository, or a local folder, by its name."""

    hub: str | None = None
    revision: str | None = None
    local: str | None = None


class SplitInfo(_Entry):
    """The rows of a split: their number, the recipe's words for them, and their SHA-256."""

    rows: _Rows
    spec: str
    sha256: str


class DataInfo(_Entry):
    """The data set and its splits."""

    source: DataSource
    classes: _Whole
    matched: str  # how the parents' classes were matched with those of the data
    shared_pictures: _Whole  # of validation and test rows
    validation: SplitInfo
    test: SplitInfo
    calibration: SplitInfo | None = None
    second_look: SplitInfo | None = None

    @property
    def splits(self) -> dict[str, SplitInfo]:
        """The splits by name."""
        named = {
            "validation": self.validation,
            "test": self.test,
            "calibration": self.calibration,
            "second_look": self.second_look,
        }
        return {name: split for name, split in named.items() if split is not None}


class Environment(_Entry):
    """The machine and the library versions of the run."""

    versions: dict[str, str]
    machine: str
    system: str
    device_kind: str
    forward_path: str
    processes: _Whole
    threads: _Whole


class RunRecord(_Entry):
    """The content of result.json."""

    version: Literal[1]
    name: str
    library: str
    architecture: str
    parameters: _Whole
    channels: _Whole
    recipe: dict[str, Any]  # as `Recipe.to_dict` gives it, with placeholders for local paths
    models: Annotated[list[ModelRow], Field(min_length=1)]
    search: SearchResult
    history: list[Generation]
    nodes: Annotated[list[NodeResult], Field(min_length=1)]
    baselines: list[NodeResult] = []
    chosen: AutoSettings | None = None
    second_look: HeldOutSelection | None = None
    parents: Annotated[list[ParentRow], Field(min_length=1)]
    data: DataInfo
    digests: RunDigests
    environment: Environment
    seconds: dict[str, float]
    notices: list[str]
    paired: PairedTest
    paired_soup: PairedTest | None = None
    repository: str | None = None  # this and the next two: of a pushed run
    revision: str | None = None
    license: dict[str, str | list[str]] | None = None
    files: dict[str, str] = {}  # SHA-256 of each model file of a copy, by its path there

    @property
    def final(self) -> NodeResult:
        """The final merge of the recipe's tree."""
        return self.nodes[-1]

    @property
    def merges(self) -> list[NodeResult]:
        """The recipe's merges, the searched baselines and the held-out selection, in this order."""
        return [*self.nodes, *self.baselines, *([self.second_look] if self.second_look else [])]

    @property
    def copied_parent(self) -> str | None:
        """The parent that the merged model is a copy of, BatchNorm statistics aside, or None."""
        nodes = {node.name: node for node in self.merges}
        name = self.second_look.chosen if self.second_look else self.final.name
        for _ in range(len(nodes)):  # Of a tree, an inner merge may be a copy itself.
            if name in nodes:
                unchanged = nodes[name].unchanged_input
                if unchanged is None:
                    return None
                name = unchanged
        return name if name in {parent.name for parent in self.parents} else None

    @property
    def is_recalibrated(self) -> bool:
        """Whether BatchNorm statistics of the final merge were recalibrated, and of the models
        that it is compared with."""
        return any(model.role == "treated_parent" for model in self.models)

    @property
    def merged(self) -> ModelRow:
        """The merged model's row of the table."""
        return next(model for model in self.models if model.role == "merged")

    def row(self, name: str) -> ModelRow:
        """Return the row of the table with this name."""
        return next(model for model in self.models if model.name == name)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if sum(model.role == "merged" for model in self.models) != 1:
            raise ValueError("models: not exactly one merged model")
        named = {"paired.against": self.paired.against}
        if self.paired_soup:
            named["paired_soup.against"] = self.paired_soup.against
        if self.second_look:
            named["second_look.chosen"] = self.second_look.chosen
        names = {model.name for model in self.models}
        for key, name in named.items():
            if name not in names:
                raise ValueError(f"{key}: no such model")
        return self

    def encode(self) -> bytes:
        """Return the bytes of result.json."""
        return (json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> RunRecord:
        """Check plain values, as JSON gives them.

        Raises:
            ValueError: an entry is missing, unknown or invalid; the message names the first one.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "record"
            raise ValueError(f"{where}: {first['msg']}"[:300]) from None
