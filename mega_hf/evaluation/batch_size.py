"""How many rows are shown at once: to the model, and to one individual before others have their
turn."""

from __future__ import annotations

import math

import torch
from torch import nn

from mega_hf.runtime.processes import is_gpu

# Measured on 2 CPU cores with AVX2, freed memory kept: ResNet-20 at 32 px, compiled, shows 1.04
# times as many pictures in batches of 128 as in batches of 32, which cost another 4 % in Python;
# twice as many gain 1.03. At 224 px a batch takes 50 times the memory; there 16 to 32 were fastest,
# before memory was kept.
_SMALLEST, _LARGEST, _GPU = 32, 128, 512
_LAYER = 2**25  # bytes of one layer's output for a batch
_CHUNK = 128


def even_batches(rows: int, batch_size: int) -> int:
    """Return a batch size of at most `batch_size` that leaves the least padding, e.g. 125 for 5,000
    rows and 128."""
    return math.ceil(rows / math.ceil(rows / min(batch_size, rows)))


def choose_batch_size(
    asked: int | None, rows: int, device: torch.device, model: nn.Module, shape: tuple[int, ...]
) -> int:
    """Return the run's one batch size: what was asked for, else what suits device and model, with
    the least padding.

    It depends on no measured time, so it is the same wherever a recipe is run on one kind of
    device.

    Args:
        asked: the recipe's, or None.
        rows: of the validation split.
        device: where the model will run.
        model: on whatever device.
        shape: of a picture: (channels, height, width).
    """
    return even_batches(rows, asked or (_GPU if is_gpu(device) else suitable(model, shape)))


def choose_chunk(asked: int | None, batch_size: int) -> int:
    """Return how many rows an individual is shown before it is asked whether it may still win.

    Building an individual costs some milliseconds, so small batches are shown several at a time;
    but one, where the recipe says how large.
    """
    return batch_size if asked else max(_CHUNK, batch_size)


@torch.inference_mode()
def suitable(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the batch size that suits a model on a CPU: one layer's output for a batch is some 32
    MiB at most."""
    largest = 1

    def look(_: nn.Module, __: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, output.numel())

    hooks = [
        part.register_forward_hook(look) for part in model.modules() if not any(part.children())
    ]
    try:
        model(torch.zeros(1, *shape, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return min(_LARGEST, max(_SMALLEST, 2 ** int(math.log2(max(1, _LAYER // (4 * largest))))))
