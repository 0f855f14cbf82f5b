"""BatchNorm's statistics of merges that were replayed: they follow from weights and pictures, not from the journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mega_hf.errors import ParentError, VerificationError
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Forward
from mega_hf.files import write_folder
from mega_hf.hf.models import open_model
from mega_hf.hf.save import save_model
from mega_hf.testimony import Testimony, changed
from mega_hf.weights.batchnorm import statistics_names
from mega_hf.weights.space import StateDict, WeightSpace

_COPY = "another copy of the run"
_APART = 1e-3  # of a number, or of its tensor's root mean square: what another processor's rounding may come to


@dataclass(frozen=True)
class Replayed:
    """A merge that was made again but for its statistics."""

    name: str
    folder: Path  # of the model
    is_known: bool  # whether its statistics are those that the run left; else they are the first parent's


def known_statistics(told: Testimony, name: str, space: WeightSpace) -> StateDict | None:
    """Return those statistics of a merge that do not follow from its weights alone, as its model here has them.

    Returns:
        none (an empty dict) where all follow; None where there is no model.

    Raises:
        VerificationError: they are not those that result.json has.
    """
    if not space.recomputed:
        return {}
    folder = told.model if name == told.root else told.folder / "nodes" / name
    if folder is None or not folder.is_dir():
        return None
    try:
        state = open_model(folder).state()
    except ParentError as error:
        raise VerificationError.blaming(_weights_file(folder), error, _COPY) from None
    found, claimed = space.statistics_digest(state), told.nodes[name]["digests"]["statistics"]
    if found != claimed:
        raise changed(_weights_file(folder), f"BatchNorm's statistics of {name}", claimed, found)
    return {entry: state[entry] for entry in space.recomputed}


def _weights_file(folder: Path) -> str:
    return next((path.name for path in sorted(folder.glob("*.safetensors"))), "*.safetensors")


def recompute(merges: Sequence[Replayed], calibration: Calibration, forward: Forward) -> float:
    """Compute the statistics of merges from the calibration pictures; compare them with the run's, or store them.

    Args:
        merges: those that were recalibrated.
        calibration: the run's pictures and threads.
        forward: a model of this architecture.

    Returns:
        the largest difference from statistics that were known, relative to the size of the numbers.

    Raises:
        VerificationError: it is larger than rounding can make it.
    """
    largest = 0.0
    for merge in merges:
        opened = open_model(merge.folder, merge.name)
        state = opened.state()
        dtypes = {name: state[name].dtype for name in statistics_names(opened.model)}
        forward.write(state.items())
        made = calibration.recalibrate(forward, dtypes)
        if merge.is_known:
            apart = max(relative_difference(made[name], state[name]) for name in made)
            largest = max(largest, apart)
            if not apart <= _APART:
                raise VerificationError(
                    f"BatchNorm's statistics of {merge.name} do not follow from its weights", where="*.safetensors",
                    expected=f"the calibration pictures' own, up to {_APART:g} of each number",
                    got=f"up to {apart:.3g} of a number apart", remedy=_COPY,
                )  # fmt: skip
        else:
            write_folder(merge.folder, lambda path, like=opened, state=state | made: save_model(path, like, state))  # type: ignore[misc]
    return largest


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference of two tensors' numbers, relative to b's number plus b's root mean square."""
    a, b = a.double(), b.double()
    scale = b.abs() + b.square().mean().sqrt()
    apart = (a - b).abs()
    return float((apart / scale.clamp_min(1e-30)).max()) if apart.numel() else 0.0
