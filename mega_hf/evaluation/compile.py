"""Whether a search is long enough to pay for compiling its model, and the compiling, on every
process or on none."""

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

# Round figures, so that the choice is the same for one recipe wherever it is run; measured on 2 CPU
# cores with AVX2.
_SPEED = {True: 1e13, False: 9e10}  # FLOP/s of an eager model, on a GPU (not measured) and on a CPU
# of the time of a search: compiled, a batch takes a tenth less, and about half of the rows are
# asked
_SAVED = 0.05
_COST = (15.0, 0.25)  # seconds to compile: of any model, and more for each module


def choose_path(model: nn.Module, examples: Examples, shown: int, device: torch.device) -> str:
    """Return COMPILED where that saves more time than it costs, else EAGER; it depends on no
    measured time.

    Args:
        model: on its device.
        examples: the split.
        shown: how many pictures the search would show it, all individuals evaluated fully.
        device: where it runs.
    """
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *examples.images.shape[1:], device=device))
    saved = _SAVED * shown * counter.get_total_flops() / _SPEED[is_gpu(device)]
    cost = _COST[0] + _COST[1] * sum(1 for _ in model.modules())
    return COMPILED if saved > cost else EAGER


def compile_everywhere(forward: ResidentModel, examples: Examples, processes: Processes) -> bool:
    """Compile the resident model, the main process first: the others then find its work in torch's
    cache.

    Returns:
        whether it could be done on all; if not, all run it eagerly, and it is said why.
    """
    failed = np.zeros(processes.count, dtype=np.int64)
    for turn in (True, False):
        if processes.is_main == turn:
            try:
                forward.compile(examples)
            # of any of torch's layers, or of the compiler that it found or did not find
            except Exception as error:
                failed[processes.rank] = 1
                why = first_line(error)[:200]
                logger.warning(
                    "the model can't be compiled here (%s): it runs uncompiled, and slower", why
                )
        processes.wait()
    if processes.add_up(failed).any():
        forward.uncompile()
        return False
    return True
