"""The forward pass of one resident model on resident examples."""

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

# Ways of running a model. The journal's header holds these strings, so they never change.
PLAIN = "eager float32 contiguous"  # as a user's own code would
EAGER = "eager float32 channels-last"
COMPILED = "compiled float32 channels-last"

# How far the compiled model's margins may be from the eager ones, relative to the largest margin.
_COMPILED_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Examples:
    """A split's transformed images, and the one shape of all batches made of them."""

    images: torch.Tensor  # [rows, channels, height, width] float32, on the device where they fit
    labels: torch.Tensor  # [rows] int64, on the device
    batch_size: int
    place: str  # device, host or disk

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.labels)

    def select(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and labels of some rows, padded to one whole batch.

        Args:
            rows: [1 to batch_size] int64. The first row is repeated as padding.
        """
        padding = rows[:1].expand(self.batch_size - len(rows))
        rows = torch.cat([rows, padding])
        stored = self.images.permute(0, 2, 3, 1)  # the order in memory, where an image is one block
        images = stored.index_select(0, rows.to(stored.device)).permute(0, 3, 1, 2)
        return images, self.labels[rows.to(self.labels.device)]


class Predictions(NamedTuple):
    """A model's predictions on some rows, in their order; on the CPU."""

    correct: torch.Tensor  # [rows] bool
    margin: torch.Tensor  # [rows] float32: the label's logit minus the largest other logit
    finite: bool  # whether all logits are finite
    loss: torch.Tensor  # [rows] float32: cross-entropy, in nats

    @property
    def num_correct(self) -> int | None:
        """The number of correct rows; None where a logit is not finite."""
        return int(self.correct.sum()) if self.finite else None


def place_examples(
    rows: int, shape: tuple[int, ...], batch_size: int, device: torch.device, share: float
) -> Examples:
    """Allocate a split on the device, in main memory, or in a memory-mapped file.

    Args:
        rows: the number of images.
        shape: (channels, height, width).
        batch_size: the one batch size of the run.
        device: the model's device.
        share: the part of the device's (else the machine's) free memory that the split may take.
    """
    size = (rows, *shape)
    needed = 4 * math.prod(size)
    labels = torch.zeros(rows, dtype=torch.int64, device=device)
    if is_gpu(device) and needed <= share * torch.cuda.mem_get_info(device)[0]:
        return Examples(_zeros(size, device), labels, batch_size, "device")
    if needed <= share * psutil.virtual_memory().available:
        place = "host" if is_gpu(device) else "device"
        return Examples(_zeros(size, torch.device("cpu")), labels, batch_size, place)
    # The file is unlinked at once, and its space is freed with the last reference to the tensor.
    with tempfile.NamedTemporaryFile(prefix="mega_hf-examples-") as file:
        mapped = np.memmap(file, dtype=np.float32, mode="w+", shape=size)
        return Examples(torch.from_numpy(mapped), labels, batch_size, "disk")


def _zeros(size: tuple[int, ...], device: torch.device) -> torch.Tensor:
    # Channels-last: convolutions run 1.5 to 2 times as fast on the CPUs measured (ResNet-20, AVX2).
    return torch.zeros(size, device=device).to(memory_format=torch.channels_last)


class ResidentModel:
    """A model that stays on its device and predicts with the weights written last.

    Args:
        model: in evaluation mode, float32; it is moved to `device` and kept.
        device: where the model runs.
        path: PLAIN, EAGER or COMPILED; a model is compiled at its first prediction.
    """

    def __init__(self, model: nn.Module, device: torch.device, path: str = EAGER) -> None:
        self.device, self.path = device, path
        self.memory_format = torch.contiguous_format if path == PLAIN else torch.channels_last
        self.model = (
            model.to(device).to(memory_format=self.memory_format).eval().requires_grad_(False)
        )
        self.eager = _runner(self.model)  # one batch of images to logits, uncompiled
        self._compiled: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._is_order_free: bool | None = None
        self._entries = self.model.state_dict()

    def write(self, entries: Iterable[tuple[str, torch.Tensor]], part: bool = False) -> None:
        """Copy weights and buffers into the resident model in place.

        Args:
            entries: names and tensors of a state dict, already rounded to the parents' dtype.
            part: allow missing entries, which keep their values.
        """
        missing = set(self._entries)
        for name, tensor in entries:
            self._entries[name].copy_(tensor)
            missing.discard(name)
        assert part or not missing, f"not written: {missing}"

    @torch.inference_mode()
    def predict(self, examples: Examples, rows: torch.Tensor | None = None) -> Predictions:
        """Return the predictions of the resident model.

        Args:
            examples: the split.
            rows: [n] int64 on the CPU; all rows by default. Every batch has one shape, whichever
                rows are chosen.

        Raises:
            RunError: the path is COMPILED and the model can't be compiled here.
        """
        if self.path == COMPILED and self._compiled is None:
            self._compile_or_raise(examples)
        return self._predict(examples, torch.arange(examples.count) if rows is None else rows)

    def _predict(self, examples: Examples, rows: torch.Tensor) -> Predictions:
        correct, margin, finite, loss = self._run_batches(examples, rows, judge)
        return Predictions(correct, margin, bool(finite.all()), loss)

    def _run_batches(
        self,
        examples: Examples,
        rows: torch.Tensor,
        judge: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
    ) -> list[torch.Tensor]:
        """Apply `judge` to the logits and labels of each batch.

        Returns:
            each tensor that `judge` returns, for all rows in their order; on the CPU.
        """
        found = []
        # No benchmarking of cuDNN algorithms: the fastest differs from run to run, and so would the
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
        """Return the class probabilities of all rows: [rows, classes] float32 on the CPU."""
        rows = torch.arange(examples.count)
        return self._run_batches(examples, rows, lambda scores, _: (scores.softmax(dim=1),))[0]

    def count_correct(self, examples: Examples) -> int | None:
        """Return the number of correct rows, or None where a logit is not finite."""
        return self.predict(examples).num_correct

    def order_check_size(self, examples: Examples) -> int:
        """Return how many examples `is_order_free` will forward: 0 after its first call."""
        if self._is_order_free is not None:
            return 0
        return 2 * min(3 * examples.batch_size, examples.count)

    def is_order_free(self, examples: Examples) -> bool:
        """Return whether predictions do not depend on a row's place in its batch.

        This is tried on three batches. The kernels we measured sum each row in one order, but no
        library promises that.
        """
        if self._is_order_free is None:
            rows = torch.arange(self.order_check_size(examples) // 2)
            # in other places, and next to other rows
            mixed = torch.cat([rows[1::2], rows[::2]]).flip(0)
            plain, moved = self.predict(examples, rows), self.predict(examples, rows[mixed])
            pairs = [(plain.margin[mixed], moved.margin), (plain.loss[mixed], moved.loss)]
            self._is_order_free = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)
        return self._is_order_free

    @torch.inference_mode()
    def compile(self, examples: Examples) -> None:
        """Compile the model for the one batch shape, and check its predictions.

        Weights are inputs of the compiled graph, so `write` needs no recompilation.

        Raises:
            Exception: of any kind, for example where there is no compiler.
        """
        rows = torch.arange(min(examples.batch_size, examples.count))
        expected = self._predict(examples, rows).margin
        # Forget other models: beyond eight, torch would silently run further ones uncompiled.
        torch.compiler.reset()
        compiled = torch.compile(self.eager, dynamic=False)
        self._compiled = compiled
        try:
            error = (self._predict(examples, rows).margin - expected).abs().max()
            if error > _COMPILED_TOLERANCE * (1 + expected.abs().max()):
                raise ArithmeticError(f"the compiled model's logits differ by {error:.3g}")
        except BaseException:
            self.uncompile()
            raise
        self.path, self._compiled = COMPILED, partial(_run_compiled, compiled)

    def _compile_or_raise(self, examples: Examples) -> None:
        try:
            self.compile(examples)
        except Exception as error:  # from any of torch's layers
            raise RunError(
                "cannot compile the model on this machine",
                expected="a compiled model, as at the start of the run",
                got=first_line(error)[:200],
                hint=(
                    "resume on the machine where the run was started, or install a C++ compiler; or"
                    " start again with --overwrite --forward eager"
                ),
            ) from None

    @property
    def run(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The function from a batch of images to logits, compiled or eager."""
        return self._compiled or self.eager

    def uncompile(self) -> None:
        """Run the model eagerly from now on."""
        self.path, self._compiled = EAGER, None


def _runner(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: logits(model, images)


def _run_compiled(
    compiled: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor
) -> torch.Tensor:
    """Run the compiled model, and raise instead of compiling again.

    A second compilation would be a bug in mega_hf and cost more than compiling saves.
    """
    with torch.compiler.set_stance("fail_on_recompile"):
        return compiled(images)
