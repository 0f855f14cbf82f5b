"""One run at work: its folder, its processes, where its trained parents lie, and what it may
replace."""

from __future__ import annotations

import platform
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
from mega_hf.run.prepare import check_room
from mega_hf.runtime.environment import keep_freed_memory
from mega_hf.runtime.lock import NAME as LOCK
from mega_hf.runtime.lock import lock_folder
from mega_hf.runtime.processes import Processes
from mega_hf.runtime.progress import Progress
from mega_hf.tasks.splits import Splits
from mega_hf.training.train import check_trained, is_trained, train_missing

_PATIENCE = 60  # seconds until a network file system shows every machine what another one wrote


ForwardPath = Literal["auto", "eager", "compiled"]


@dataclass(frozen=True)
class EvaluationOptions:
    """How a search computes; its winner is the same for each way of evaluating, and for one forward
    path.

    Attributes:
        forward: `compiled`, `eager`, or `auto`: as the run was begun, else compiled where that
            saves time.
        full: measure every individual on every row.
    """

    forward: ForwardPath = "auto"
    full: bool = False


@dataclass
class RunContext:
    """One run at work: where, with whom, and what it was asked for."""

    folder: RunFolder
    processes: Processes
    progress: Progress
    parents: Path  # where trained parents are kept
    held: ExitStack  # lets the folder go
    overwrite: bool = False
    update: bool = False
    how: EvaluationOptions = EvaluationOptions()
    is_kept: bool = True  # whether the folder stays, so that an interrupted run is resumed
    seconds: dict[str, float] = field(default_factory=dict)  # by stage

    def finished(self) -> MergeResult | None:
        """Return the result if the run was finished before: then nothing is written, and nothing
        needs to be held.

        The main process answers for all: another run may finish between two looks.
        """
        if self.overwrite or self.update:
            return None
        is_done = self.processes.share(1, 1, lambda _: [int(self.folder.finished() is not None)])[
            0, 0
        ]
        return MergeResult.load(self.folder.path) if is_done else None

    def acquire(self, asked: Recipe) -> Recipe:
        """Let nobody else write to a folder that is there, and return the recipe to run, as
        `RunFolder.check` does.

        One that is not there yet is held when `create` makes it.

        Raises:
            RunError: another run is at work there; or as `RunFolder.check`.
        """
        if self.processes.is_main and self.folder.path.is_dir():
            self.held.enter_context(self.folder.acquire())
        self.processes.wait()
        known = self.folder.check(asked, self.overwrite, self.update)
        self.processes.wait()  # everyone has looked before anything is written
        return known

    @property
    def kept(self) -> Path | None:
        """The folder of trained parents; None where --overwrite empties it first."""
        is_own = self.parents == self.folder.path / "parents"
        return None if self.overwrite and is_own else self.parents

    def create(self, asked: Recipe, recipe: Recipe, replaced: list[str]) -> None:
        """Make the run folder; of parents that will be replaced nothing is claimed any more."""
        if self.processes.is_main:
            self._hold_new(asked)
            self.folder.create(asked, recipe, self.overwrite, self.update)
            if replaced:
                self.folder.drop_report()
                Journal(self.folder.journal).forget(replaced)
        self.processes.wait()
        self._refuse_unshared()

    def write_out(self, asked: Recipe, recipe: Recipe) -> None:
        """Write what was chosen for `method: auto` into the run's recipe, which stays the one that
        was asked for."""
        if self.processes.is_main:
            self.folder.create(asked, recipe, overwrite=False)
        self.processes.wait()

    def _refuse_unshared(self) -> None:
        """Raise LaunchError where this process does not see the folder that the main process
        made."""
        end = time.monotonic() + (_PATIENCE if self.processes.span_machines else 0)
        while not (self.folder.path / "recipe.yaml").is_file():
            if time.monotonic() > end:
                error = LaunchError(
                    f"process {self.processes.rank}, on {platform.node()}, does not see the run"
                    " folder",
                    where=str(self.folder.path),
                    expected="a folder that all machines share",
                    got="no recipe there",
                    hint="--out on a file system that all machines share, by the same path",
                )
                error.on_one_process = True
                raise error
            time.sleep(1)

    def _hold_new(self, asked: Recipe) -> None:
        """Hold the folder if it was not there before; refuse one that another run has begun to fill
        since."""
        if self.folder.is_held:
            return
        self.held.enter_context(self.folder.acquire())
        if not self.folder.is_new:
            raise RunError(
                "another run was here meanwhile",
                where=str(self.folder.path),
                expected="a new folder, as before",
                got="a run",
                hint="the same command again, which goes on with it; or another --out",
            )

    def train(self, recipe: Recipe, keys: dict[str, str], splits: Splits) -> None:
        """Train the parents that are missing; meanwhile nobody else may train where they are kept.

        Raises:
            MegaError: as `train_missing`; RunError if another run trains there.
        """
        missing = self.processes.share(
            1, 1, lambda _: [int(not is_trained(recipe, self.parents, keys))]
        )[0, 0]
        if not missing:
            if self.processes.is_main and (self.parents / LOCK).exists():
                with suppress(RunError, OSError), lock_folder(self.parents):
                    # of a run that was killed at the end of its training; who is at work there
                    # keeps it
                    pass
            return
        with lock_folder(self.parents, IN_TRAINING) if self.processes.is_main else nullcontext():
            self.processes.wait()
            # again: until now another run may have written there
            check_room(recipe, self.kept, list(keys))
            if self.kept is not None:
                check_trained(self.kept, keys, self.update)
            train_missing(recipe, self.parents, keys, splits, self.processes, self.progress)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add what runs inside to a stage, less what it adds to others."""
        began, before = time.perf_counter(), sum(self.seconds.values())
        yield
        others = sum(self.seconds.values()) - before
        self.seconds[stage] = round(
            self.seconds.get(stage, 0.0) + time.perf_counter() - began - others, 3
        )


@contextmanager
def open_run(
    recipe: Recipe,
    out: str | Path | None,
    overwrite: bool,
    update: bool,
    parents: str | Path | None,
    progress: bool,
    how: EvaluationOptions | None = None,
) -> Iterator[RunContext]:
    """Check the run folder, and gather the processes; what the run holds is let go at the end."""
    folder = RunFolder(Path(out) if out is not None else Path("runs") / recipe.name)
    folder.check(recipe, overwrite, update)
    processes = Processes()
    try:
        kept = Path(parents) if parents is not None else folder.path / "parents"
        _refuse_mixture(kept, folder.path)
        with (
            ExitStack() as held,
            _shortage_said(folder.path),
            keep_freed_memory(),
            recipe.document.placing(),
        ):
            yield RunContext(
                folder,
                processes,
                Progress(progress and processes.is_main),
                kept,
                held,
                overwrite,
                update,
                how or EvaluationOptions(),
            )
        processes.leave()
    finally:
        processes.close()


@contextmanager
def _shortage_said(folder: Path) -> Iterator[None]:
    """Say a full disk or a lack of memory as an error of ours, wherever in the run it was met."""
    try:
        yield
    except Exception as error:
        raise_if_out_of_space(error, folder)
        raise


def _refuse_mixture(parents: Path, run: Path) -> None:
    """Refuse to keep trained parents among the run's own files, which it replaces and removes."""
    kept, own = parents.resolve(), run.resolve()
    if kept == own or (own in kept.parents and kept != own / "parents"):
        raise RunError(
            "trained parents can't be kept there",
            where=str(parents),
            expected="a folder outside the run's",
            got=f"within {run}",
            hint="another --parents, or leave it out",
        )
