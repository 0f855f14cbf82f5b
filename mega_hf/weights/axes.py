"""Axes of tensors, and groups of channels that are permuted together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(eq=False)
class ChannelGroup:
    """Consecutive channels that are permuted in the same way wherever they occur.

    While a graph is walked, groups are merged, split, and gathered into blocks. The group that
    represents such a group now is found by `root` and `Axis.resolved`.

    Attributes:
        size: the number of channels.
        is_fixed: whether the channels must keep their order.
        merged_into: the group that this one was merged into.
        parts: the two groups that this one was split into.
        blocks: (group, n) where each channel of `group` is n consecutive channels of this one,
            which only move together.
    """

    size: int
    is_fixed: bool = False
    merged_into: ChannelGroup | None = None
    parts: tuple[ChannelGroup, ChannelGroup] | None = None
    blocks: tuple[ChannelGroup, int] | None = None

    @property
    def root(self) -> ChannelGroup:
        """The group that this one was finally merged into; itself where it was not."""
        group = self
        while group.merged_into is not None:
            group = group.merged_into
        return group


@dataclass(frozen=True)
class Span:
    """A group's channels in one axis, `block` consecutive places for each channel."""

    group: ChannelGroup
    block: int = 1

    @property
    def length(self) -> int:
        """The number of places of all channels."""
        return self.group.size * self.block


@dataclass
class Axis:
    """One dimension of a tensor: spans, one after the other."""

    spans: list[Span] = field(default_factory=list)

    @classmethod
    def new(cls, size: int, is_fixed: bool = False) -> Axis:
        """Return an axis with one new group of `size` channels."""
        return cls([Span(ChannelGroup(size, is_fixed))])

    @property
    def length(self) -> int:
        """The size of the dimension."""
        return sum(span.length for span in self.spans)

    @property
    def resolved(self) -> list[Span]:
        """The spans in terms of groups that are neither merged nor split."""
        return [part for span in self.spans for part in _resolve(span)]

    @property
    def is_fixed(self) -> bool:
        """Whether no channel of the axis may move."""
        return all(span.group.is_fixed for span in self.resolved)

    def fix(self) -> None:
        """Let all channels of the axis keep their order, wherever they occur."""
        for span in self.resolved:
            span.group.is_fixed = True

    def repeat(self, block: int) -> Axis:
        """Return an axis with `block` consecutive places for each place of this one."""
        return Axis([Span(span.group, span.block * block) for span in self.resolved])


def _resolve(span: Span) -> Iterable[Span]:
    group = span.group.root
    if group.blocks is not None:
        larger, count = group.blocks
        return _resolve(Span(larger, span.block * count))
    if group.parts is None:
        return [Span(group, span.block)]
    return [resolved for part in group.parts for resolved in _resolve(Span(part, span.block))]


def tie(a: Axis, b: Axis) -> None:
    """Let two axes of one length be permuted in the same way from now on.

    Groups are split and gathered into blocks until both axes have the same spans. Both axes are
    fixed where that is not possible.
    """
    assert a.length == b.length, f"{a.length} and {b.length}"
    while True:
        pairs = list(zip(a.resolved, b.resolved, strict=False))
        different = next(
            (
                (one, other)
                for one, other in pairs
                if (one.group.size, one.block) != (other.group.size, other.block)
            ),
            None,
        )
        if different is None:
            break
        if not _make_equal(*different):
            a.fix()
            b.fix()
            return
    for one, other in pairs:
        into, group = one.group.root, other.group.root
        if into is not group:
            into.is_fixed |= group.is_fixed
            group.merged_into = into


def _make_equal(one: Span, other: Span) -> bool:
    """Split the longer of two spans, or gather channels of the finer one into blocks.

    Returns:
        whether that is possible.
    """
    if one.length != other.length:
        shorter, longer = sorted((one, other), key=lambda span: span.length)
        if shorter.length % longer.block:
            return False
        size = shorter.length // longer.block
        group = longer.group
        sizes = (size, group.size - size)
        group.parts = (
            ChannelGroup(sizes[0], group.is_fixed),
            ChannelGroup(sizes[1], group.is_fixed),
        )
        return True
    finer, coarser = sorted((one, other), key=lambda span: span.block)
    if coarser.block % finer.block:
        return False
    count = coarser.block // finer.block
    finer.group.blocks = ChannelGroup(finer.group.size // count, finer.group.is_fixed), count
    return True
