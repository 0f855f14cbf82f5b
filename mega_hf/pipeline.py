"""THE PIPELINE: recipe -> parents -> weight space -> generations <-> fitness -> report -> run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mega_hf.errors import RunError
from mega_hf.evaluation.fitness import FullEvaluation
from mega_hf.evaluation.forward import Forward, Pictures, choose_batch_size, place_pictures
from mega_hf.evaluation.processes import Processes
from mega_hf.genetic.evolve import Outcome, Search, evolve
from mega_hf.genetic.mutation import Gaussian, spread
from mega_hf.genetic.population import Genes
from mega_hf.genetic.seeds import streams
from mega_hf.genetic.selection import plan, plan_reference
from mega_hf.hf.data import Splits, load_splits, match_classes
from mega_hf.hf.models import OpenModel
from mega_hf.hf.parents import OpenParent, open_parent, refuse_disagreement
from mega_hf.hf.rows import Split, fill_pictures
from mega_hf.hf.save import save_model
from mega_hf.hf.train import initial_model, train_keys
from mega_hf.journal import NAME as JOURNAL
from mega_hf.journal import Journal
from mega_hf.progress import Progress
from mega_hf.recipe import Recipe, TrainedParent
from mega_hf.report import Finding, header, write_report
from mega_hf.result import MergeResult
from mega_hf.run_folder import RunFolder, write_folder
from mega_hf.training import train_missing
from mega_hf.weights.space import WeightSpace, build_space

logger = logging.getLogger(__name__)


@dataclass
class Stages:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add what runs inside to a stage."""
        began = time.perf_counter()
        yield
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - began, 3)


def merge(
    recipe: Recipe, out: str | Path | None = None, *, overwrite: bool = False, progress: bool = False
) -> MergeResult:
    """Merge the parents of a recipe and leave a run folder behind.

    The same recipe in the same folder goes on where it was stopped, and answers at once when it was finished.

    Args:
        recipe: what to do.
        out: the run folder; `runs/NAME` in the working folder by default.
        overwrite: start afresh where an earlier run is.
        progress: show bars on standard error.

    Raises:
        MegaError: anything that its caller can mend; files are whole and the run resumes.
    """
    folder = RunFolder(Path(out) if out is not None else Path("runs") / recipe.name)
    asked, recipe = recipe, folder.check(recipe, overwrite)
    processes = Processes()
    try:
        finished = None if overwrite else folder.finished()
        return finished or _run(asked, recipe, folder, overwrite, processes, Progress(progress and processes.is_main))
    finally:
        processes.close()


def _run(
    asked: Recipe, recipe: Recipe, folder: RunFolder, overwrite: bool, processes: Processes, progress: Progress
) -> MergeResult:
    stages = Stages()
    with stages.time("data"):
        splits = load_splits(recipe.data)
    with stages.time("parents"):
        opened, recipe = _parents(asked, recipe, folder, overwrite, splits, processes, progress)
        space, vectors = _pack(opened)
    parents, first = [one.parent for one in opened], opened[0].model
    del opened  # the models but the first, which stays to be measured with
    mapping, matched = match_classes(first.labels, first.num_classes, splits.class_names, splits.classes)
    notices = [*splits.notices, *([] if matched == "by name" else [f"classes are matched {matched}"])]
    for notice in notices if processes.is_main else ():
        logger.warning(notice)
    with stages.time("pictures"):
        batch_size = choose_batch_size(recipe.evaluation.batch_size, len(splits.validation), processes.device)
        load = _picture_loader(first, mapping, batch_size, processes, recipe)
        pictures = load(splits.validation)
    forward = Forward(first.model, processes.device)
    journal = Journal(folder.path / JOURNAL, "+".join(p.name for p in parents))
    processes.wait()  # nobody reads the journal after the main process has begun to write
    if processes.is_main:
        journal.begin(header(recipe, parents, splits, processes.device_kind, forward.path, batch_size))
    with stages.time("search"):
        outcome = _search(recipe, journal, space, vectors, forward, pictures, processes, progress)
    if outcome.best.fitness.correct is None:
        raise RunError(
            "no individual gave finite logits",
            expected="a measurable model",
            got="none",
            remedy="a smaller mutation.std",
        )
    if processes.is_main:
        state = space.unpack(outcome.best.genome)
        write_folder(folder.path / "merged", lambda path: save_model(path, first, state))
    finding = Finding(
        recipe, parents, first, splits, space, vectors, outcome, journal, load, pictures, matched, notices
    )
    return write_report(finding, folder, processes, stages.seconds, forward.path)


def _pack(opened: list[OpenParent]) -> tuple[WeightSpace, torch.Tensor]:
    """Return the weight space of the parents, and the parents in it: [parents, size] float32."""
    first = opened[0].model
    states = {one.parent.name: one.model.state() for one in opened}
    space = build_space(states, first.learned(), first.tied())
    vectors = torch.empty(len(states), space.size)
    for row, state in zip(vectors, states.values(), strict=True):
        row.copy_(space.pack(state))
    return space, vectors


def _search(
    recipe: Recipe,
    journal: Journal,
    space: WeightSpace,
    vectors: torch.Tensor,
    forward: Forward,
    pictures: Pictures,
    processes: Processes,
    progress: Progress,
) -> Outcome:
    merge, mutation = recipe.merge, recipe.merge.mutation
    reference = merge.variant == "reference"
    gaussian = Gaussian(mutation.rate, mutation.std, mutation.scope, mutation.relative, statistics=reference)
    search = Search(
        merge.population_size, merge.generations, merge.num_mates, merge.tournament_size, gaussian,
        merge.founders.include_parents, plan_reference if reference else plan,
    )  # fmt: skip
    with progress.bar("search", merge.evaluations, "evaluation") as advance:
        report = _accuracy_of(pictures, advance)
        evaluation = FullEvaluation(forward, pictures, space, processes, journal, report)
        return evolve(vectors, _genes(space, vectors), search, streams(merge.seed, journal.node), evaluation)


def _accuracy_of(pictures: Pictures, advance: Callable[[int, str], None]) -> Callable[[int, int], None]:
    return lambda measured, best: advance(measured, f"best {100 * best / pictures.count:.2f} %")


def _genes(space: WeightSpace, vectors: torch.Tensor) -> Genes:
    bounds = tuple((s.start, s.stop) for s in space.segments)
    scales = tuple(spread([v[start:stop].numpy() for v in vectors]) for start, stop in bounds)
    return Genes(bounds, sum(s.learned for s in space.segments), scales)


def _parents(
    asked: Recipe,
    recipe: Recipe,
    folder: RunFolder,
    overwrite: bool,
    splits: Splits,
    processes: Processes,
    progress: Progress,
) -> tuple[list[OpenParent], Recipe]:
    """Open the parents, and train those that are trained here; make the run folder once every check has passed."""
    references = recipe.parents
    to_train = {name: ref.train.seed for name, ref in references.items() if isinstance(ref, TrainedParent)}
    opened = {name: open_parent(name, ref) for name, ref in references.items() if name not in to_train}
    refuse_disagreement(opened.values())
    if opened:  # what would end the merge later ends it here, while there is no folder yet
        first = next(iter(opened.values())).model
        _pack(list(opened.values()))
        match_classes(first.labels, first.num_classes, splits.class_names, splits.classes)
    keys = {}
    if recipe.train and to_train:
        initial_model(recipe.train, 0, splits.classes)  # an unknown architecture ends here
        keys = train_keys(recipe.train, to_train, recipe.threads, splits)
    pins = {name: opened[name].reference if name in opened else ref for name, ref in references.items()}
    recipe = recipe.model_copy(update={"parents": pins, "data": splits.data})
    if processes.is_main:
        folder.create(asked, recipe, overwrite)
        logger.info("merging into %s; Ctrl-C leaves a run that the same command resumes", folder.path)
    processes.wait()
    if recipe.train:
        train_missing(recipe, recipe.train, folder.path / "parents", keys, splits, processes, progress)
    for name in to_train:
        opened[name] = open_parent(name, references[name], folder.path / "parents" / name)
    parents = [opened[name] for name in references]
    if to_train:
        refuse_disagreement(parents)
    return parents, recipe


def _picture_loader(
    model: OpenModel, mapping: list[int], batch_size: int, processes: Processes, recipe: Recipe
) -> Callable[[Split], Pictures]:
    """Return a function that decodes and transforms a split once, in the run's one batch shape."""

    def load(split: Split) -> Pictures:
        share = recipe.evaluation.memory_share
        pictures = place_pictures(len(split), model.picture_shape, batch_size, processes.device, share)
        fill_pictures(split, mapping, model.transform, pictures.images, pictures.labels)
        return pictures

    return load
