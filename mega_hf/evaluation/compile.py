"""Decide whether compiling the model pays, and compile it on all processes."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mega_hf.errors import first_line
from mega_hf.evaluation.forward import COMPILED, EAGER, Examples, ResidentModel
from mega_hf.runtime.processes import Processes, is_gpu

logger = logging.getLogger(__name__)

# Round figures, so that the choice is the same for one recipe wherever it runs. Measured on 2 CPU
# cores with AVX2; the GPU's is a guess.
_FLOPS = {True: 1e13, False: 9e10}  # FLOP/s of an eager model, on a GPU and on a CPU
# Part of a search's time that is saved: a compiled batch takes a tenth less, and racing evaluates
# about half of the rows.
_SAVED = 0.05
_COST = (15.0, 0.25)  # seconds to compile any model, and more for each module


def choose_path(model: nn.Module, examples: Examples, forwarded: int, device: torch.device) -> str:
    """Return COMPILED where compiling saves more time than it costs, else EAGER.

    The choice depends on no measured time.

    Args:
        model: on its device.
        examples: the split.
        forwarded: examples that the search would forward with full evaluation.
        device: where the model runs.
    """
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *examples.images.shape[1:], device=device))
    saved = _SAVED * forwarded * counter.get_total_flops() / _FLOPS[is_gpu(device)]
    cost = _COST[0] + _COST[1] * sum(1 for _ in model.modules())
    return COMPILED if saved > cost else EAGER


def compile_everywhere(forward: ResidentModel, examples: Examples, processes: Processes) -> bool:
    """Compile the resident model on all processes.

    The main process compiles first; the others then find its work in torch's cache.

    Returns:
        whether all processes compiled the model; if not, all run it eagerly, and a warning says
        why.
    """
    failed = np.zeros(processes.count, dtype=np.int64)
    for turn in (True, False):
        if processes.is_main == turn:
            try:
                forward.compile(examples)
            except Exception as error:  # from any of torch's layers, or from the C++ compiler
                failed[processes.rank] = 1
                logger.warning(
                    "cannot compile the model, so it runs more slowly: %s", first_line(error)[:200]
                )
        processes.wait()
    if processes.add_up(failed).any():
        forward.uncompile()
        return False
    return True
