"""What a merge would cost, before anything is made: parents, splits, evaluations, memory, minutes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from mega_hf.evaluation.forward import Forward, choose_batch_size
from mega_hf.evaluation.processes import Processes, is_gpu
from mega_hf.hf.data import Splits, load_splits, match_classes
from mega_hf.hf.models import OpenModel
from mega_hf.hf.parents import open_unweighted, refuse_layout
from mega_hf.hf.train import unweighted
from mega_hf.recipe import Recipe, TrainedParent


@dataclass(frozen=True)
class Estimate:
    """A merge's cost; `str` is what --dry-run prints."""

    recipe: Recipe
    splits: Splits
    matched: str
    architecture: str
    weights: int  # numbers in one individual
    picture_bytes: int
    seconds_a_picture: float
    device: str
    processes: int

    @property
    def memory_bytes(self) -> int:
        """Beside model and activations: parents, population, mates, two more individuals, validation pictures."""
        merge = self.recipe.merge
        mates = merge.num_mates if merge.variant == "default" else merge.population_size
        individuals = len(self.recipe.parents) + merge.population_size + mates + 2
        return 4 * self.weights * individuals + self.picture_bytes

    @property
    def minutes(self) -> float:
        """Search and report, without training, loading and downloads."""
        shares = math.ceil(self.recipe.merge.population_size / self.processes) / self.recipe.merge.population_size
        search = self.recipe.merge.evaluations * len(self.splits.validation) * shares
        measured = len(self.recipe.parents) + 2
        report = math.ceil(measured / self.processes) * (len(self.splits.validation) + len(self.splits.test))
        return (search + report) * self.seconds_a_picture / 60

    def __str__(self) -> str:
        splits, merge = self.splits, self.recipe.merge
        trained = [name for name, p in self.recipe.parents.items() if isinstance(p, TrainedParent)]
        lines = [
            f"recipe       {self.recipe.name}",
            *(f"parent       {name}: {parent}" for name, parent in self.recipe.to_dict()["parents"].items()),
            f"architecture {self.architecture}, {self.weights:,} numbers an individual",
            f"validation   {splits.validation.spec}: {len(splits.validation):,} rows",
            f"test         {splits.test.spec}: {len(splits.test):,} rows, read once after the search",
            f"classes      {splits.classes}, matched {self.matched}",
            f"evaluations  {merge.evaluations:,} ({merge.population_size} individuals, {merge.generations} times)",
            f"memory       {self.memory_bytes / 2**20:,.0f} MiB for parents, population and pictures",
            f"time         about {self.minutes:.1f} minutes on {self.processes} x {self.device} "
            f"({1000 * self.seconds_a_picture:.2f} ms a picture, one batch timed on random weights)",
        ]
        lines += [f"training     {', '.join(trained)}: not counted above"] if trained else []
        return "\n".join([*lines, *(f"note         {notice}" for notice in splits.notices), "Nothing was made."])


def estimate(recipe: Recipe, processes: int = 1) -> Estimate:
    """Check parents, splits and classes, and time one batch; nothing is made, no weights are read.

    Raises:
        MegaError: what would have ended the merge before its search.
    """
    splits = load_splits(recipe.data)
    models = {}
    for name, reference in recipe.parents.items():
        if isinstance(reference, TrainedParent):
            assert recipe.train is not None
            models[name] = unweighted(recipe.train, splits)
        else:
            models[name] = open_unweighted(name, reference)
    refuse_layout(models)
    model = next(iter(models.values()))
    matched = match_classes(model.labels, model.num_classes, splits.class_names, splits.classes)[1]
    device = Processes().device
    rows = choose_batch_size(recipe.evaluation.batch_size, len(splits.validation), device)
    numbers = sum(t.numel() for t in model.state().values() if t.is_floating_point())
    return Estimate(
        recipe, splits, matched, str(model.structure.get("architecture", "")), numbers,
        picture_bytes=4 * len(splits.validation) * math.prod(model.picture_shape),
        seconds_a_picture=_time_batch(model, device, rows), device=device.type, processes=processes,
    )  # fmt: skip


@torch.inference_mode()
def _time_batch(model: OpenModel, device: torch.device, rows: int) -> float:
    """Return seconds a picture: the fastest of three batches, after one to warm up."""
    forward = Forward(model.model, device)
    images = torch.zeros(rows, *model.picture_shape, device=device).to(memory_format=torch.channels_last)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        forward.model(images)
        if is_gpu(device):
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:]) / rows
