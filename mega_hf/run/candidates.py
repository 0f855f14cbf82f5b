"""The models that a report compares: parents, baselines, a tree's merges; each is measured as its
user runs it."""

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
from mega_hf.models.merge_inputs import MergeInputs, ModelSource, open_inputs
from mega_hf.models.save import save_model
from mega_hf.models.timm_models import LoadedModel
from mega_hf.recipe.plan import MergePlan
from mega_hf.report.record import Count, ModelRow, Role
from mega_hf.report.table import recalibrated
from mega_hf.runtime.files import remove, write_folder
from mega_hf.runtime.processes import Processes
from mega_hf.search.crossover import average
from mega_hf.weights.space import Segment

UNIFORM = "uniform_soup"  # the mean of the parents
ALIGNED = "aligned_soup"  # the mean of the parents, aligned as in the final merge
ENSEMBLE = "ensemble"  # of the parents: what their merge may come to, at the cost of all of them
_TOLERANCE = 1 / 1000  # of the rows


@dataclass(frozen=True)
class Candidate:
    """A row of the report."""

    name: str
    role: Role
    open: Callable[[], LoadedModel]
    level: int | None = None  # in the tree: 0 for parents; None for what is no part of it
    # of its state dict, where that is known: models that are the same are measured once
    sha256: str | None = None
    members: tuple[Candidate, ...] = ()  # of an ensemble, which is no model of its own

    @property
    def content(self) -> str:
        """What is the same in candidates that are the same model."""
        return self.sha256 or self.name


def tolerance(rows: int) -> int:
    """Return by how many right answers two ways of computing one model may differ: near-ties that
    rounding turns."""
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
        is_recalibrated_run: whether the final merge was recalibrated, and the report shows the
            parents recalibrated too.
        is_aligned: whether it aligned all parents, and the report shows their aligned average.
    """

    plan: MergePlan
    is_recalibrated_run: bool
    is_aligned: bool

    def rows(self) -> list[tuple[str, Role, int | None]]:
        """Return (name, role, level) of each row of the report, the merged model last."""
        plan, top = self.plan, self.plan.levels[self.plan.final]
        rows: list[tuple[str, Role, int | None]] = [(name, "parent", 0) for name in plan.leaves]
        rows += [
            (recalibrated(name), "treated_parent", None)
            for name in plan.leaves
            if self.is_recalibrated_run
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
    lineup: ReportRows, sources: Mapping[str, ModelSource], last: str, scratch: Path
) -> list[Candidate]:
    """Return the models of a report, in its order.

    Args:
        lineup: which they are.
        sources: parents, merges and searched baselines, by name.
        last: which of them is the merged model.
        scratch: the folder of `save_baselines`.
    """
    found: dict[str, Candidate] = {}
    for name, role, level in lineup.rows():
        source = sources.get(last if role == "merged" else name)
        load = source.open if source else partial(open_model, scratch / name)
        shown = [
            recalibrated(parent) if lineup.is_recalibrated_run else parent
            for parent in lineup.plan.leaves
        ]
        members = tuple(found[member] for member in shown) if role == "ceiling" else ()
        found[name] = Candidate(name, role, load, level, source.sha256 if source else None, members)
    return list(found.values())


def measure(
    candidates: list[Candidate],
    validation: Examples,
    test: Examples,
    processes: Processes,
    advance: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Return right (1) or wrong (0) for each model and row, validation rows first: [models, rows]
    int64.

    Args:
        candidates: the models; each process loads some of them, one after the other.
        validation: the validation split's pictures.
        test: the test split's.
        processes: who takes part.
        advance: called after each model that this process has measured.
    """

    models: dict[str, Candidate] = {}
    for candidate in candidates:
        models.setdefault(candidate.content, candidate)
    different = list(models.values())

    def answers(i: int) -> list[int]:
        """Say of one model, row by row, whether it is right."""
        one, splits = different[i], (validation, test)
        if one.members:
            right = _ensemble_right(one.members, splits, processes)
        else:
            forward = ResidentModel(one.open().model, processes.device, PLAIN)
            right = [forward.predict(examples).correct for examples in splits]
        advance()
        return torch.cat(right).int().tolist()

    right = processes.share(len(different), validation.count + test.count, answers)
    return right[[list(models).index(candidate.content) for candidate in candidates]]


def _ensemble_right(
    members: tuple[Candidate, ...], splits: tuple[Examples, ...], processes: Processes
) -> list[torch.Tensor]:
    """Return where the mean of some models' probabilities is right: [rows] bool of each split; one
    model at a time."""
    totals = [torch.zeros(())] * len(splits)
    for member in members:
        forward = ResidentModel(member.open().model, processes.device, PLAIN)
        totals = [
            total + forward.probabilities(one) for total, one in zip(totals, splits, strict=True)
        ]
    return [
        total.argmax(dim=1) == one.labels.cpu() for total, one in zip(totals, splits, strict=True)
    ]


def count(candidates: list[Candidate], right: np.ndarray, rows: int) -> list[ModelRow]:
    """Return each model's row of the report, from what `measure` returned of so many validation
    rows."""
    return [
        ModelRow(
            name=candidate.name,
            role=candidate.role,
            level=candidate.level,
            validation=Count(correct=int(bits[:rows].sum()), n=rows),
            test=Count(correct=int(bits[rows:].sum()), n=len(bits) - rows),
        )
        for candidate, bits in zip(candidates, right, strict=True)
    ]


def best_parent(models: list[ModelRow]) -> str:
    """Return the parent that is best on validation, as it is or treated as the merge was: what that
    one is held to.

    Of equals it is the treated one, and the first.
    """
    parents = [
        model for role in ("treated_parent", "parent") for model in models if model.role == role
    ]
    return max(parents, key=lambda model: model.validation.correct).name


def paired_against(models: list[ModelRow]) -> dict[str, str]:
    """Return whom the merged model is tested against: entry of the record -> name."""
    against = {"paired": best_parent(models), "paired_soup": "greedy_soup"}
    return {
        entry: name for entry, name in against.items() if name in [model.name for model in models]
    }


def paired_test(candidates: list[Candidate], right: np.ndarray, rows: int, against: str) -> Paired:
    """Test the merged model against another one on the test rows; args as `count`."""
    test = right[:, rows:].astype(bool)
    return mcnemar(against, test[-1], test[[one.name for one in candidates].index(against)])
