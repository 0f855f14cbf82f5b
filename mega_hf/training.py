"""Parents that are not there yet: each trained by one process, several side by side."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from mega_hf.evaluation.processes import Processes
from mega_hf.hf.data import Splits
from mega_hf.hf.train import train_parent
from mega_hf.progress import Progress
from mega_hf.recipe import Recipe, Train, TrainedParent
from mega_hf.run_folder import write_folder

_KEY = "train.sha256"


def train_missing(
    recipe: Recipe,
    train: Train,
    folder: Path,
    keys: dict[str, str],
    splits: Splits,
    processes: Processes,
    progress: Progress,
) -> None:
    """Train every parent whose folder is missing or was made by other settings.

    Args:
        recipe: names, seeds and the number of threads.
        train: how.
        folder: where each parent gets a folder of its name, whole or not at all.
        keys: parent's name -> digest of everything that decides its weights (`train_keys`).
        splits: the rows.
        processes: parent i is trained by process i modulo their number.
        progress: a bar for each parent.
    """
    names = list(keys)

    def make(i: int) -> list[int]:
        if _key_of(folder / names[i]) != keys[names[i]]:
            fill = partial(_fill, recipe, train, names[i], keys[names[i]], splits, processes.device, progress)
            write_folder(folder / names[i], fill)
        return []

    processes.share(len(names), 0, make)
    processes.wait()


def _fill(
    recipe: Recipe,
    train: Train,
    name: str,
    key: str,
    splits: Splits,
    device: torch.device,
    progress: Progress,
    folder: Path,
) -> None:
    folder.mkdir()
    parent = recipe.parents[name]
    assert isinstance(parent, TrainedParent), "only these have keys"
    with progress.bar(f"train {name}", train.epochs, "epoch") as advance:
        train_parent(
            folder, train, parent.train.seed, recipe.threads, splits, device,
            lambda _, loss: advance(1, f"loss {loss:.3f}"),
        )  # fmt: skip
    (folder / _KEY).write_text(key + "\n")


def _key_of(folder: Path) -> str | None:
    file = folder / _KEY
    return file.read_text().strip() if file.is_file() else None
