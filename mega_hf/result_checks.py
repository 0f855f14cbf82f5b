"""What a result.json must hold for the table, the card and the plots to be made of it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mega_hf.settings import Input, Name

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
        made = [*(self.nodes or ()), *self.baselines, *([self.second_look] if self.second_look else [])]
        told = [one for node in made for one in (node.parents, node.level, node.search, node.history)]
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
    """Raise ValueError that names the first entry of this version's record which is not as it must be."""
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['msg']}"[:300]) from None
