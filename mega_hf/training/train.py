"""Train missing parents, each on one process, several at a time; resume after any epoch."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError

from mega_hf.errors import RunError
from mega_hf.models.training_stamp import STAMP, first_line, is_stamped, is_whole
from mega_hf.recipe.schema import Recipe
from mega_hf.recipe.tree import parent_name
from mega_hf.runtime.files import folder_digest, remove, write_folder, write_whole
from mega_hf.runtime.processes import Processes
from mega_hf.runtime.progress import Progress
from mega_hf.tasks.splits import Splits
from mega_hf.training.plan import Start, open_start, save_trained, trained_source
from mega_hf.training.trainer import Fit, TrainingRows, affordable_bytes, reproducible

# stands before a training state: the parent's key and the state's SHA-256
_SEAL = re.compile(rb"([0-9a-f]{64})\n([0-9a-f]{64})\n")

logger = logging.getLogger(__name__)


def train_missing(
    recipe: Recipe,
    folder: Path,
    keys: Mapping[str, str],
    splits: Splits,
    processes: Processes,
    progress: Progress,
) -> None:
    """Train every parent that is missing or was trained with different settings.

    Args:
        recipe: names, settings, seeds and the number of threads.
        folder: where parents are saved as NAME, snapshots as NAME@EPOCH, and the state of an
            unfinished training as NAME@training.
        keys: `train_keys` of the parents to train, and of those that they start from.
        splits: the rows.
        processes: each parent is trained by one; a parent that starts from another waits for it.
        progress: shows a bar for each parent.

    Raises:
        MegaError: a source can't be opened or does not fit, an image is broken, or the loss is not
            finite.
    """
    trainer = _Trainer(recipe, folder, splits, processes, progress, keys)
    for level in training_levels(recipe, keys):

        def make(i: int, level: list[str] = level) -> list[int]:
            trainer.make(level[i])
            return []

        processes.share(len(level), 0, make)
        processes.wait()


def training_levels(recipe: Recipe, names: Collection[str]) -> list[list[str]]:
    """Return the parents to train in groups, each group after those that it starts from.

    Each group is in the recipe's order, and is divided among processes by `Processes.share`.
    """
    depths: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in depths:
            source = trained_source(recipe, name)
            depths[name] = 0 if source is None else 1 + depth(source)
        return depths[name]

    deepest = max(map(depth, names), default=-1)
    return [
        [name for name in recipe.trained if depths.get(name) == level]
        for level in range(deepest + 1)
    ]


def check_not_foreign(recipe: Recipe, folder: Path, names: Collection[str]) -> None:
    """Raise RunError if a path that a training writes to holds something else.

    Args:
        recipe: which snapshots are kept.
        folder: where parents are saved.
        names: the parents that may be trained.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(
            "trained parents can't be saved here",
            where=str(folder),
            expected="a folder",
            got="a file",
            hint="choose another --parents folder",
        )
    for path in [folder / made for name in names for made in recipe.made_by(name)]:
        if path.exists() and not (path / STAMP).is_file():
            raise RunError(
                "not a parent that was trained here",
                where=str(path),
                got="a file" if path.is_file() else "a folder",
                expected=f"nothing, or a folder with {STAMP}",
                hint="move it away, or choose another --parents folder",
            )


def check_trained(folder: Path, keys: Mapping[str, str], update: bool) -> list[str]:
    """Return the parents that were trained, wholly or in part, differently from the recipe.

    Args:
        folder: where parents are saved.
        keys: name -> the digest of all that decides its training.
        update: whether they may be replaced.

    Raises:
        RunError: there are such parents, and they may not be replaced.
    """
    found: dict[str, Path] = {}
    for name, key in keys.items():
        for path in (folder / name, *sorted(folder.glob(f"{name}@*"))):
            # a file is the state of an unfinished training
            stored = first_line(path / STAMP if path.is_dir() else path)
            # without a key it is damaged, and trained again
            if re.fullmatch("[0-9a-f]{64}", stored) and stored != key:
                found.setdefault(name, path)
    if found and not update:
        name, path = next(iter(found.items()))
        raise RunError(
            f"{name} already exists but was trained differently",
            where=str(path),
            expected="the settings, data and starting weights of this recipe",
            got="different settings, data or starting weights",
            hint="restore those, use --update to retrain it, or choose another --parents folder",
        )
    return list(found)


def is_trained(recipe: Recipe, folder: Path, keys: Mapping[str, str]) -> bool:
    """Return whether every parent exists as `keys` say, with nothing of a training beside it.

    Args:
        recipe: which snapshots are kept.
        folder: where parents are saved.
        keys: name -> the digest of all that decides its training.
    """

    def is_done(name: str) -> bool:
        models = {folder / made for made in recipe.made_by(name)} | set(folder.glob(f"{name}@*"))
        left = any(list(folder.glob(pattern)) for pattern in _leftovers(name))
        return not left and all(is_whole(model, keys[name]) for model in models)

    return all(is_done(name) for name in keys)


def _leftovers(name: str) -> tuple[str, str]:
    """Return patterns of what a killed training leaves; no name contains @ or ~."""
    return f".mega-{name}", f".mega-{name}[@~]*"


class _Trainer:
    """Trains one parent after another on this process."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        splits: Splits,
        processes: Processes,
        progress: Progress,
        keys: Mapping[str, str],
    ) -> None:
        self._recipe, self._folder, self._splits, self._keys = recipe, folder, splits, keys
        self._processes, self._progress = processes, progress
        self._rows: dict[str, TrainingRows] = {}  # of one preprocessing, which parents mostly share

    def make(self, name: str) -> None:
        """Train a parent unless it exists with all its snapshots."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for pattern in _leftovers(name):
            for leftover in list(self._folder.glob(pattern)):
                remove(leftover)  # of a process that was killed
        if not all(self._has(made) for made in self._recipe.made_by(name)):
            with reproducible(self._recipe.threads, self._processes.device):
                self._train(name)
        remove(self._state(name))
        for snapshot in self._folder.glob(f"{name}@*"):
            if (snapshot / STAMP).is_file() and not self._has(snapshot.name):
                remove(snapshot)  # of a training with other settings

    def _train(self, name: str) -> None:
        train = self._recipe.trained[name].train
        start, fit = self._begin(name)
        with self._progress.bar(f"train {name}", train.epochs * fit.updates, "batches") as advance:
            if fit.epoch:
                advance(
                    fit.epoch * fit.updates,
                    f"epoch {fit.epoch}/{train.epochs} loss {fit.losses[-1]:.3f}",
                )
            while fit.epoch < train.epochs:
                fit.run_epoch(advance)
                if fit.epoch in train.snapshots:
                    self._write(f"{name}@{fit.epoch}", start)
                write_whole(self._state(name), _seal(self._keys[name], fit.state()))
        self._write(name, start)

    def _begin(self, name: str) -> tuple[Start, Fit]:
        """Return a training, resumed from its state on disk if there is one."""
        start, fit = self._fresh(name)
        content = _unseal(self._state(name), self._keys[name])
        if content is None:
            return start, fit
        try:
            fit.resume(content)
        except (RuntimeError, ValueError, KeyError, TypeError, UnpicklingError) as error:
            logger.warning(
                "training %s from the start: its state has another format (%s)", name, error
            )
            return self._fresh(name)
        due = [epoch for epoch in self._recipe.trained[name].train.snapshots if epoch <= fit.epoch]
        return (
            (start, fit)
            if all(self._has(f"{name}@{epoch}") for epoch in due)
            else self._fresh(name)
        )

    def _fresh(self, name: str) -> tuple[Start, Fit]:
        start = open_start(self._recipe, name, self._folder, self._splits)
        train = self._recipe.trained[name].train
        return start, Fit(
            name, start.opened.model, train, self._rows_for(start), self._processes.device
        )

    def _rows_for(self, start: Start) -> TrainingRows:
        """Return the rows, preprocessed for a model; those for another preprocessing are freed."""
        opened = start.opened
        wanted = json.dumps(
            [opened.library, opened.preprocessing, opened.input_shape, start.mapping]
        )
        if wanted not in self._rows:
            assert self._splits.train is not None, "check_training raises where there are none"
            self._rows.clear()
            limit = affordable_bytes(self._processes.count)
            self._rows[wanted] = TrainingRows(self._splits.train, opened, start.mapping, limit)
        return self._rows[wanted]

    def _write(self, made: str, start: Start) -> None:
        """Write a parent or a snapshot, with its key beside the weights."""

        def fill(folder: Path) -> None:
            save_trained(folder, start)
            (folder / STAMP).write_text(f"{self._key(made)}\n{folder_digest(folder)}\n")

        write_folder(self._folder / made, fill)

    def _has(self, made: str) -> bool:
        """Return whether a model exists, trained with these settings and unchanged since."""
        model, key = self._folder / made, self._key(made)
        is_same = is_whole(model, key)
        if not is_same and is_stamped(model, key):
            logger.warning("%s was changed since it was trained, and is trained again", model)
        return is_same

    def _key(self, made: str) -> str:
        return self._keys[parent_name(made)]

    def _state(self, name: str) -> Path:
        return self._folder / f"{name}@training"  # a parent's name has no @


def _seal(key: str, content: bytes) -> bytes:
    return f"{key}\n{hashlib.sha256(content).hexdigest()}\n".encode() + content


def _unseal(path: Path, key: str) -> bytes | None:
    """Return the training state in a file, if it is whole and has this key."""
    if not path.is_file():
        return None
    stored = path.read_bytes()
    seal = _SEAL.match(stored)
    content = stored[seal.end() :] if seal else b""
    if seal is None or hashlib.sha256(content).hexdigest() != seal[2].decode():
        logger.warning("%s is damaged: the training starts again", path)
        return None
    return content if seal[1].decode() == key else None
