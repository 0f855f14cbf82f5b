"""Recompute BatchNorm's running statistics for the weights of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mega_hf.weights.space import STATISTICS, StateDict


def statistics_names(model: nn.Module) -> list[str]:
    """Return the entries of a state dict that `recalibrate_batchnorm` computes."""
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
    """Set the statistics of all BatchNorm layers to their average over batches.

    All batches have equal weight: the average is cumulative (`momentum=None` of torch's layers).
    Each batch is normalized by its own statistics, as in training, and the rest of the model stays
    in evaluation mode. The number of threads that sum decides the last bits, so it is set for the
    BatchNorm layers; the other layers may use all threads.

    Args:
        model: in evaluation mode, on its device; its running statistics are written in place.
        run: forwards one batch through the model.
        batches: [rows, channels, height, width] float32, two or more rows each.
        threads: for the sums of BatchNorm layers.

    Returns:
        the statistics by their names in the state dict: copies, on the CPU.
    """
    layers = [layer for _, layer in _layers(model)]
    with _cumulative_average(layers, threads):
        for images in batches:
            run(images)
    state = model.state_dict()
    return {name: state[name].to("cpu", copy=True) for name in statistics_names(model)}


def _layers(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]


@contextmanager
def _cumulative_average(layers: list[_BatchNorm], threads: int) -> Iterator[None]:
    """Let layers average batch statistics; restore all other state afterwards."""
    before = torch.get_num_threads()
    kept = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    hooks = []
    for layer in layers:
        assert layer.running_mean is not None, "the layer tracks running statistics"
        layer.num_batches_tracked = torch.zeros(
            (), dtype=torch.int64, device=layer.running_mean.device
        )
        layer.reset_running_stats()  # else NaN would stay NaN
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
