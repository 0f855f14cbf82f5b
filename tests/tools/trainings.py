"""Recipes that train tiny parents, and progress bars that record, interrupt or kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mega_hf import Recipe
from mega_hf.runtime.processes import Processes
from mega_hf.tasks.splits import load_splits
from mega_hf.training.plan import train_keys
from mega_hf.training.train import train_missing

TRAIN: dict[str, Any] = {
    "arch": "cifar_resnet8",
    "data_config": {"input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.25] * 3},
    "epochs": 2,
    "batch_size": 30,
    "learning_rate": 0.003,
}
DROPPING: dict[str, Any] = {"arch": "test_resnet", "arch_args": {"drop_rate": 0.3}}


def tree(
    data: Path, parents: dict[str, Any] | None = None, threads: int = 1, **train: Any
) -> dict[str, Any]:
    """Return a recipe, as a dict, whose parents are trained.

    Args:
        data: the data set's folder.
        parents: name -> train block, or any other parent; by default `a` and `b` from seeds 1, 2.
        threads: of the recipe.
        **train: changes of the shared `train` block.
    """
    own = {"a": {"seed": 1}, "b": {"seed": 2}} if parents is None else parents
    return {
        "name": "trained",
        "data": {"path": str(data), "validation": "validation", "test": "test", "second_look": 0.0},
        "baselines": [],
        "parents": {
            n: {"train": p} if isinstance(p, dict) and "weights" not in p else p
            for n, p in own.items()
        },
        "train": TRAIN | train,
        "threads": threads,
    }


def recipe(
    data: Path, parents: dict[str, Any] | None = None, threads: int = 1, **train: Any
) -> Recipe:
    """Return that recipe, validated."""
    return Recipe.from_dict(tree(data, parents, threads, **train))


class Watch:
    """Progress that records its calls, and can end the training.

    Args:
        batches: number of batches before `end` is called.
        end: called then; raises KeyboardInterrupt by default.
    """

    def __init__(self, batches: int | None = None, end: Callable[[], None] | None = None) -> None:
        self.titles: list[str] = []
        self.totals: list[int] = []
        self.texts: list[str] = []
        self.done: list[int] = []
        self._left, self._end = batches, end or self._interrupt

    @staticmethod
    def _interrupt() -> None:
        raise KeyboardInterrupt

    @contextmanager
    def bar(self, title: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
        assert unit == "batches"
        self.titles.append(title.removeprefix("train "))
        self.totals.append(total)
        self.done.append(0)

        def advance(count: int, text: str) -> None:
            self.done[-1] += count
            self.texts.append(text)
            if self._left is not None and count == 1:
                self._left -= 1
                if self._left == 0:
                    self._end()

        yield advance


def train(
    folder: Path,
    made: Recipe,
    names: list[str] | None = None,
    watch: Any = None,
    processes: Any = None,
) -> Watch:
    """Train some parents (all by default) into a folder, and return the recorded progress."""
    watch = watch or Watch()
    wanted = list(made.trained) if names is None else names
    splits = load_splits(made.data)
    train_missing(
        made, folder, train_keys(made, wanted, splits), splits, processes or Processes(), watch
    )
    return watch


def stored(folder: Path) -> dict[str, bytes]:
    """Return the content of the weight file of every model in a folder."""
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("*/*.safetensors"))}


def names_in(folder: Path) -> set[str]:
    """Return the names of all files and folders in a folder."""
    return {path.name for path in folder.iterdir()}


def stop(folder: Path, made: Recipe) -> Path:
    """Interrupt a training of `a` in its second epoch, and return its checkpoint file."""
    try:
        train(folder, made, ["a"], Watch(batches=5))
    except KeyboardInterrupt:
        return folder / "a@training"
    raise AssertionError("the training was not interrupted")


def kill() -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)
