"""The journal's lines: what each kind must hold, whoever wrote it, and the checksum that closes
it."""

from __future__ import annotations

import json
import re
import zlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

VERSION = 4
_SEALED = re.compile(rb'(\{.*), "crc": "([0-9a-f]{8})"\}\n', re.DOTALL)

_Digest = Annotated[str, Field(max_length=128)]
_Count = Annotated[int, Field(ge=0, lt=2**53)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class HeaderLine(_Line):
    """What decides the numbers below it; a later one, after an update, replaces the earlier."""

    kind: Literal["header"]
    version: Literal[4]
    recipe: _Digest
    parents: dict[str, _Digest]
    data: dict[str, _Digest]
    device_kind: str
    forward_path: str
    batch_size: Annotated[int, Field(ge=1, lt=2**53)]
    versions: dict[str, str]


class NodeLine(_Line):
    """A merge begins, under the key of all that decides it; what stood of it under another key is
    void."""

    kind: Literal["node"]
    node: str
    key: _Digest


class FitnessLine(_Line):
    """One individual's right answers (null where a logit was not finite) among the `n` rows that it
    has seen."""

    kind: Literal["fitness"]
    node: str
    generation: _Count
    index: _Count
    correct: _Count | None
    n: _Count
    genome: _Digest
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    pictures: _Count  # forwarded for it: 0 for a known genome
    # the sum over these rows, of each row's in 2⁻¹⁶; where it decides between equals
    loss: _Count = 0

    @model_validator(mode="after")
    def _possible(self) -> FitnessLine:
        if self.correct is not None and self.correct > self.n:
            raise ValueError(f"{self.correct} right answers on {self.n} rows")
        return self


class GenerationLine(_Line):
    """One generation of a merge's history."""

    generation: _Count
    best: _Count
    mean: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    failed: _Count


class MergedLine(_Line):
    """What came of a merge: its best individual, its history, the digests of its weights and
    files."""

    kind: Literal["merged"]
    node: str
    weights: _Digest
    statistics: _Digest | None
    file: _Digest
    folder: _Digest
    layout: _Digest
    state: _Digest
    parameters: _Count
    correct: _Count
    n: _Count
    generation: _Count
    index: _Count
    history: list[GenerationLine]


class Channels(_Line):
    """Channels that are permuted together, wherever they stand: [entry, dimension, start, places
    each]; and how."""

    size: _Count
    places: list[Annotated[list[str | _Count], Field(min_length=4, max_length=4)]]
    order: list[_Count]

    @model_validator(mode="after")
    def _possible(self) -> Channels:
        kinds = {tuple(type(part) for part in place) for place in self.places}
        if len(self.order) != self.size or kinds - {(str, int, int, int)}:
            raise ValueError(
                "a permutation of as many channels as it says, in places of one text and three"
                " numbers"
            )
        return self


class AlignedLine(_Line):
    """How the channels of a merge's parent are put beside those of its first one."""

    kind: Literal["aligned"]
    node: str
    parent: str
    groups: list[Channels]


class ProposedLine(_Line):
    """What a strategy proposes for a generation, before it is measured: points, as it numbers their
    coordinates."""

    kind: Literal["proposed"]
    node: str
    generation: _Count
    points: list[list[Annotated[float, Field(allow_inf_nan=False)]]]


class AnswersLine(_Line):
    """Which rows each of some individuals answers rightly: a bit a row, in hexadecimal, the first
    row's highest."""

    kind: Literal["answered"]
    node: str
    right: list[Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]]


class AutoLine(_Line):
    """What `method: auto` chose, why, and right answers of parents and averages (-1 where a logit
    was not finite)."""

    kind: Literal["chosen"]
    settings: dict[str, str]
    why: list[str]
    correct: dict[str, int]
    n: _Count


class RankingLine(_Line):
    """The parents from best to worst on validation."""

    kind: Literal["order"]
    key: _Digest
    ranking: list[str]
    correct: dict[str, int]
    n: _Count


_LINES: TypeAdapter[Any] = TypeAdapter(
    Annotated[
        HeaderLine
        | NodeLine
        | FitnessLine
        | MergedLine
        | AlignedLine
        | ProposedLine
        | AnswersLine
        | AutoLine
        | RankingLine,
        Field(discriminator="kind"),
    ]
)


def check_line(line: Any) -> None:
    """Raise ValueError, in one line of text, where something is no line of a journal."""
    try:
        _LINES.validate_python(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"][1:])
        raise ValueError(f"{at}: {first['msg']}" if at else first["msg"]) from None


def seal(line: dict[str, Any], before: int) -> tuple[bytes, int]:
    """Return a line as it stands in the file, and the checksum of all lines up to it.

    Args:
        line: what it says.
        before: the checksum of all lines before it, 0 at the start: so that a line that is lost
            shows too.
    """
    body = json.dumps(line).encode()[:-1]
    checksum = zlib.crc32(body, before)
    return body + b', "crc": "%08x"}\n' % checksum, checksum


def unseal(raw: bytes, before: int) -> tuple[dict[str, Any], int]:
    """Return what `seal` was given, and its checksum.

    Raises:
        ValueError: the line, or one before it, is not as it was written.
    """
    sealed = _SEALED.fullmatch(raw)
    if sealed is None:
        raise ValueError("no checksum at its end")
    checksum = zlib.crc32(sealed[1], before)
    if checksum != int(sealed[2], 16):
        raise ValueError(f"checksum {sealed[2].decode()}, but its content has {checksum:08x}")
    return json.loads(sealed[1] + b"}"), checksum


def differing_entry(there: dict[str, Any], header: dict[str, Any]) -> str | None:
    """Name the first thing in which two headers of one run may not differ."""
    shared = there["parents"].keys() & header["parents"].keys()
    if any(there["parents"][name] != header["parents"][name] for name in shared):
        return "parents"
    keys = ("data", "device_kind", "forward_path", "batch_size")
    return next((key for key in keys if there.get(key) != header.get(key)), None)


def difference(a: Any, b: Any) -> str:
    """Show of `a` what is not in `b`."""
    if isinstance(a, dict) and isinstance(b, dict):
        return json.dumps({k: v for k, v in a.items() if b.get(k) != v})
    return json.dumps(a)
