"""The forward pass: one resident model, weights written into it in place, pictures that stay where they are."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import nn

from mega_hf.evaluation.processes import is_gpu
from mega_hf.weights.space import StateDict

PADDING = -1  # the label of a row that only fills up the last batch


@dataclass(frozen=True)
class Pictures:
    """A split's transformed pictures, padded to whole batches: every forward pass has one shape."""

    images: torch.Tensor  # [batches * batch_size, channels, height, width] float32, on the device where they fit
    labels: torch.Tensor  # [batches * batch_size] int64 on the device, PADDING at the end
    count: int  # rows that count
    batch_size: int
    place: str  # device, host or disk

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return len(self.images) // self.batch_size


def even_batches(rows: int, batch_size: int) -> int:
    """Return a batch size of at most `batch_size` that leaves the least padding, e.g. 125 for 5,000 rows and 128."""
    return math.ceil(rows / math.ceil(rows / min(batch_size, rows)))


def choose_batch_size(asked: int | None, rows: int, device: torch.device) -> int:
    """Return the run's one batch size: what was asked for, else what suits the device, with the least padding."""
    return even_batches(rows, asked or (512 if is_gpu(device) else 128))


def place_pictures(rows: int, shape: tuple[int, ...], batch_size: int, device: torch.device, share: float) -> Pictures:
    """Allocate room for a split: on the device, else in main memory, else in a file that is mapped.

    Args:
        rows: how many pictures there will be.
        shape: (channels, height, width).
        batch_size: the one batch size of the run.
        device: where the model is.
        share: what part of the device's (else the machine's) free memory they may take.
    """
    padded = math.ceil(rows / batch_size) * batch_size
    size = (padded, *shape)
    needed = 4 * math.prod(size)
    labels = torch.full((padded,), PADDING, dtype=torch.int64, device=device)
    if is_gpu(device) and needed <= share * torch.cuda.mem_get_info(device)[0]:
        return Pictures(_zeros(size, device), labels, rows, batch_size, "device")
    if needed <= share * psutil.virtual_memory().available:
        return Pictures(
            _zeros(size, torch.device("cpu")), labels, rows, batch_size, "host" if is_gpu(device) else "device"
        )
    with tempfile.NamedTemporaryFile(prefix="mega_hf-pictures-") as file:  # unlinked at once, freed when unmapped
        mapped = np.memmap(file, dtype=np.float32, mode="w+", shape=size)
        return Pictures(torch.from_numpy(mapped), labels, rows, batch_size, "disk")


def _zeros(size: tuple[int, ...], device: torch.device) -> torch.Tensor:
    # Channels-last: convolutions run 1.5 to 2 times as fast on the CPUs measured (ResNet-20, AVX2).
    return torch.zeros(size, device=device).to(memory_format=torch.channels_last)


class Forward:
    """Counts right answers of one resident model, whatever weights are written into it.

    Args:
        model: in evaluation mode, float32; it is moved to `device` and kept.
        device: where it runs.
        plain: run as a user's own code would: contiguous instead of channels-last.
    """

    def __init__(self, model: nn.Module, device: torch.device, plain: bool = False) -> None:
        self.device = device
        self.memory_format = torch.contiguous_format if plain else torch.channels_last
        self.model = model.to(device).to(memory_format=self.memory_format).eval().requires_grad_(False)
        self._entries = self.model.state_dict()

    @property
    def path(self) -> str:
        """What the journal's header calls this way of running."""
        name = "contiguous" if self.memory_format == torch.contiguous_format else "channels-last"
        return f"eager float32 {name}"

    def write(self, state: StateDict) -> None:
        """Copy weights and buffers into the resident model in place, rounded already to the parents' dtype."""
        for name, entry in self._entries.items():
            entry.copy_(state[name])

    @torch.inference_mode()
    def answers(self, pictures: Pictures, batches: range | None = None) -> tuple[torch.Tensor, bool]:
        """Return right (True) or wrong for each row, [rows] bool on the CPU, and whether all logits were finite.

        Args:
            pictures: the split.
            batches: some of its batches, one after the other; all by default.
        """
        batches = range(pictures.batches) if batches is None else batches
        right, finite = [], torch.ones((), dtype=torch.bool, device=self.device)
        # No search among algorithms: which one is fastest differs from run to run, and so would the last bits.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            for number in batches:
                batch = slice(number * pictures.batch_size, (number + 1) * pictures.batch_size)
                images = pictures.images[batch].to(self.device, non_blocking=True)
                scores = logits(self.model, images.to(memory_format=self.memory_format))
                labels = pictures.labels[batch]
                finite &= (torch.isfinite(scores).all(dim=1) | (labels == PADDING)).all()
                right.append(scores.argmax(dim=1) == labels)
        return torch.cat(right)[: pictures.count - batches[0] * pictures.batch_size].cpu(), bool(finite)

    def count(self, pictures: Pictures, batches: range | None = None) -> int | None:
        """Return how many rows are answered rightly, or None where a logit is not finite; args as `answers`."""
        right, finite = self.answers(pictures, batches)
        return int(right.sum()) if finite else None


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return [rows, classes] from a timm model (a tensor) or a transformers model (a record with `logits`)."""
    output = model(images)
    return getattr(output, "logits", output)
