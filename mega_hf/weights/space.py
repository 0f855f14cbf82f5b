"""A state dict as one flat float32 vector: which entries are searched, which are copied; and
back."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from mega_hf.errors import ParentError

StateDict = dict[str, torch.Tensor]
STATISTICS = ("running_mean", "running_var")  # of BatchNorm


@dataclass(frozen=True)
class Segment:
    """Where one tensor stands in the flat vector."""

    name: str
    start: int
    stop: int
    shape: torch.Size
    # the parents' own; weights are rounded to it before they are measured or saved
    dtype: torch.dtype
    learned: bool


@dataclass(frozen=True)
class WeightSpace:
    """The layout shared by all parents: learned weights first, then BatchNorm's running statistics.

    Statistics that are recomputed for whatever weights are measured are no part of a vector, nor of
    what is made of
    one: the state dicts made here are complete but for them.

    Integer buffers are copied from the first parent, never averaged; other floating buffers are
    equal in all.
    """

    segments: tuple[Segment, ...]
    copied: StateDict  # what is not searched
    tied: dict[str, str]  # a second name of a tensor -> the name that is searched
    # statistics that follow from the weights
    recomputed: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many numbers a vector has."""
        return self.segments[-1].stop if self.segments else 0

    @property
    def learned_size(self) -> int:
        """How many of them are learned weights."""
        return max((s.stop for s in self.segments if s.learned), default=0)

    def pack(self, state: StateDict, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return a state dict as a vector, [size] float32 on the CPU: `out`, if it is given."""
        vector = torch.empty(self.size) if out is None else out
        for s in self.segments:
            vector[s.start : s.stop] = state[s.name].detach().reshape(-1)
        return vector

    def unpack(self, vector: torch.Tensor) -> StateDict:
        """Return a vector as a state dict in the parents' dtypes."""
        parts = vector.split([s.stop - s.start for s in self.segments])
        state = {
            s.name: part.view(s.shape).to(s.dtype)
            for s, part in zip(self.segments, parts, strict=True)
        }
        state |= self.copied
        return state | {name: state[source] for name, source in self.tied.items()}

    def combine(
        self,
        states: Iterable[StateDict],
        how: Callable[[Segment, list[torch.Tensor]], torch.Tensor],
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield a state dict made from those of the parents, one tensor at a time.

        Args:
            states: the parents'.
            how: makes a tensor of those of the parents, all of one shape.
        """
        states, seconds = list(states), defaultdict(list)
        for second, name in self.tied.items():
            seconds[name].append(second)
        for s in self.segments:
            made = how(s, [state[s.name] for state in states]).to(s.dtype)
            yield from ((name, made) for name in (s.name, *seconds.pop(s.name, ())))
        yield from self.copied.items()
        yield from ((name, self.copied[of]) for of, names in seconds.items() for name in names)

    def learned_digest(self, state: StateDict) -> str:
        """Return the SHA-256 of the learned weights: what recipe, parents and journal decide
        alone."""
        return digest({s.name: state[s.name] for s in self.segments if s.learned})

    def statistics_digest(self, state: StateDict) -> str | None:
        """Return the SHA-256 of BatchNorm's running statistics, or None if there are none."""
        names = [*(s.name for s in self.segments if not s.learned), *self.recomputed]
        return digest({name: state[name] for name in names}) if names else None


def build_space(
    states: Mapping[str, StateDict],
    learned: Iterable[str],
    tied: dict[str, str],
    recomputed: Collection[str] = (),
) -> WeightSpace:
    """Lay out the weight space of some parents.

    Args:
        states: parent's name -> its state dict, in its own dtypes.
        learned: the entries that are learned.
        tied: second names of tensors, which are left out.
        recomputed: the entries that are computed anew for any weights.

    Raises:
        ParentError: the parents differ in names, shapes or dtypes, hold NaN or infinity, or differ
            in a floating buffer that can't be mixed; the difference is shown.
    """
    check_identical(states)
    first, learned = next(iter(states.values())), set(learned)
    segments: list[Segment] = []
    searched = [k for k in first if k in learned and k not in tied and first[k].is_floating_point()]
    statistics = [
        k
        for k in first
        if k not in learned and k.rsplit(".", 1)[-1] in STATISTICS and k not in recomputed
    ]
    for name in [*searched, *statistics]:
        start, tensor = segments[-1].stop if segments else 0, first[name]
        segments.append(
            Segment(
                name, start, start + tensor.numel(), tensor.shape, tensor.dtype, name in learned
            )
        )
    placed = {s.name for s in segments} | set(tied) | set(recomputed)
    copied = {k: v for k, v in first.items() if k not in placed}
    for name, tensor in copied.items():
        for parent, state in states.items():
            if tensor.is_floating_point() and not torch.equal(state[name], tensor):
                what = f"the buffer {name} differs between parents and can't be mixed"
                raise ParentError(
                    what,
                    expected="equal in all parents",
                    got=f"another value in {parent}",
                    hint=(
                        "this model cannot be merged with the others; mega-hf compare tells them"
                        " apart"
                    ),
                )
    return WeightSpace(
        tuple(segments), copied, tied, {name: first[name].dtype for name in recomputed}
    )


def check_identical(states: Mapping[str, StateDict]) -> None:
    """Raise ParentError unless all parents have the same entries, shapes and dtypes, and finite
    numbers."""
    (first_name, first), *others = states.items()
    for name, state in others:
        differences = list(difference(first, state))
        if differences:
            shown = "; ".join(differences[:5]) + (
                f"; and {len(differences) - 5} more" if differences[5:] else ""
            )
            raise ParentError(
                f"{first_name} and {name} differ",
                expected="identical architectures",
                got=shown,
                hint="merge only models of one architecture; mega-hf compare shows what differs",
            )
    for name, state in states.items():
        for key, tensor in state.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                hint = "this model is broken: leave it out, or take an earlier checkpoint"
                raise ParentError(
                    f"{name} holds NaN or infinity",
                    expected="finite weights",
                    got=key,
                    hint=hint,
                )


def difference(a: StateDict, b: StateDict) -> Iterable[str]:
    """Yield in words what distinguishes the layouts of two state dicts."""
    for key in [*a, *(k for k in b if k not in a)]:
        if key not in a or key not in b:
            yield f"{key} is only in the {'second' if key not in a else 'first'}"
        elif a[key].shape != b[key].shape:
            yield f"{key} is {list(a[key].shape)} and {list(b[key].shape)}"
        elif a[key].dtype != b[key].dtype:
            yield f"{key} is {a[key].dtype} and {b[key].dtype}"


def digest(state: StateDict) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha.update(
            tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        )
    return sha.hexdigest()


def largest_difference(a: StateDict, b: StateDict) -> tuple[float, int, int]:
    """Return the largest difference between two models' entries, how many numbers differ, and of
    how many."""
    largest, differing, total = 0.0, 0, 0
    for name in a.keys() | b.keys():
        if name not in a or name not in b or a[name].shape != b[name].shape:
            return float("inf"), 0, 0
        apart = (a[name].double() - b[name].double()).abs()
        largest = max(largest, float(apart.max()) if apart.numel() else 0.0)
        differing, total = differing + int((apart != 0).sum()), total + apart.numel()
    return largest, differing, total
