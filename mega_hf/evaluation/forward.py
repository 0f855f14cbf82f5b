"""The forward pass: one resident model, weights written into it in place, pictures that stay where
they are."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch import nn

from mega_hf.errors import RunError, first_line
from mega_hf.runtime.processes import is_gpu
from mega_hf.tasks.image_classification import judge, logits

# Ways of running a model, as the journal's header calls them.
PLAIN = "eager float32 contiguous"  # as a user's own code would
EAGER = "eager float32 channels-last"
COMPILED = "compiled float32 channels-last"

# of the largest margin: how far apart the compiled model's margins may be from the eager ones
_APART = 1e-3


@dataclass(frozen=True)
class Examples:
    """A split's transformed pictures, and the one shape of all batches that are made of them."""

    images: torch.Tensor  # [rows, channels, height, width] float32, on the device where they fit
    labels: torch.Tensor  # [rows] int64 on the device
    batch_size: int
    place: str  # device, host or disk

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.labels)

    def select(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one whole batch of some rows (at most a batch of them), filled up by rows that are
        not looked at."""
        filling = rows[:1].expand(self.batch_size - len(rows))
        rows = torch.cat([rows, filling])
        lying = self.images.permute(0, 2, 3, 1)  # as they lie in memory: a picture is one piece
        images = lying.index_select(0, rows.to(lying.device)).permute(0, 3, 1, 2)
        return images, self.labels[rows.to(self.labels.device)]


class Predictions(NamedTuple):
    """What a model answered on some rows, in their order; on the CPU."""

    right: torch.Tensor  # [rows] bool
    margin: torch.Tensor  # [rows] float32: the right class's logit less the largest of the others
    finite: bool  # whether all logits were
    loss: torch.Tensor  # [rows] float32: cross-entropy, in nats

    @property
    def correct(self) -> int | None:
        """How many rows are answered rightly; None where a logit was not finite."""
        return int(self.right.sum()) if self.finite else None


def place_examples(
    rows: int, shape: tuple[int, ...], batch_size: int, device: torch.device, share: float
) -> Examples:
    """Allocate room for a split: on the device, else in main memory, else in a file that is mapped.

    Args:
        rows: how many pictures there will be.
        shape: (channels, height, width).
        batch_size: the one batch size of the run.
        device: where the model is.
        share: what part of the device's (else the machine's) free memory they may take.
    """
    size = (rows, *shape)
    needed = 4 * math.prod(size)
    labels = torch.zeros(rows, dtype=torch.int64, device=device)
    if is_gpu(device) and needed <= share * torch.cuda.mem_get_info(device)[0]:
        return Examples(_zeros(size, device), labels, batch_size, "device")
    if needed <= share * psutil.virtual_memory().available:
        return Examples(
            _zeros(size, torch.device("cpu")),
            labels,
            batch_size,
            "host" if is_gpu(device) else "device",
        )
    # unlinked at once, freed when unmapped
    with tempfile.NamedTemporaryFile(prefix="mega_hf-pictures-") as file:
        mapped = np.memmap(file, dtype=np.float32, mode="w+", shape=size)
        return Examples(torch.from_numpy(mapped), labels, batch_size, "disk")


def _zeros(size: tuple[int, ...], device: torch.device) -> torch.Tensor:
    # Channels-last: convolutions run 1.5 to 2 times as fast on the CPUs measured (ResNet-20, AVX2).
    return torch.zeros(size, device=device).to(memory_format=torch.channels_last)


class ResidentModel:
    """Counts right answers of one resident model, whatever weights are written into it.

    Args:
        model: in evaluation mode, float32; it is moved to `device` and kept.
        device: where it runs.
        path: how: PLAIN, EAGER, or COMPILED, which takes place when the first rows are asked.
    """

    def __init__(self, model: nn.Module, device: torch.device, path: str = EAGER) -> None:
        self.device, self.path = device, path
        self.memory_format = torch.contiguous_format if path == PLAIN else torch.channels_last
        self.model = (
            model.to(device).to(memory_format=self.memory_format).eval().requires_grad_(False)
        )
        self.eager = _runner(self.model)  # one batch of pictures to logits, uncompiled
        self._compiled: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._is_order_free: bool | None = None
        self._entries = self.model.state_dict()

    def write(self, entries: Iterable[tuple[str, torch.Tensor]], part: bool = False) -> None:
        """Copy all weights and buffers into the resident model in place, rounded already to the
        parents' dtype.

        Args:
            entries: of its state dict.
            part: whether some may be missing, and are left as they are.
        """
        left = set(self._entries)
        for name, tensor in entries:
            self._entries[name].copy_(tensor)
            left.discard(name)
        assert part or not left, f"left as they were: {left}"

    @torch.inference_mode()
    def answers(self, examples: Examples, rows: torch.Tensor | None = None) -> Predictions:
        """Return what the resident model answers.

        Args:
            examples: the split.
            rows: [any] int64 on the CPU, of the split; all by default. Whichever they are, each
                batch has one shape.
        """
        if self.path == COMPILED and self._compiled is None:
            self._compile_as_before(examples)
        return self._answers(examples, torch.arange(examples.count) if rows is None else rows)

    def _answers(self, examples: Examples, rows: torch.Tensor) -> Predictions:
        right, margin, finite, loss = self._show(examples, rows, judge)
        return Predictions(right, margin, bool(finite.all()), loss)

    def _show(
        self,
        examples: Examples,
        rows: torch.Tensor,
        judge: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
    ) -> list[torch.Tensor]:
        """Return what `judge` makes of each batch's logits and labels, of all rows in their order;
        on the CPU."""
        found = []
        # No search among algorithms: which one is fastest differs from run to run, and so would the
        # last bits.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            for chosen in rows.split(examples.batch_size):
                images, labels = examples.select(chosen)
                images = images.to(self.device, non_blocking=True).to(
                    memory_format=self.memory_format
                )
                found.append([part[: len(chosen)] for part in judge(self.run(images), labels)])
        return [torch.cat(parts).cpu() for parts in zip(*found, strict=True)]

    @torch.inference_mode()
    def probabilities(self, examples: Examples) -> torch.Tensor:
        """Return what the resident model gives each class, on all rows: [rows, classes] float32 on
        the CPU."""
        (found,) = self._show(
            examples, torch.arange(examples.count), lambda scores, _: (scores.softmax(dim=1),)
        )
        return found

    def tried_for_order(self, examples: Examples) -> int:
        """Return how many pictures `is_order_free` would show: some batches, twice, if it does not
        know yet."""
        return (
            2 * min(3 * examples.batch_size, examples.count) if self._is_order_free is None else 0
        )

    def is_order_free(self, examples: Examples) -> bool:
        """Say whether rows are answered alike, to the last bit, wherever they stand in a batch, as
        tried on some.

        Each row has sums of its own, which the kernels measured build in one order; nothing
        promises it for all.
        """
        if self._is_order_free is None:
            rows = torch.arange(self.tried_for_order(examples) // 2)
            # beside other rows, and in other places
            mixed = torch.cat([rows[1::2], rows[::2]]).flip(0)
            there, here = self.answers(examples, rows), self.answers(examples, rows[mixed])
            both = [(there.margin[mixed], here.margin), (there.loss[mixed], here.loss)]
            self._is_order_free = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in both)
        return self._is_order_free

    def count(self, examples: Examples) -> int | None:
        """Return how many rows are answered rightly, or None where a logit is not finite."""
        return self.answers(examples).correct

    @torch.inference_mode()
    def compile(self, examples: Examples) -> None:
        """Compile the model for the one shape of the batches, and see that it answers as before.

        Weights are inputs of what is compiled, so that `write` needs no other compilation.

        Raises:
            Exception: of any kind, as where there is no compiler.
        """
        rows = torch.arange(min(examples.batch_size, examples.count))
        expected = self._answers(examples, rows).margin
        # of other models: beyond eight, torch would run further ones uncompiled, in silence
        torch.compiler.reset()
        compiled = torch.compile(self.eager, dynamic=False)
        self._compiled = compiled
        try:
            apart = (self._answers(examples, rows).margin - expected).abs().max()
            if apart > _APART * (1 + expected.abs().max()):
                raise ArithmeticError(
                    f"compiled, its logits are {apart:.3g} apart from what they were"
                )
        except BaseException:
            self.uncompile()
            raise
        self.path, self._compiled = COMPILED, partial(_only_once, compiled)

    def _compile_as_before(self, examples: Examples) -> None:
        try:
            self.compile(examples)
        except Exception as error:  # of any of torch's layers
            raise RunError(
                "the model can't be compiled here",
                expected="a compiled model, with which the run was begun",
                got=first_line(error)[:200],
                hint=(
                    "go on where it was begun, or install a C++ compiler; or --overwrite --forward"
                    " eager"
                ),
            ) from None

    @property
    def run(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The model as it runs: one batch of pictures in the device's memory to logits."""
        return self._compiled or self.eager

    def uncompile(self) -> None:
        """Run the model eagerly."""
        self.path, self._compiled = EAGER, None


def _runner(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: logits(model, images)


def _only_once(
    compiled: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor
) -> torch.Tensor:
    """Run what was compiled; to compile again would cost more than it saves, and be a fault of
    ours."""
    with torch.compiler.set_stance("fail_on_recompile"):
        return compiled(images)
