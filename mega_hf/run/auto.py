"""`method: auto`: choose how to merge, by the accuracy of the parents and of their average."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mega_hf.errors import ParentError
from mega_hf.evaluation.aligner import Aligner
from mega_hf.evaluation.forward import Examples
from mega_hf.evaluation.interpolation import align_models, count_correct, mix_models
from mega_hf.models.merge_inputs import MergeInputs, ModelSource, open_inputs
from mega_hf.recipe.merge import MIN_CMA_ES, Merge
from mega_hf.recipe.schema import Recipe
from mega_hf.run.context import RunContext
from mega_hf.run.journal import Journal
from mega_hf.weights.batchnorm import statistics_names
from mega_hf.weights.space import StateDict

logger = logging.getLogger(__name__)

# percentage points that the average may lose to the parents' mean, if they are in one loss basin
INTERPOLATES = 2.0
_GAIN = 1.0  # percentage points that alignment must gain for the average


@dataclass(frozen=True)
class AutoChoice:
    """The settings that were chosen, and the counts that decided them.

    Attributes:
        settings: the settings of the merge, by key.
        why: the reasons, as sentences.
        correct: correct predictions of parents and averages; -1 where a logit was not finite.
        n: number of validation rows.
    """

    settings: dict[str, str]
    why: list[str]
    correct: dict[str, int]
    n: int

    @property
    def line(self) -> dict[str, Any]:
        """The line of the journal."""
        return {
            "kind": "chosen",
            "settings": self.settings,
            "why": self.why,
            "correct": self.correct,
            "n": self.n,
        }


def decide_recipe(
    recipe: Recipe, sources: Mapping[str, ModelSource], aligner: Aligner, examples: Examples
) -> AutoChoice:
    """Choose the open settings of a recipe by all of its parents, on all processes."""
    recalibrates = bool(aligner.calibration and statistics_names(aligner.forward.model))
    return choose_settings(recipe.merge, open_inputs(sources, recalibrates), aligner, examples)


def write_choice(
    choice: AutoChoice, requested: Recipe, recipe: Recipe, journal: Journal, run: RunContext
) -> None:
    """Log the choice, and write it to the journal and to the recipe in the run folder."""
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
    """Return the choice recorded for a recipe; None if its merges have other settings."""
    if journal.chosen is None:
        return None
    chosen = journal.chosen["settings"]
    is_used = any(
        chosen == {key: getattr(node, key, None) for key in chosen}
        for node in recipe.nodes().values()
    )
    return (
        {key: value for key, value in journal.chosen.items() if key != "kind"} if is_used else None
    )


def choose_settings(
    requested: Merge, inputs: MergeInputs, aligner: Aligner, examples: Examples
) -> AutoChoice:
    """Choose statistics, alignment, encoding and method of a merge.

    Args:
        requested: the settings of the merge, some of which are open.
        inputs: the parents.
        aligner: aligns the parents; its calibration examples, if any, recalibrate.
        examples: the validation rows of the search.
    """
    statistics = statistics_names(aligner.forward.model)
    recalibrates = bool(statistics and aligner.calibration)
    counts = _Counts(inputs, aligner, examples, statistics if recalibrates else [])
    why = [_statistics_reason(bool(statistics), recalibrates)]
    settings = {"batchnorm": "recalibrate" if recalibrates or not statistics else "blend"}
    counts.count_parents(inputs.states)
    loss = counts.count_average("average", inputs.states)
    if loss <= INTERPOLATES:
        enough = requested.population_size >= MIN_CMA_ES
        settings |= {"align": "none", "encoding": "mixing", "granularity": "stage"}
        settings |= {"method": "cma-es" if enough else "mega"}
        why += [
            f"the average is {_worse(loss)} the parents' mean: they are in one loss basin,"
            " where a few coefficients suffice"
        ]
        return AutoChoice(settings, why, counts.correct, examples.count)
    why += [
        f"the average is {_worse(loss)} the parents' mean: good models are close to one of them"
    ]
    settings |= {"method": "mega", "encoding": "direct", "align": "none"}
    try:
        aligned, how = align_models(inputs, aligner)
    except ParentError as error:
        why += [f"the parents are not aligned: {error.what}"]
        return AutoChoice(settings, why, counts.correct, examples.count)
    aligned_loss = counts.count_average("aligned average", aligned)
    if loss - aligned_loss >= _GAIN:
        settings["align"] = how
        why += [
            f"channels are aligned: the average is then {_worse(aligned_loss)} the parents' mean"
        ]
    else:
        why += [
            "channels are not aligned: the average would still be"
            f" {_worse(aligned_loss)} the parents' mean"
        ]
    return AutoChoice(settings, why, counts.correct, examples.count)


@dataclass
class _Counts:
    """Counts the correct predictions of parents and averages, shared by all processes."""

    inputs: MergeInputs
    aligner: Aligner
    examples: Examples
    recomputed: list[str]
    correct: dict[str, int] = field(default_factory=dict)

    def count_parents(self, states: dict[str, StateDict]) -> None:
        """Count each parent."""
        alone = [[float(i == j) for j in range(len(states))] for i in range(len(states))]
        self.correct |= dict(zip(states, self._count(states, alone), strict=True))

    def count_average(self, name: str, states: dict[str, StateDict]) -> float:
        """Count an average; return the percentage points that it loses to the parents' mean."""
        parents = [max(0, self.correct[parent]) for parent in states]
        (count,) = self._count(states, [[1 / len(states)] * len(states)])
        self.correct[name] = count
        return 100 * (sum(parents) / len(parents) - max(0, count)) / self.examples.count

    def _count(self, states: dict[str, StateDict], mixtures: list[list[float]]) -> list[int]:
        mixing = mix_models(self.inputs, states, self.recomputed)

        def count(i: int) -> list[int]:
            correct = count_correct(mixing, mixtures[i], self.aligner, self.examples)
            return [-1 if correct is None else correct]

        counts: list[int] = self.aligner.processes.share(len(mixtures), 1, count)[:, 0].tolist()
        return counts


def _statistics_reason(has_any: bool, recalibrates: bool) -> str:
    if not has_any:
        return "the model has no BatchNorm statistics"
    if recalibrates:
        return "BatchNorm statistics are recomputed for each mixture: the parents' do not fit it"
    return "BatchNorm statistics are blended: the data set has no other rows to compute them on"


def _worse(points: float) -> str:
    if f"{abs(points):.1f}" == "0.0":
        return "as good as"
    return f"{abs(points):.1f} points {'worse' if points > 0 else 'better'} than"
