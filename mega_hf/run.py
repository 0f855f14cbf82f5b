"""One run at work: its folder, its processes, where its trained parents lie, and what it may replace."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mega_hf.errors import RunError
from mega_hf.evaluation.processes import Processes
from mega_hf.files import refuse_unwritable
from mega_hf.journal import Journal
from mega_hf.progress import Progress
from mega_hf.recipe import Recipe
from mega_hf.run_folder import RunFolder
from mega_hf.training import outdated, refuse_foreign


@dataclass
class Run:
    """One run at work: where, with whom, and what it was asked for."""

    folder: RunFolder
    processes: Processes
    progress: Progress
    parents: Path  # where trained parents are kept
    overwrite: bool = False
    update: bool = False
    seconds: dict[str, float] = field(default_factory=dict)  # by stage

    def check_room(self, recipe: Recipe, names: list[str]) -> None:
        """Refuse to train where something else lies; what --overwrite removes is no hindrance."""
        if not self.removes_parents:
            refuse_foreign(recipe, self.parents, names)
            refuse_unwritable(self.parents, "the folder of trained parents", "another --parents")

    @property
    def removes_parents(self) -> bool:
        """Whether what lies where parents go is removed first."""
        return self.overwrite and self.parents == self.folder.path / "parents"

    def check_trained(self, keys: dict[str, str]) -> list[str]:
        """Return the parents that lie there, trained otherwise than `keys` say; refuse to replace them unasked."""
        found = {} if self.removes_parents else outdated(self.parents, keys)
        if found and not self.update:
            name, path = next(iter(found.items()))
            raise RunError(
                f"{name} lies there, trained otherwise", where=str(path), expected=f"training {keys[name][:12]}",
                got="its settings, its rows or what it starts from were others",
                remedy="put these back; or --update, which trains it again; or another --parents",
            )  # fmt: skip
        return list(found)

    def create(self, asked: Recipe, recipe: Recipe, replaced: list[str]) -> None:
        """Make the run folder; of parents that will be replaced nothing is claimed any more."""
        if self.processes.is_main:
            self.folder.create(asked, recipe, self.overwrite, self.update)
            if replaced:
                self.folder.drop_report()
                Journal(self.folder.journal).forget(replaced)
        self.processes.wait()

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add what runs inside to a stage."""
        began = time.perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - began, 3)


@contextmanager
def start(
    recipe: Recipe, out: str | Path | None, overwrite: bool, update: bool, parents: str | Path | None, progress: bool
) -> Iterator[tuple[Run, Recipe]]:
    """Check the run folder, and gather the processes; gives the run and the recipe with what the folder knows."""
    folder = RunFolder(Path(out) if out is not None else Path("runs") / recipe.name)
    known = folder.check(recipe, overwrite, update)
    processes = Processes()
    try:
        kept = Path(parents) if parents is not None else folder.path / "parents"
        _refuse_mixture(kept, folder.path)
        yield Run(folder, processes, Progress(progress and processes.is_main), kept, overwrite, update), known
    finally:
        processes.close()


def _refuse_mixture(parents: Path, run: Path) -> None:
    """Refuse to keep trained parents among the run's own files, which it replaces and removes."""
    kept, own = parents.resolve(), run.resolve()
    if kept == own or (own in kept.parents and kept != own / "parents"):
        raise RunError(
            "trained parents can't be kept there", where=str(parents), expected="a folder outside the run's",
            got=f"within {run}", remedy="another --parents, or leave it out",
        )  # fmt: skip
