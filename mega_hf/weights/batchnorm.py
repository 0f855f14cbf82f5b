"""BatchNorm's running statistics, computed afresh for whatever weights a model holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mega_hf.weights.space import STATISTICS, StateDict


def statistics_names(model: nn.Module) -> list[str]:
    """Return the entries of a model's state dict that `recalibrate_batchnorm` computes; none
    without BatchNorm."""
    return [
        f"{name}.{entry}" if name else entry for name, _ in _layers(model) for entry in STATISTICS
    ]


@torch.inference_mode()
def recalibrate_batchnorm(
    model: nn.Module,
    run: Callable[[torch.Tensor], object],
    batches: Iterable[torch.Tensor],
    threads: int,
) -> StateDict:
    """Give each BatchNorm layer the mean and variance that it sees, averaged over batches of equal
    weight.

    The rest of the model stays in evaluation mode. A batch passes each layer by its own statistics,
    as in training, and the average is cumulative (`momentum=None` of torch's layers). How many
    threads sum decides the last bits, so they are set for these sums; what stands between them may
    use all that there are.

    Args:
        model: in evaluation mode, on its device; its running statistics are written in place.
        run: shows it a batch.
        batches: [rows, channels, height, width], two rows or more each.
        threads: that sum.

    Returns:
        the statistics: copies, on the CPU.
    """
    layers = [layer for _, layer in _layers(model)]
    with _summing(layers, threads):
        for images in batches:
            run(images)
    state = model.state_dict()
    return {name: state[name].to("cpu", copy=True) for name in statistics_names(model)}


def _layers(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    return [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats
    ]


@contextmanager
def _summing(layers: list[_BatchNorm], threads: int) -> Iterator[None]:
    """Let layers average what they see; their counters of batches, and everything else, are
    afterwards as before."""
    before = torch.get_num_threads()
    kept = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    hooks = []
    for layer in layers:
        assert layer.running_mean is not None, "it tracks"
        layer.num_batches_tracked = torch.zeros(
            (), dtype=torch.int64, device=layer.running_mean.device
        )
        layer.reset_running_stats()  # else what was no number before would stay none
        layer.momentum, layer.training = None, True
        hooks.append(layer.register_forward_pre_hook(lambda *_: torch.set_num_threads(threads)))
        hooks.append(layer.register_forward_hook(lambda *_: torch.set_num_threads(before)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        torch.set_num_threads(before)
        for layer, (momentum, counted) in zip(layers, kept, strict=True):
            layer.momentum, layer.num_batches_tracked, layer.training = momentum, counted, False
