"""Memory-mapped weights: they stay on the disk and are read where they are needed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mega_hf.weights.space import StateDict


def map_files(files: Sequence[Path]) -> StateDict:
    """Return the memory-mapped tensors of safetensors files."""
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def is_mapped(mapped: StateDict, state: StateDict) -> bool:
    """Return whether a mapped state dict equals another one, bit for bit.

    Libraries may give tensors other names, or other values, than those in the files.
    """
    return mapped.keys() == state.keys() and all(
        _has_same_bytes(tensor, state[name]) for name, tensor in mapped.items()
    )


def _has_same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b))
    return torch.equal(a, b)


def map_copy(state: StateDict) -> StateDict:
    """Return a state dict that is memory-mapped from a temporary file."""
    # The file is unlinked at once, and its space is freed with the last tensor.
    with tempfile.NamedTemporaryFile(prefix="mega_hf-parent-") as file:
        save_file(separate_tensors(state), file.name)
        return load_file(file.name)


def separate_tensors(state: StateDict) -> StateDict:
    """Return the same tensors, contiguous and without shared memory.

    Tensors are copied only where they have to be.
    """
    seen: set[int] = set()
    separate = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        is_whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize
        if not (is_whole and tensor.is_contiguous()) or tensor.data_ptr() in seen:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(tensor.data_ptr())
        separate[name] = tensor
    return separate
