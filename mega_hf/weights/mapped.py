"""Weights that stay on the disk: memory-mapped, read where they are needed, given up when memory is
short."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mega_hf.weights.space import StateDict, digest


def map_files(files: Sequence[Path], sha256: str) -> StateDict | None:
    """Return the tensors of safetensors files, if they are a state dict just as it is.

    Args:
        files: none, one or several shards.
        sha256: the state dict's digest, by which it is known; libraries may give tensors other
            names on the disk.
    """
    try:
        state = {name: tensor for file in files for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError):
        return None
    return state if state and digest(state) == sha256 else None


def map_copy(state: StateDict) -> StateDict:
    """Write a state dict into a temporary file and return it from there; the file goes with the
    last tensor."""
    # unlinked at once, freed when unmapped
    with tempfile.NamedTemporaryFile(prefix="mega_hf-parent-") as file:
        save_file(apart(state), file.name)
        return load_file(file.name)


def apart(state: StateDict) -> StateDict:
    """Return the same tensors as the format wants them, contiguous and each alone in its memory;
    copied if need be."""
    seen: set[int] = set()
    found = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize
        if not (whole and tensor.is_contiguous()) or tensor.data_ptr() in seen:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(tensor.data_ptr())
        found[name] = tensor
    return found
