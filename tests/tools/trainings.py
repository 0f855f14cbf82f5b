"""Trainings of tiny parents: recipes for them, and progress that counts, interrupts or kills."""

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
    """Return a recipe whose parents are trained, from seeds 1 and 2 by default; `train` is laid
    over the shared block.

    A parent is its train block, or anything else that a recipe takes.
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
    """Return that recipe, checked."""
    return Recipe.from_dict(tree(data, parents, threads, **train))


class Watch:
    """Progress that remembers what it was told, and may end the training after some batches.

    Args:
        batches: how many are done before `end` is called.
        end: what happens then; Ctrl-C by default.
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
    """Train some parents, all by default, into a folder and return what progress was told."""
    watch = watch or Watch()
    wanted = list(made.trained) if names is None else names
    splits = load_splits(made.data)
    train_missing(
        made, folder, train_keys(made, wanted, splits), splits, processes or Processes(), watch
    )
    return watch


def stored(folder: Path) -> dict[str, bytes]:
    """Return the weights of every model in a folder."""
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("*/*.safetensors"))}


def names_in(folder: Path) -> set[str]:
    """Return the names of all files and folders in a folder."""
    return {path.name for path in folder.iterdir()}


def stop(folder: Path, made: Recipe) -> Path:
    """Leave a training of `a` in its second epoch; return its state's file."""
    try:
        train(folder, made, ["a"], Watch(batches=5))
    except KeyboardInterrupt:
        return folder / "a@training"
    raise AssertionError("it was to be stopped")


def kill() -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)
