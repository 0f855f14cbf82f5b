"""The layout of a state dict as one flat float32 vector, and the way back."""

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
    """The part of one tensor in the flat vector: [start, stop)."""

    name: str
    start: int
    stop: int
    shape: torch.Size
    dtype: torch.dtype  # the parents'; weights are rounded to it before evaluation and saving
    learned: bool


@dataclass(frozen=True)
class WeightSpace:
    """The layout of all parents: learned weights first, then BatchNorm statistics.

    Integer buffers are copied from the first parent and never averaged; other floating-point
    buffers are equal in all parents.

    Attributes:
        segments: the tensors of the vector, in order.
        copied: entries that are not searched.
        tied: second name of a tensor -> the name that is searched.
        recomputed: BatchNorm statistics that are recalibrated for any weights, with their dtypes.
            They are part of no vector, and of no state dict made here.
    """

    segments: tuple[Segment, ...]
    copied: StateDict
    tied: dict[str, str]
    recomputed: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The length of a vector."""
        return self.segments[-1].stop if self.segments else 0

    @property
    def learned_size(self) -> int:
        """The number of learned weights, which come first."""
        return max((s.stop for s in self.segments if s.learned), default=0)

    def pack(self, state: StateDict, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return a state dict as a vector: [size] float32 on the CPU.

        Args:
            state: the state dict.
            out: the vector to write into; a new one by default.
        """
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
        mix: Callable[[Segment, list[torch.Tensor]], torch.Tensor],
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the entries of a mixed state dict, one tensor at a time.

        Args:
            states: the parents' state dicts.
            mix: returns a tensor from those of the parents, all of one shape.
        """
        states, second_names = list(states), defaultdict(list)
        for second, name in self.tied.items():
            second_names[name].append(second)
        for s in self.segments:
            mixed = mix(s, [state[s.name] for state in states]).to(s.dtype)
            yield from ((name, mixed) for name in (s.name, *second_names.pop(s.name, ())))
        yield from self.copied.items()
        for name, seconds in second_names.items():
            yield from ((second, self.copied[name]) for second in seconds)

    def learned_digest(self, state: StateDict) -> str:
        """Return the SHA-256 of the learned weights.

        Recipe, parents and journal alone decide these weights, on any machine.
        """
        return digest({s.name: state[s.name] for s in self.segments if s.learned})

    def statistics_digest(self, state: StateDict) -> str | None:
        """Return the SHA-256 of the BatchNorm statistics, or None if there are none."""
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
        learned: names of the learned entries.
        tied: second name of a tensor -> its first name; second names are left out.
        recomputed: names of BatchNorm statistics that are recalibrated for any weights.

    Raises:
        ParentError: the parents differ in names, shapes or dtypes, hold NaN or infinity, or differ
            in a floating-point buffer that can't be mixed.
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
                raise ParentError(
                    f"the buffer {name} differs between parents and can't be mixed",
                    expected="equal in all parents",
                    got=f"a different value in {parent}",
                    hint=f"leave {parent} out; mega-hf compare shows which models can be merged",
                )
    return WeightSpace(
        tuple(segments), copied, tied, {name: first[name].dtype for name in recomputed}
    )


def check_identical(states: Mapping[str, StateDict]) -> None:
    """Check that all parents have equal names, shapes and dtypes, and no NaN."""
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
                hint="merge models of one architecture; mega-hf compare shows all differences",
            )
    for name, state in states.items():
        for key, tensor in state.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ParentError(
                    f"{name} holds NaN or infinity",
                    expected="finite weights",
                    got=key,
                    hint="leave this model out, or use an earlier checkpoint",
                )


def difference(a: StateDict, b: StateDict) -> Iterable[str]:
    """Yield the differences between the layouts of two state dicts, in words."""
    for key in [*a, *(k for k in b if k not in a)]:
        if key not in a or key not in b:
            yield f"{key} is only in the {'second' if key not in a else 'first'}"
        elif a[key].shape != b[key].shape:
            yield f"{key} is {list(a[key].shape)} and {list(b[key].shape)}"
        elif a[key].dtype != b[key].dtype:
            yield f"{key} is {a[key].dtype} and {b[key].dtype}"


def digest(state: StateDict) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes, sorted by name."""
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha.update(
            tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        )
    return sha.hexdigest()


def largest_difference(a: StateDict, b: StateDict) -> tuple[float, int, int]:
    """Compare the entries of two state dicts.

    Returns:
        the largest absolute difference, how many numbers differ, and the number of all of them;
        infinity, 0 and 0 where names or shapes differ.
    """
    largest, differing, total = 0.0, 0, 0
    for name in a.keys() | b.keys():
        if name not in a or name not in b or a[name].shape != b[name].shape:
            return float("inf"), 0, 0
        distance = (a[name].double() - b[name].double()).abs()
        largest = max(largest, float(distance.max()) if distance.numel() else 0.0)
        differing, total = differing + int((distance != 0).sum()), total + distance.numel()
    return largest, differing, total
