"""The format of the journal's lines: the fields of each kind, and the checksum at the end."""

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
    """Everything that decides the fitnesses of a run; a later header replaces an earlier one."""

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
    """The start of a merge under a key; earlier lines of this merge no longer count."""

    kind: Literal["node"]
    node: str
    key: _Digest


class FitnessLine(_Line):
    """The correct predictions of an individual on the `n` rows that it has seen.

    `correct` is null where a logit was not finite.
    """

    kind: Literal["fitness"]
    node: str
    generation: _Count
    index: _Count
    correct: _Count | None
    n: _Count
    genome: _Digest
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    pictures: _Count  # examples forwarded for it: 0 for a known genome
    # summed over these rows in units of 2⁻¹⁶ nats, where losses decide between equals
    loss: _Count = 0

    @model_validator(mode="after")
    def _possible(self) -> FitnessLine:
        if self.correct is not None and self.correct > self.n:
            raise ValueError(f"{self.correct} correct predictions on {self.n} rows")
        return self


class GenerationLine(_Line):
    """One generation in the history of a merge."""

    generation: _Count
    best: _Count
    mean: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    failed: _Count


class MergedLine(_Line):
    """A finished merge: best individual, history, digests of weights and files."""

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
    """Channels that are permuted together, and their order.

    A place is [entry of the state dict, dimension, start, numbers per channel].
    """

    size: _Count
    places: list[Annotated[list[str | _Count], Field(min_length=4, max_length=4)]]
    order: list[_Count]

    @model_validator(mode="after")
    def _possible(self) -> Channels:
        kinds = {tuple(type(part) for part in place) for place in self.places}
        if len(self.order) != self.size or kinds - {(str, int, int, int)}:
            raise ValueError(
                "not a permutation of `size` channels, in places of one string and three numbers"
            )
        return self


class AlignedLine(_Line):
    """The permutations that align the channels of a parent with the reference parent."""

    kind: Literal["aligned"]
    node: str
    parent: str
    groups: list[Channels]


class ProposedLine(_Line):
    """The points that a strategy proposes for a generation, before their evaluation."""

    kind: Literal["proposed"]
    node: str
    generation: _Count
    points: list[list[Annotated[float, Field(allow_inf_nan=False)]]]


class AnswersLine(_Line):
    """The correct rows of each individual: one bit per row, first row highest, in hexadecimal."""

    kind: Literal["answered"]
    node: str
    right: list[Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]]


class AutoLine(_Line):
    """The settings that `method: auto` chose, why, and the counts of parents and averages.

    A count is -1 where a logit was not finite.
    """

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
    """Raise ValueError, with a message of one line, unless this is a line of a journal."""
    try:
        _LINES.validate_python(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"][1:])
        raise ValueError(f"{at}: {first['msg']}" if at else first["msg"]) from None


def seal(line: dict[str, Any], before: int) -> tuple[bytes, int]:
    """Return a line as bytes with its checksum, and the checksum of all lines so far.

    Args:
        line: the fields of the line.
        before: the checksum of all lines before it, 0 at the start, so that a missing line is
            found.
    """
    body = json.dumps(line).encode()[:-1]
    checksum = zlib.crc32(body, before)
    return body + b', "crc": "%08x"}\n' % checksum, checksum


def unseal(raw: bytes, before: int) -> tuple[dict[str, Any], int]:
    """Return the fields of a line written by `seal`, and the checksum of all lines so far.

    Raises:
        ValueError: the line, or one before it, has been changed.
    """
    sealed = _SEALED.fullmatch(raw)
    if sealed is None:
        raise ValueError("no checksum at its end")
    checksum = zlib.crc32(sealed[1], before)
    if checksum != int(sealed[2], 16):
        raise ValueError(f"checksum {sealed[2].decode()}, but the content has {checksum:08x}")
    return json.loads(sealed[1] + b"}"), checksum


def differing_entry(existing: dict[str, Any], header: dict[str, Any]) -> str | None:
    """Return the first entry in which two headers of one run differ, but must not."""
    shared = existing["parents"].keys() & header["parents"].keys()
    if any(existing["parents"][name] != header["parents"][name] for name in shared):
        return "parents"
    keys = ("data", "device_kind", "forward_path", "batch_size")
    return next((key for key in keys if existing.get(key) != header.get(key)), None)


def difference(a: Any, b: Any) -> str:
    """Return the part of `a` that is not in `b`, as JSON."""
    if isinstance(a, dict) and isinstance(b, dict):
        return json.dumps({k: v for k, v in a.items() if b.get(k) != v})
    return json.dumps(a)
