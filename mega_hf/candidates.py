"""The models that a report compares: parents, baselines, a tree's merges; each is measured as its user runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mega_hf.baselines import ALIGNED, BASELINES, Baseline, uniform_soup
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import PLAIN, Forward, Pictures
from mega_hf.evaluation.processes import Processes
from mega_hf.files import remove, write_folder
from mega_hf.hf.models import OpenModel, open_model
from mega_hf.hf.save import save_model
from mega_hf.inputs import Inputs, Source, open_inputs
from mega_hf.statistics import Paired, mcnemar
from mega_hf.weights.space import Segment

_TOLERANCE = 1 / 1000  # of the rows


@dataclass(frozen=True)
class Candidate:
    """A row of the report."""

    name: str
    role: str  # parent, baseline, intermediate or merged
    open: Callable[[], OpenModel]
    level: int | None = None  # in the tree: 0 for parents; None for baselines
    sha256: str | None = None  # of its state dict, where that is known: models that are the same are measured once

    @property
    def content(self) -> str:
        """What is the same in candidates that are the same model."""
        return self.sha256 or self.name


def tolerance(rows: int) -> int:
    """Return by how many right answers two ways of computing one model may differ: near-ties that rounding turns."""
    return max(1, int(_TOLERANCE * rows))


def save_baselines(
    parents: dict[str, Source],
    folder: Path,
    calibration: Calibration | None,
    aligned: Callable[[Inputs], Inputs] | None,
    device: torch.device,
) -> None:
    """Write the models that stand beside the parents, each to FOLDER/NAME.

    Args:
        parents: by name.
        folder: made here.
        calibration: what the merge was recalibrated on: so are the baselines then, and the parents a second time.
        aligned: puts the parents' channels in the order that the merge put them in, if it did that with all of them.
        device: where statistics are computed.
    """
    remove(folder)
    forward = Forward(next(iter(parents.values())).open().model, device) if calibration else None

    def save(name: str, baseline: Baseline, parents: dict[str, Source]) -> None:
        """Write one baseline of some parents."""
        opened = open_inputs(parents, calibration is not None)
        opened = aligned(opened) if aligned and name == ALIGNED else opened
        state, recomputed = dict(opened.space.combine(opened.states.values(), partial(_apart, baseline))), {}
        if calibration and forward:
            forward.write(state.items(), part=True)
            recomputed = calibration.recalibrate(forward, opened.space.recomputed)
        first = opened.first
        del opened  # what is mapped goes before a copy of all weights is made to be saved
        write_folder(folder / name, lambda path: save_model(path, first, state | recomputed))

    for name, baseline in BASELINES.items():
        save(name, baseline, parents)
    if aligned:
        save(ALIGNED, uniform_soup, parents)
    for name, source in parents.items() if calibration else ():
        save(treated(name), uniform_soup, {name: source})


def treated(name: str) -> str:
    """Return what a report calls a parent whose statistics were computed anew, as the merge's were."""
    return f"{name} recalibrated"


def _apart(
    baseline: Callable[[torch.Tensor], torch.Tensor], segment: Segment, tensors: list[torch.Tensor]
) -> torch.Tensor:
    """Apply a baseline to one tensor of each parent."""
    return baseline(torch.stack([tensor.reshape(-1).float() for tensor in tensors])).reshape(segment.shape)


def list_rows(
    parents: Iterable[str], merges: Iterable[tuple[str, int]], are_treated: bool, are_aligned: bool
) -> list[tuple[str, str, int | None]]:
    """Return (name, role, level) of each row of the report, level by level; args as `list_candidates`, by name."""
    *intermediates, (_, top) = merges
    names = list(parents)
    rows: list[tuple[str, str, int | None]] = [(name, "parent", 0) for name in names]
    rows += [(treated(name), "treated_parent", None) for name in names if are_treated]
    rows += [(name, "baseline", None) for name in (*BASELINES, *([ALIGNED] if are_aligned else []))]
    rows += [(name, "intermediate", level) for name, level in sorted(intermediates, key=lambda one: one[1])]
    return [*rows, ("merged", "merged", top)]


def list_candidates(
    parents: Iterable[Source],
    merges: Iterable[tuple[Source, int]],
    baselines: Path,
    are_treated: bool,
    are_aligned: bool,
) -> list[Candidate]:
    """Return the models level by level: parents, baselines, intermediates, the final model.

    Args:
        parents: in the recipe's order.
        merges: each with its level, the root last.
        baselines: the folder of `save_baselines`.
        are_treated: whether the final merge was recalibrated, and parents lie there that were too.
        are_aligned: whether it aligned all parents, and their aligned average lies there.
    """
    parents, merges = list(parents), list(merges)
    sources = {source.name: source for source in (*parents, *(source for source, _ in merges))}
    sources["merged"] = merges[-1][0]
    opens: dict[str, Callable[[], OpenModel]] = {name: source.open for name, source in sources.items()}
    contents = {name: source.sha256 for name, source in sources.items()}
    levels = [(source.name, level) for source, level in merges]
    return [
        Candidate(name, role, opens.get(name, partial(open_model, baselines / name)), level, contents.get(name))
        for name, role, level in list_rows([source.name for source in parents], levels, are_treated, are_aligned)
    ]


def measure(
    candidates: list[Candidate],
    validation: Pictures,
    test: Pictures,
    processes: Processes,
    advance: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Return right (1) or wrong (0) for each model and row, validation rows first: [models, rows] int64.

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
        forward = Forward(different[i].open().model, processes.device, PLAIN)
        right = torch.cat([forward.answers(pictures).right for pictures in (validation, test)]).int().tolist()
        advance()
        return right

    right = processes.share(len(different), validation.count + test.count, answers)
    return right[[list(models).index(candidate.content) for candidate in candidates]]


def count(candidates: list[Candidate], right: np.ndarray, rows: int) -> list[dict[str, Any]]:
    """Return each model's row of the report, from what `measure` returned of so many validation rows."""
    models = []
    for candidate, bits in zip(candidates, right, strict=True):
        counted: dict[str, Any] = {"name": candidate.name, "role": candidate.role}
        counted |= {} if candidate.level is None else {"level": candidate.level}
        for split, part in (("validation", bits[:rows]), ("test", bits[rows:])):
            counted[split] = {"correct": int(part.sum()), "n": len(part)}
        models.append(counted)
    return models


def best_parent(models: list[dict[str, Any]]) -> str:
    """Return the parent that is best on validation, as it is or treated as the merge was: what that one is held to.

    Of equals it is the treated one, and the first.
    """
    parents = [model for role in ("treated_parent", "parent") for model in models if model["role"] == role]
    return str(max(parents, key=lambda model: model["validation"]["correct"])["name"])


def pair(candidates: list[Candidate], right: np.ndarray, rows: int, against: str) -> Paired:
    """Test the merged model against another one on the test rows; args as `count`."""
    test = right[:, rows:].astype(bool)
    return mcnemar(against, test[-1], test[[one.name for one in candidates].index(against)])
