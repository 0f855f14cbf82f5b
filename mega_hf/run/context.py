"""A run in progress: its folder, its processes and its options."""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mega_hf.errors import LaunchError, RunError, raise_if_out_of_space
from mega_hf.recipe.schema import Recipe
from mega_hf.report.result import MergeResult
from mega_hf.run.folder import IN_TRAINING, RunFolder
from mega_hf.run.journal import Journal
from mega_hf.run.prepare import Preparation, check_room
from mega_hf.runtime.environment import keep_freed_memory
from mega_hf.runtime.lock import NAME as LOCK
from mega_hf.runtime.lock import lock_folder
from mega_hf.runtime.processes import Processes
from mega_hf.runtime.progress import Progress
from mega_hf.training.train import check_trained, is_trained, train_missing

# seconds until a network file system shows every machine a file that another one wrote
_FOLDER_TIMEOUT = 60

ForwardPath = Literal["auto", "eager", "compiled"]


@dataclass(frozen=True)
class RunOptions:
    """The options of a run that are not part of its recipe.

    Attributes:
        overwrite: start again where an earlier run is.
        update: rerun what changed since an earlier run, and keep the rest.
        parents: the folder of trained parents; that of the run folder by default.
        forward: run the model `compiled` or `eager`; `auto` keeps the path that the run began
            with, and begins compiled where that saves time.
        full_evaluation: evaluate every individual on every row.
        progress: show progress bars.
    """

    overwrite: bool = False
    update: bool = False
    parents: str | Path | None = None
    forward: ForwardPath = "auto"
    full_evaluation: bool = False
    progress: bool = False


@dataclass
class RunContext:
    """A run in progress.

    Attributes:
        folder: the run folder.
        processes: all processes of the run.
        progress: progress bars.
        parents: the folder of trained parents.
        locks: releases the run folder.
        options: how the run was started.
        is_kept: False for a benchmark, whose folder is removed at the end.
        seconds: time spent, by stage.
    """

    folder: RunFolder
    processes: Processes
    progress: Progress
    parents: Path
    locks: ExitStack
    options: RunOptions
    is_kept: bool = True
    seconds: dict[str, float] = field(default_factory=dict)

    def finished(self) -> MergeResult | None:
        """Return the result if the run was finished before; nothing is locked or written.

        The main process decides for all: another run may finish in the meantime.
        """
        if self.options.overwrite or self.options.update:
            return None
        is_finished = self.processes.share(
            1, 1, lambda _: [int(self.folder.finished() is not None)]
        )[0, 0]
        return MergeResult.load(self.folder.path) if is_finished else None

    def acquire(self, recipe: Recipe) -> Recipe:
        """Lock the run folder if it exists, and return the recipe to run, as `RunFolder.check`.

        Raises:
            RunError: another run is using the folder; or as `RunFolder.check`.
        """
        if self.processes.is_main and self.folder.path.is_dir():
            self.locks.enter_context(self.folder.acquire())
        self.processes.wait()
        stored = self.folder.check(recipe, self.options.overwrite, self.options.update)
        self.processes.wait()  # all processes have read the folder before anything is written
        return stored

    @property
    def kept(self) -> Path | None:
        """The folder of trained parents; None where --overwrite empties it first."""
        is_own = self.parents == self.folder.path / "parents"
        return None if self.options.overwrite and is_own else self.parents

    def create(self, requested: Recipe, prepared: Preparation) -> None:
        """Create the run folder with its recipe, or update it.

        Args:
            requested: the recipe as the user gave it.
            prepared: the recipe as it runs, and the trained parents that it replaces.
        """
        if self.processes.is_main:
            self._lock_new_folder()
            options = self.options
            self.folder.create(requested, prepared.recipe, options.overwrite, options.update)
            if prepared.replaced:
                self.folder.drop_report()
                Journal(self.folder.journal).forget(prepared.replaced)
        self.processes.wait()
        self._check_shared()

    def _lock_new_folder(self) -> None:
        """Lock the run folder, if it did not exist when the run began."""
        if self.folder.is_held:
            return
        self.locks.enter_context(self.folder.acquire())
        if not self.folder.is_new:
            raise RunError(
                "another run has started in this folder in the meantime",
                where=str(self.folder.path),
                expected="a new folder, as before",
                got="a run",
                hint="run the same command again to resume that run, or use another --out",
            )

    def _check_shared(self) -> None:
        """Raise LaunchError where this process does not see the run folder of the main process."""
        end = time.monotonic() + (_FOLDER_TIMEOUT if self.processes.span_machines else 0)
        while not (self.folder.path / "recipe.yaml").is_file():
            if time.monotonic() > end:
                error = LaunchError(
                    f"process {self.processes.rank}, on {platform.node()}, does not see the run"
                    " folder",
                    where=str(self.folder.path),
                    expected="a folder that all machines share",
                    got="no recipe.yaml in it",
                    hint="choose an --out that all machines share under the same path",
                )
                error.on_one_process = True
                raise error
            time.sleep(1)

    def train(self, prepared: Preparation) -> None:
        """Train the missing parents; the folder of trained parents is locked meanwhile.

        Raises:
            MegaError: as `train_missing`; RunError if another run trains in this folder.
        """
        recipe, keys = prepared.recipe, prepared.keys
        is_done = self.processes.share(
            1, 1, lambda _: [int(is_trained(recipe, self.parents, keys))]
        )[0, 0]
        if is_done:
            if self.processes.is_main and (self.parents / LOCK).exists():
                # the lock of a run that was killed at the end of its training, or of one at work
                with suppress(RunError, OSError), lock_folder(self.parents):
                    pass
            return
        with lock_folder(self.parents, IN_TRAINING) if self.processes.is_main else nullcontext():
            self.processes.wait()
            # again: another run may have trained here before the lock
            check_room(recipe, self.kept, list(keys))
            if self.kept is not None:
                check_trained(self.kept, keys, self.options.update)
            train_missing(
                recipe, self.parents, keys, prepared.splits, self.processes, self.progress
            )

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to a stage, less the time of stages inside it."""
        began, before = time.perf_counter(), sum(self.seconds.values())
        yield
        others = sum(self.seconds.values()) - before
        self.seconds[stage] = round(
            self.seconds.get(stage, 0.0) + time.perf_counter() - began - others, 3
        )


@contextmanager
def open_run(recipe: Recipe, folder: RunFolder, options: RunOptions) -> Iterator[RunContext]:
    """Check the run folder and start the processes; release both at the end.

    Raises:
        RunError: the folder belongs to a different recipe, or can't be used.
    """
    _log_to_stderr()
    folder.check(recipe, options.overwrite, options.update)
    parents = Path(options.parents) if options.parents else folder.path / "parents"
    _check_parents_folder(parents, folder.path)
    processes = Processes()
    with (
        ExitStack() as locks,
        _out_of_space_errors(folder.path),
        keep_freed_memory(),
        recipe.document.locating_errors(),
    ):
        progress = Progress(options.progress and processes.is_main)
        yield RunContext(folder, processes, progress, parents, locks, options)
    processes.leave()


def _log_to_stderr() -> None:
    """Show the log of mega_hf on stderr, unless the application has configured logging."""
    logger = logging.getLogger("mega_hf")
    if logger.level == logging.NOTSET and not logger.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


@contextmanager
def _out_of_space_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk or a lack of memory, anywhere in the run, into a MegaError."""
    try:
        yield
    except Exception as error:
        raise_if_out_of_space(error, folder)
        raise


def _check_parents_folder(parents: Path, run: Path) -> None:
    """Check that trained parents are not kept among files that the run replaces and removes."""
    kept, own = parents.resolve(), run.resolve()
    if kept == own or (own in kept.parents and kept != own / "parents"):
        raise RunError(
            "trained parents can't be kept there",
            where=str(parents),
            expected="a folder outside the run's",
            got=f"within {run}",
            hint="choose another --parents, or leave it out",
        )
