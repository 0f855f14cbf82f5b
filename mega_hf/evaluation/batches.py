"""How many rows are shown at once: to the model, and to one individual before others have their turn."""

from __future__ import annotations

import math

import torch
from torch import nn

from mega_hf.evaluation.processes import is_gpu

# Measured on 2 CPU cores with AVX2 and 32 MiB of cache: ResNet-20 and 56 at 32 px, ResNet-18 and ViT-Ti at 224 px are
# fastest in batches of 16 to 32, whose activations stay in the cache (ResNet-20 compiled: 1.3 times as fast as in
# batches of 100); ResNet-18 at 32 px, whose weights are large beside its activations, in batches of 128 and more.
_SMALLEST, _LARGEST, _GPU = 32, 128, 512
_AMORTIZED = 4  # activations of a batch, in units of the weights that are read for it
_CHUNK = 128


def even_batches(rows: int, batch_size: int) -> int:
    """Return a batch size of at most `batch_size` that leaves the least padding, e.g. 125 for 5,000 rows and 128."""
    return math.ceil(rows / math.ceil(rows / min(batch_size, rows)))


def choose_batch_size(
    asked: int | None, rows: int, device: torch.device, model: nn.Module, shape: tuple[int, ...]
) -> int:
    """Return the run's one batch size: what was asked for, else what suits device and model, with the least padding.

    It depends on no measured time, so it is the same wherever a recipe is run on one kind of device.

    Args:
        asked: the recipe's, or None.
        rows: of the validation split.
        device: where the model will run.
        model: on whatever device.
        shape: of a picture: (channels, height, width).
    """
    return even_batches(rows, asked or (_GPU if is_gpu(device) else _suitable(model, shape)))


def choose_chunk(asked: int | None, batch_size: int) -> int:
    """Return how many rows an individual is shown before it is asked whether it may still win.

    Building an individual costs some milliseconds, so small batches are shown several at a time; but one, where the
    recipe says how large.
    """
    return batch_size if asked else max(_CHUNK, batch_size)


@torch.inference_mode()
def _suitable(model: nn.Module, shape: tuple[int, ...]) -> int:
    weights = sum(parameter.numel() for parameter in model.parameters())
    counted: list[int] = []

    def count(_: nn.Module, __: object, output: object) -> None:
        counted.append(output.numel() if isinstance(output, torch.Tensor) else 0)

    hooks = [part.register_forward_hook(count) for part in model.modules() if not any(part.children())]
    try:
        model(torch.zeros(1, *shape, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    wanted = _AMORTIZED * weights / max(1, sum(counted))
    return min(_LARGEST, max(_SMALLEST, 2 ** math.ceil(math.log2(max(1.0, wanted)))))
