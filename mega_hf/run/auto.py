"""`method: auto`: how to merge some parents, chosen by what their average is worth beside them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mega_hf.errors import ParentError
from mega_hf.evaluation.aligner import Aligner
from mega_hf.evaluation.forward import Examples
from mega_hf.evaluation.interpolation import align_models, count_correct, mix_models
from mega_hf.models.merge_inputs import MergeInputs, ModelSource, open_inputs
from mega_hf.recipe.merge import Merge
from mega_hf.recipe.schema import Recipe
from mega_hf.run.context import RunContext
from mega_hf.run.journal import Journal
from mega_hf.weights.batchnorm import statistics_names
from mega_hf.weights.space import StateDict

logger = logging.getLogger(__name__)

# points by which the average of parents in one valley may be worse than they are in the mean
INTERPOLATES = 2.0
_GAIN = 1.0  # points that aligning must bring the average, to be worth it


@dataclass(frozen=True)
class AutoChoice:
    """What was chosen, why, and what was counted for it.

    Attributes:
        settings: of the merge, by key.
        why: in sentences.
        correct: right answers of parents and averages; -1 where a logit was not finite.
        n: rows.
    """

    settings: dict[str, str]
    why: list[str]
    correct: dict[str, int]
    n: int

    @property
    def line(self) -> dict[str, Any]:
        """As the journal has it."""
        return {
            "kind": "chosen",
            "settings": self.settings,
            "why": self.why,
            "correct": self.correct,
            "n": self.n,
        }


def decide_recipe(
    recipe: Recipe, sources: Mapping[str, ModelSource], tracer: Aligner, examples: Examples
) -> AutoChoice:
    """Choose what a recipe leaves open, by all of its parents; on all processes."""
    recalibrates = bool(tracer.calibration and statistics_names(tracer.forward.model))
    return choose_settings(recipe.merge, open_inputs(sources, recalibrates), tracer, examples)


def write_choice(
    choice: AutoChoice, requested: Recipe, recipe: Recipe, journal: Journal, run: RunContext
) -> None:
    """Say what was chosen, in the journal and in the run's recipe, which from now on is the one
    that is run."""
    if run.processes.is_main:
        if journal.chosen != choice.line:
            journal.append(choice.line)
        run.folder.create(requested, recipe, overwrite=False)
        for reason in [
            *choice.why,
            ", ".join(f"{key}: {value}" for key, value in choice.settings.items()),
        ]:
            logger.info("auto: %s", reason)
    run.processes.wait()


def choice_of(journal: Journal, recipe: Recipe) -> dict[str, Any] | None:
    """Return what was chosen for a recipe that left it open; None where it does not say what was
    chosen."""
    if journal.chosen is None:
        return None
    chosen = journal.chosen["settings"]
    is_said = any(
        chosen == {key: getattr(node, key, None) for key in chosen}
        for node in recipe.nodes().values()
    )
    return (
        {key: value for key, value in journal.chosen.items() if key != "kind"} if is_said else None
    )


def choose_settings(
    asked: Merge, opened: MergeInputs, tracer: Aligner, examples: Examples
) -> AutoChoice:
    """Choose statistics, alignment, encoding and method for some parents.

    Args:
        asked: the merge's settings, of which these are left open.
        opened: the parents.
        tracer: aligns them; its calibration pictures, if there are any, recalibrate.
        examples: the validation rows, those that are searched on.
    """
    statistics = statistics_names(tracer.forward.model)
    recalibrates = bool(statistics and tracer.calibration)
    counted = _Counted(opened, tracer, examples, statistics if recalibrates else [])
    why = [_said_of_statistics(bool(statistics), recalibrates)]
    settings = {"batchnorm": "recalibrate" if recalibrates or not statistics else "blend"}
    counted.parents(opened.states)
    fall = counted.average("average", opened.states)
    if fall <= INTERPOLATES:
        enough = asked.population_size >= Merge.FEWEST
        settings |= {"align": "none", "encoding": "mixing", "granularity": "stage"}
        settings |= {"method": "cma-es" if enough else "mega"}
        why += [
            f"their average is {_worse(fall)} they are: they lie in one valley, where few"
            " coefficients say enough"
        ]
        return AutoChoice(settings, why, counted.correct, examples.count)
    why += [f"their average is {_worse(fall)} they are: what is good lies near one of them"]
    settings |= {"method": "mega", "encoding": "direct", "align": "none"}
    try:
        aligned, how = align_models(opened, tracer)
    except ParentError as error:
        return AutoChoice(
            settings, [*why, f"not aligned: {error.what}"], counted.correct, examples.count
        )
    moved = counted.average("aligned average", aligned)
    if fall - moved >= _GAIN:
        settings["align"] = how
        why += [f"their channels are aligned: their average is {_worse(moved)} they are, then"]
    else:
        why += [
            f"their channels are not aligned: their average would still be {_worse(moved)} they are"
        ]
    return AutoChoice(settings, why, counted.correct, examples.count)


@dataclass
class _Counted:
    """Counts right answers of parents and averages, each process some of them."""

    opened: MergeInputs
    tracer: Aligner
    examples: Examples
    recomputed: list[str]

    def __post_init__(self) -> None:
        self.correct: dict[str, int] = {}

    def parents(self, states: dict[str, StateDict]) -> None:
        """Count each parent."""
        alone = [[float(i == j) for j in range(len(states))] for i in range(len(states))]
        self.correct |= dict(zip(states, self._count(states, alone), strict=True))

    def average(self, name: str, states: dict[str, StateDict]) -> float:
        """Count the average of some states; return by how many points it is worse than the mean of
        the parents."""
        parents = [max(0, self.correct[parent]) for parent in states]
        (found,) = self._count(states, [[1 / len(states)] * len(states)])
        self.correct[name] = found
        return 100 * (sum(parents) / len(parents) - max(0, found)) / self.examples.count

    def _count(self, states: dict[str, StateDict], mixtures: list[list[float]]) -> list[int]:
        mixing = mix_models(self.opened, states, self.recomputed)

        def count(i: int) -> list[int]:
            found = count_correct(mixing, mixtures[i], self.tracer, self.examples)
            return [-1 if found is None else found]

        counted: list[int] = self.tracer.processes.share(len(mixtures), 1, count)[:, 0].tolist()
        return counted


def _said_of_statistics(has_any: bool, recalibrates: bool) -> str:
    if not has_any:
        return "the model has no BatchNorm statistics"
    if recalibrates:
        return (
            "BatchNorm's statistics are computed anew for each mixture: those of the parents fit"
            " none of them"
        )
    return "BatchNorm's statistics are blended: the data set has no other rows to compute them on"


def _worse(points: float) -> str:
    if f"{abs(points):.1f}" == "0.0":
        return "as good as"
    return f"{abs(points):.1f} points {'worse' if points > 0 else 'better'} than"
