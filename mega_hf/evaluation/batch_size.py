"""Choose the batch size of a run, and the rows to evaluate at a time."""

from __future__ import annotations

import math

import torch
from torch import nn

from mega_hf.runtime.processes import is_gpu

# Measured on 2 CPU cores with AVX2, with freed memory kept: a compiled ResNet-20 at 32 px processes
# 1.04 times as many images per second in batches of 128 as in batches of 32, whose overhead in
# Python is another 4 %; batches of 256 gain another 1.03. At 224 px a batch takes 50 times the
# memory, and batches of 16 to 32 were fastest (before freed memory was kept).
_SMALLEST, _LARGEST, _GPU = 32, 128, 512
_LAYER = 2**25  # bytes of the largest layer's output for a batch
_CHUNK = 128


def even_batches(rows: int, batch_size: int) -> int:
    """Return the batch size up to `batch_size` with the least padding.

    For example 125 for 5,000 rows and a limit of 128.
    """
    return math.ceil(rows / math.ceil(rows / min(batch_size, rows)))


def choose_batch_size(
    batch_size: int | None,
    rows: int,
    device: torch.device,
    model: nn.Module,
    shape: tuple[int, ...],
) -> int:
    """Return the batch size of a run: the recipe's, else one that suits the model.

    The choice depends on no measured time, so it is the same wherever a recipe runs on one kind of
    device. It is rounded down to leave the least padding.

    Args:
        batch_size: the recipe's, or None.
        rows: of the validation split.
        device: where the model will run.
        model: on any device.
        shape: of an image: (channels, height, width).
    """
    limit = batch_size or (_GPU if is_gpu(device) else suitable_batch_size(model, shape))
    return even_batches(rows, limit)


def choose_chunk(recipe_batch_size: int | None, batch_size: int) -> int:
    """Return how many rows of an individual to evaluate at a time.

    After these rows the search checks whether the individual can still win.
    Building an individual costs some milliseconds, so several small batches are evaluated at a
    time; only one where the recipe sets the batch size.
    """
    return batch_size if recipe_batch_size else max(_CHUNK, batch_size)


@torch.inference_mode()
def suitable_batch_size(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Return a batch size for a CPU: the largest layer output is about 32 MiB."""
    largest = 1

    def record_size(_: nn.Module, __: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, output.numel())

    hooks = [
        layer.register_forward_hook(record_size)
        for layer in model.modules()
        if not any(layer.children())
    ]
    try:
        model(torch.zeros(1, *shape, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return min(_LARGEST, max(_SMALLEST, 2 ** int(math.log2(max(1, _LAYER // (4 * largest))))))
