"""The models that a report compares, each evaluated in the way a user would run it."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import PLAIN, Examples, ResidentModel
from mega_hf.evaluation.statistics import Paired, mcnemar
from mega_hf.models.load import open_model
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.merge_inputs import MergeInputs, ModelSource, open_inputs
from mega_hf.models.save import save_model
from mega_hf.recipe.plan import MergePlan
from mega_hf.report.record import Count, ModelRow, Role
from mega_hf.report.table import recalibrated
from mega_hf.runtime.files import remove, write_folder
from mega_hf.runtime.processes import Processes
from mega_hf.search.crossover import average
from mega_hf.weights.space import Segment

UNIFORM = "uniform_soup"  # the mean of the parents
ALIGNED = "aligned_soup"  # the mean of the parents, aligned as in the final merge
ENSEMBLE = "ensemble"  # of the parents
_TOLERANCE = 1 / 1000  # of the rows


@dataclass(frozen=True)
class Candidate:
    """A row of the report."""

    name: str
    role: Role
    open: Callable[[], LoadedModel]
    level: int | None = None  # in the tree, 0 for parents; None outside of the tree
    sha256: str | None = None  # of the state dict, where it is known
    members: tuple[Candidate, ...] = ()  # of the ensemble

    @property
    def content(self) -> str:
        """A key that equal models share: each is evaluated once."""
        return self.sha256 or self.name


def tolerance(rows: int) -> int:
    """Return by how many correct predictions two ways of computing a model may differ.

    Rounding may turn near-ties.
    """
    return max(1, int(_TOLERANCE * rows))


def save_baselines(
    parents: dict[str, ModelSource],
    folder: Path,
    calibration: Calibration | None,
    aligned: Callable[[MergeInputs], MergeInputs] | None,
    device: torch.device,
    existing: Container[str] = (),
) -> None:
    """Save the models that only the report needs, each to FOLDER/NAME.

    These are the uniform soup, the soup of the aligned parents, and the recalibrated parents.

    Args:
        parents: by name.
        folder: written anew.
        calibration: recalibrates the soups and the parents, as the merge was; None if it was not.
        aligned: puts the channels of the parents in the order of the merge; None if the merge did
            not align all of them.
        device: where statistics are computed.
        existing: baselines that the run has made already.
    """
    remove(folder)
    first_parent = next(iter(parents.values()))
    forward = ResidentModel(first_parent.open().model, device) if calibration else None

    def save(name: str, parents: dict[str, ModelSource]) -> None:
        """Save the mean of some parents."""
        opened = open_inputs(parents, calibration is not None)
        opened = aligned(opened) if aligned and name == ALIGNED else opened
        state = dict(opened.space.combine(opened.states.values(), _mean))
        recomputed = {}
        if calibration and forward:
            forward.write(state.items(), part=True)
            recomputed = calibration.recalibrate(forward, opened.space.recomputed)
        first = opened.first
        del opened  # Unmap the parents before all weights are copied to be saved.
        write_folder(folder / name, lambda path: save_model(path, first, state | recomputed))

    soups = [UNIFORM, ALIGNED] if aligned else [UNIFORM]
    for name in soups:
        if name not in existing:
            save(name, parents)
    for name, source in parents.items() if calibration else ():
        save(recalibrated(name), {name: source})


def _mean(segment: Segment, tensors: list[torch.Tensor]) -> torch.Tensor:
    vectors = [tensor.reshape(-1).float() for tensor in tensors]
    return average(vectors, torch.empty_like(vectors[0])).reshape(segment.shape)


@dataclass(frozen=True)
class ReportRows:
    """The rows of a report.

    Attributes:
        plan: parents, merges, baselines and held-out selection of the run.
        is_recalibrated: whether the final merge was recalibrated, and the report shows the
            parents recalibrated too.
        is_aligned: whether it aligned all parents, and the report shows their aligned average.
    """

    plan: MergePlan
    is_recalibrated: bool
    is_aligned: bool

    def rows(self) -> list[tuple[str, Role, int | None]]:
        """Return (name, role, level) of each row of the report, the merged model last."""
        plan, top = self.plan, self.plan.levels[self.plan.final]
        rows: list[tuple[str, Role, int | None]] = [(name, "parent", 0) for name in plan.leaves]
        rows += [
            (recalibrated(name), "treated_parent", None)
            for name in plan.leaves
            if self.is_recalibrated
        ]
        soups = [UNIFORM, *([ALIGNED] if self.is_aligned else [])]
        rows += [(name, "baseline", None) for name in dict.fromkeys([*soups, *plan.baselines])]
        rows += [(ENSEMBLE, "ceiling", None)] if plan.has_ensemble else []
        intermediates = [(name, plan.levels[name]) for name in plan.merges if name != plan.final]
        rows += [
            (name, "intermediate", level)
            for name, level in sorted(intermediates, key=lambda one: one[1])
        ]
        rows += [(plan.final, "searched", top)] if plan.selection else []
        return [*rows, ("merged", "merged", top)]


def list_candidates(
    rows: ReportRows, sources: Mapping[str, ModelSource], merged: str, scratch: Path
) -> list[Candidate]:
    """Return the models of a report, in its order.

    Args:
        rows: their names and roles.
        sources: parents, merges and searched baselines, by name.
        merged: the name in `sources` of the merged model.
        scratch: the folder of `save_baselines`.
    """
    found: dict[str, Candidate] = {}
    for name, role, level in rows.rows():
        source = sources.get(merged if role == "merged" else name)
        load = source.open if source else partial(open_model, scratch / name)
        shown = [
            recalibrated(parent) if rows.is_recalibrated else parent for parent in rows.plan.leaves
        ]
        members = tuple(found[member] for member in shown) if role == "ceiling" else ()
        found[name] = Candidate(name, role, load, level, source.sha256 if source else None, members)
    return list(found.values())


def evaluate_candidates(
    candidates: list[Candidate],
    validation: Examples,
    test: Examples,
    processes: Processes,
    advance: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Return which rows each model predicts correctly: [models, rows] int64, 0 or 1.

    Validation rows come before test rows.

    Args:
        candidates: the models; each process loads its share of them, one after the other.
        validation: the examples of the validation split.
        test: the examples of the test split.
        processes: share the models among them.
        advance: called after each model that this process has evaluated.
    """
    models: dict[str, Candidate] = {}
    for candidate in candidates:
        models.setdefault(candidate.content, candidate)
    distinct = list(models.values())

    def evaluate(i: int) -> list[int]:
        """Return 1 or 0 for each row of one model."""
        model, splits = distinct[i], (validation, test)
        if model.members:
            correct = _evaluate_ensemble(model.members, splits, processes)
        else:
            forward = ResidentModel(model.open().model, processes.device, PLAIN)
            correct = [forward.predict(examples).correct for examples in splits]
        advance()
        return torch.cat(correct).int().tolist()

    correct = processes.share(len(distinct), validation.count + test.count, evaluate)
    return correct[[list(models).index(candidate.content) for candidate in candidates]]


def _evaluate_ensemble(
    members: tuple[Candidate, ...], splits: tuple[Examples, ...], processes: Processes
) -> list[torch.Tensor]:
    """Return where the mean of the members' probabilities is correct: [rows] bool of each split."""
    totals = [torch.zeros(())] * len(splits)
    for member in members:  # One model at a time is in memory.
        forward = ResidentModel(member.open().model, processes.device, PLAIN)
        totals = [
            total + forward.probabilities(split)
            for total, split in zip(totals, splits, strict=True)
        ]
    return [
        total.argmax(dim=1) == split.labels.cpu()
        for total, split in zip(totals, splits, strict=True)
    ]


def model_rows(candidates: list[Candidate], correct: np.ndarray, rows: int) -> list[ModelRow]:
    """Return the rows of the report.

    Args:
        candidates: the models.
        correct: the result of `evaluate_candidates`.
        rows: the number of validation rows.
    """
    return [
        ModelRow(
            name=candidate.name,
            role=candidate.role,
            level=candidate.level,
            validation=Count(correct=int(bits[:rows].sum()), n=rows),
            test=Count(correct=int(bits[rows:].sum()), n=len(bits) - rows),
        )
        for candidate, bits in zip(candidates, correct, strict=True)
    ]


def best_parent(models: list[ModelRow]) -> str:
    """Return the name of the best parent on validation.

    Of equally good ones a recalibrated parent is preferred, then the first.
    """
    parents = [
        model for role in ("treated_parent", "parent") for model in models if model.role == role
    ]
    return max(parents, key=lambda model: model.validation.correct).name


def paired_against(models: list[ModelRow]) -> dict[str, str]:
    """Return the models that the merged model is tested against, by their entry in the record."""
    names = [model.name for model in models]
    soup = {"paired_soup": "greedy_soup"} if "greedy_soup" in names else {}
    return {"paired": best_parent(models)} | soup


def paired_test(
    candidates: list[Candidate], correct: np.ndarray, rows: int, against: str
) -> Paired:
    """Test the merged model against another one on the test rows; arguments as `model_rows`."""
    test = correct[:, rows:].astype(bool)
    other = [candidate.name for candidate in candidates].index(against)
    return mcnemar(against, test[-1], test[other])
