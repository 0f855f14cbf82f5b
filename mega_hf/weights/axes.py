"""Which dimensions of a model's tensors may only be permuted together: axes, their pieces, and what
ties them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(eq=False)
class ChannelGroup:
    """Some channels in a row that are permuted alike wherever they stand; pieces that are found to
    be one are joined.

    Attributes:
        size: how many channels.
        is_fixed: whether they must stay where they are.
        joined: the piece that this one became a part of.
        parts: what it was cut into.
        blocks: the piece whose channels are so many of its own in a row, which only move together.
    """

    size: int
    is_fixed: bool = False
    joined: ChannelGroup | None = None
    parts: tuple[ChannelGroup, ChannelGroup] | None = None
    blocks: tuple[ChannelGroup, int] | None = None

    @property
    def root(self) -> ChannelGroup:
        """The piece that stands for this one and all that it was joined with."""
        piece = self
        while piece.joined is not None:
            piece = piece.joined
        return piece


@dataclass(frozen=True)
class Span:
    """A piece as it stands in a dimension: each of its channels takes `block` places there."""

    piece: ChannelGroup
    block: int = 1

    @property
    def length(self) -> int:
        """How many places all of it takes."""
        return self.piece.size * self.block


@dataclass
class Axis:
    """One dimension of a tensor: runs, one after the other."""

    runs: list[Span] = field(default_factory=list)

    @classmethod
    def new(cls, size: int, is_fixed: bool = False) -> Axis:
        """Make a dimension of which nothing is known yet, or that must stay as it is."""
        return cls([Span(ChannelGroup(size, is_fixed))])

    @property
    def length(self) -> int:
        """The dimension's size."""
        return sum(run.length for run in self.runs)

    @property
    def whole(self) -> list[Span]:
        """Its runs, each of a piece that was neither joined nor cut."""
        return [part for run in self.runs for part in _whole(run)]

    @property
    def is_fixed(self) -> bool:
        """Whether nothing of it may move."""
        return all(run.piece.is_fixed for run in self.whole)

    def fix(self) -> None:
        """Let all of it stay where it is, wherever it stands."""
        for run in self.whole:
            run.piece.is_fixed = True

    def repeat(self, block: int) -> Axis:
        """Return the dimension that comes of each place being followed by `block` - 1 of its
        own."""
        return Axis([Span(run.piece, run.block * block) for run in self.whole])


def _whole(run: Span) -> Iterable[Span]:
    piece = run.piece.root
    if piece.blocks is not None:
        larger, count = piece.blocks
        return _whole(Span(larger, run.block * count))
    if piece.parts is None:
        return [Span(piece, run.block)]
    return [whole for part in piece.parts for whole in _whole(Span(part, run.block))]


def tie(a: Axis, b: Axis) -> None:
    """Let two dimensions of one size be permuted alike from now on; fix both where they have no
    common pieces."""
    assert a.length == b.length, f"{a.length} and {b.length}"
    while True:
        pairs = list(zip(a.whole, b.whole, strict=False))
        unlike = next((pair for pair in pairs if pair[0] != pair[1] and not _is_alike(*pair)), None)
        if unlike is None:
            break
        if not _adjust(*unlike):
            a.fix()
            b.fix()
            return
    for one, other in pairs:
        _join(one.piece.root, other.piece.root)


def _is_alike(one: Span, other: Span) -> bool:
    return one.piece.size == other.piece.size and one.block == other.block


def _adjust(one: Span, other: Span) -> bool:
    """Cut one of two runs, or take channels of one together, so that they fit; say whether that can
    be."""
    if one.length != other.length:
        shorter, longer = sorted((one, other), key=lambda run: run.length)
        if shorter.length % longer.block:
            return False
        size = shorter.length // longer.block
        piece = longer.piece
        piece.parts = (
            ChannelGroup(size, piece.is_fixed),
            ChannelGroup(piece.size - size, piece.is_fixed),
        )
        return True
    finer, coarser = sorted((one, other), key=lambda run: run.block)
    if coarser.block % finer.block:
        return False
    count = coarser.block // finer.block
    finer.piece.blocks = ChannelGroup(finer.piece.size // count, finer.piece.is_fixed), count
    return True


def _join(one: ChannelGroup, other: ChannelGroup) -> None:
    if one is not other:
        one.is_fixed |= other.is_fixed
        other.joined = one
