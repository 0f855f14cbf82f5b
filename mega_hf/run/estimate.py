"""Estimate the cost of a run before anything is written: tree, memory and minutes (`--dry-run`)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mega_hf.evaluation.batch_size import choose_batch_size
from mega_hf.evaluation.forward import ResidentModel
from mega_hf.models.load import try_model
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.merge_inputs import genomes_bytes
from mega_hf.recipe import tree
from mega_hf.recipe.merge import Node, inputs_of
from mega_hf.recipe.plan import MergePlan, plan_merges
from mega_hf.recipe.schema import Recipe
from mega_hf.recipe.tree import parent_name
from mega_hf.run.prepare import prepare
from mega_hf.runtime.environment import keep_freed_memory
from mega_hf.runtime.processes import Processes, is_gpu
from mega_hf.tasks.splits import Splits
from mega_hf.training.train import is_trained, training_levels
from mega_hf.training.trainer import time_training


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a run; `str` gives the text of --dry-run.

    Attributes:
        recipe: the recipe.
        plan: the merges, baselines and held-out selection of the whole run.
        only: the last merge to make, if only a part of the tree runs.
        splits: the splits.
        matched: how classes are matched, in words.
        architecture: the architecture of the parents.
        weights: numbers in one individual.
        image_size: numbers in one image.
        seconds_per_image: time to forward one image.
        training: parent that would be trained -> minutes.
        trained: parent that is trained already -> its folder.
        device: the kind of device.
        processes: number of processes.
        calibration: rows on which BatchNorm statistics are computed for each individual.
        runs: number of runs, each with a seed of its own.
    """

    recipe: Recipe
    plan: MergePlan
    only: str | None
    splits: Splits
    matched: str
    architecture: str
    weights: int
    image_size: int
    seconds_per_image: float
    training: dict[str, float]
    trained: dict[str, Path]
    device: str
    processes: int
    calibration: int = 0
    runs: int = 1

    @property
    def nodes(self) -> dict[str, Node]:
        """The merges that would run, each after those that it needs."""
        return self.plan.needed_for(self.only)

    @property
    def leaves(self) -> list[str]:
        """The parents that are merged."""
        return tree.leaves_of(inputs_of(self.nodes), next(reversed(self.nodes)))

    @property
    def _searches(self) -> list[Node]:
        added = self.plan.added if self.only is None else {}
        return [*self.nodes.values(), *added.values()]

    @property
    def memory_bytes(self) -> int:
        """Memory of one process in the stage that needs most: models, genomes and images.

        There are two models: the resident one, and one that is built or saved. The activations of
        a batch are not included, nor the parents of a merge by coefficients, which are mapped
        from disk.
        """
        splits, models = self.splits, 2 * 4 * self.weights
        train, validation, test = (
            4 * self.image_size * len(s or ())
            for s in (splits.train, splits.validation, splits.test)
        )
        stages = [2 * models + train] if self.training else []  # weights, gradients, two moments
        calibration = 4 * self.image_size * self.calibration
        stages += [
            models + self._genomes(node) + validation + calibration for node in self._searches
        ]
        stages += [models + validation + test + calibration] if self.only is None else []
        return max(stages)

    def _genomes(self, node: Node) -> int:
        return genomes_bytes(node, len(node.parents), self.weights)

    @property
    def mapped_bytes(self) -> int:
        """Size of the mapped parents, in the merge by coefficients that has most of them."""
        counts = [len(node.parents) for node in self._searches if node.encoding == "mixing"]
        return 4 * self.weights * max(counts, default=0)

    def node_minutes(self, node: Node) -> float:
        """Minutes of one merge's search, shared by all processes."""
        shares = math.ceil(node.founders_count / self.processes) / node.founders_count
        rows = self.splits.second_look if node is self.plan.selection else self.splits.validation
        examples = len(rows or ()) + (self.calibration if node.recalibrates else 0)
        return node.evaluations * examples * shares * self.seconds_per_image / 60

    @property
    def training_minutes(self) -> float:
        """Minutes of training: a process trains one parent at a time, and sources come first."""
        total = 0.0
        for level in training_levels(self.recipe, self.training):
            shares = [level[rank :: self.processes] for rank in range(self.processes)]
            total += max(sum(self.training[name] for name in share) for share in shares)
        return total

    @property
    def minutes(self) -> float:
        """Minutes of training, search and report, without loading and downloads."""
        validation, test = len(self.splits.validation), len(self.splits.test)
        root, leaves = next(reversed(self.nodes.values())), len(self.leaves)
        calibration = self.calibration if root.recalibrates else 0
        soups = 1  # the uniform soup
        models = leaves * (2 if calibration else 1) + len(self._searches) + soups
        models += leaves if self.plan.has_ensemble else 0
        examples = (
            math.ceil(models / self.processes) * (validation + test)
            + (leaves + soups) * calibration
        )
        examples = examples if self.only is None else 0
        if self.recipe.order == "accuracy":
            examples += math.ceil(len(self.recipe.parents) / self.processes) * validation
        searches = sum(map(self.node_minutes, self._searches))
        return self.training_minutes + searches + examples * self.seconds_per_image / 60

    @property
    def total_minutes(self) -> float:
        """Minutes of all runs; parents are trained once."""
        return self.runs * self.minutes - (self.runs - 1) * self.training_minutes

    def _tree(self) -> list[str]:
        notes = {
            name: f"{n.evaluations:,} evaluations, {_about(self.node_minutes(n))}"
            for name, n in self.nodes.items()
        }
        for leaf in self.leaves:
            if parent_name(leaf) in self.trained:
                notes[leaf] = f"already trained: {self.trained[parent_name(leaf)].parent / leaf}"
            elif parent_name(leaf) in self.training:
                here = f"to train, {_about(self.training[parent_name(leaf)])}"
                notes[leaf] = here if leaf == parent_name(leaf) else "snapshot"
            else:
                notes[leaf] = str(self.recipe.to_dict()["parents"][leaf])
        drawn = tree.render_tree(inputs_of(self.nodes), next(reversed(self.nodes)), notes)
        return [f"tree         {drawn[0]}", *(f"             {line}" for line in drawn[1:])]

    def _added(self) -> list[str]:
        """Return the lines on baselines and held-out selection."""
        if self.only is not None:
            return []
        plan, rows = self.plan, self.splits.second_look
        searched = [f"{name} {node.evaluations:,}" for name, node in plan.baselines.items()]
        lines = [f"baselines    {', '.join(searched)} evaluations"] if searched else []
        if "line-sweep" in self.recipe.baselines and len(self.leaves) != 2:
            lines += ["             no line-sweep, which needs exactly two parents"]
        if plan.selection is not None and rows is not None:
            count = len(plan.selection.parents)
            lines += [f"held-out     {len(rows):,} validation rows, to choose from {count} models"]
        return lines

    def __str__(self) -> str:
        splits, nodes, is_whole = self.splits, self.nodes.values(), self.only is None
        mixing = {node.granularity: None for node in nodes if node.encoding == "mixing"}
        built = f", from coefficients of the parents by {' or '.join(mixing)}" if mixing else ""
        test = "read once after the search" if is_whole else "not read for a part of the tree"
        mapped = f"; {_mib(self.mapped_bytes)} of parents mapped from disk"
        evaluations = sum(node.evaluations for node in nodes)
        lines = [
            f"recipe       {self.recipe.name}",
            *self._tree(),
            f"architecture {self.architecture}, {self.weights:,} numbers per individual{built}",
            f"validation   {splits.validation.spec}: {len(splits.validation):,} rows",
            f"test         {splits.test.spec}: {len(splits.test):,} rows, {test}",
        ]
        if self.calibration and splits.calibration:
            lines += [f"calibration  {splits.calibration.spec}"]
        lines += [
            f"classes      {splits.classes}, matched {self.matched}",
            f"evaluations  {evaluations:,} in {_count(len(nodes), 'merge')}",
            *self._added(),
            f"memory       {_mib(self.memory_bytes)} per process for two models and images, with"
            f" {_mib(max(map(self._genomes, self._searches)))} of genomes; activations of a batch"
            f" not included{mapped if self.mapped_bytes else ''}",
        ]
        if self.training:
            rows = len(splits.train) if splits.train else 0
            trained = f"{_count(len(self.training), 'parent')} on {rows:,} rows"
            lines += [f"training     {trained}: {_about(self.training_minutes)} of the time below"]
        lines += [
            f"time         {_about(self.minutes)} on {self.processes} x {self.device}"
            f" ({1000 * self.seconds_per_image:.2f} ms per image), an upper bound: losers stop"
            " early, and a long search is compiled"
        ]
        if self.runs > 1:
            lines += [
                f"runs         {self.runs}, one per seed, {_about(self.total_minutes)} in total"
            ]
        if self.recipe.is_auto:
            lines += [
                "method       auto: chosen after the parents are evaluated; this estimate assumes"
                " mega"
            ]
        if self.recipe.order == "accuracy":
            lines += [
                "order        by validation accuracy: the pairs are known after the parents are"
                " evaluated"
            ]
        lines += [f"note         {notice}" for notice in splits.notices]
        return "\n".join([*lines, "Nothing was written."])


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _about(minutes: float) -> str:
    if minutes < 1:
        return f"about {_count(round(60 * minutes), 'second')}"
    return f"about {minutes:.1f} minutes" if minutes < 90 else f"about {minutes / 60:.1f} hours"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


@keep_freed_memory()
def estimate(
    recipe: Recipe,
    processes: int = 1,
    only: str | None = None,
    kept: Path | None = None,
    update: bool = False,
    ranking: Sequence[str] | None = None,
) -> Estimate:
    """Check everything that a merge checks before its search, and time one batch.

    Nothing is written. Weights are read only of the sources of trained parents in `kept`, to see
    whether these parents would be trained again.

    Args:
        recipe: the recipe.
        processes: number of processes.
        only: the last merge to make; None for the whole tree.
        kept: the folder of trained parents; None if there is none.
        update: whether parents with other settings would be trained again.
        ranking: the parents from best to worst, if a run has ranked them for `order: accuracy`.

    Raises:
        MegaError: an error that would end the merge before its search.
    """
    leaves, plan = recipe.leaves(only, ranking), plan_merges(recipe, ranking)
    prepared = prepare(recipe, leaves, kept, update, dry_run=True)
    splits, model = prepared.splits, prepared.model
    try_model(model, leaves[0])
    device = Processes().device
    trained = {
        name: kept / name
        for name, key in prepared.keys.items()
        if kept is not None and is_trained(prepared.recipe, kept, {name: key})
    }
    to_train = [name for name in prepared.to_train if name not in trained]
    # before `_time_batch`, whose resident model has no parameters to train
    training = _time_training(recipe, to_train, model, splits, device)
    batch, shape = recipe.evaluation.batch_size, model.input_shape
    rows = choose_batch_size(batch, len(splits.validation), device, model.model, shape)
    return Estimate(
        recipe,
        plan,
        only,
        splits,
        prepared.matched,
        str(model.structure.get("architecture", "")),
        sum(t.numel() for t in model.view().values() if t.is_floating_point()),
        image_size=math.prod(shape),
        seconds_per_image=_time_batch(model, device, rows),
        training=training,
        trained=trained,
        device=device.type,
        processes=processes,
        calibration=len(splits.calibration or ()) if "calibration" in splits.digests else 0,
    )


def _time_training(
    recipe: Recipe, names: list[str], model: LoadedModel, splits: Splits, device: torch.device
) -> dict[str, float]:
    """Return the minutes of each parent's training, from one timed step of each kind."""
    timed: dict[str, float] = {}
    minutes = {}
    for name in names:
        settings = recipe.trained[name].train
        kind = json.dumps([settings.optimizer, settings.batch_size])
        if kind not in timed:
            timed[kind] = time_training(model, settings, device)
        rows = len(splits.train) if splits.train else 0
        minutes[name] = settings.epochs * rows * timed[kind] / 60
    return minutes


@torch.inference_mode()
def _time_batch(model: LoadedModel, device: torch.device, rows: int) -> float:
    """Return the seconds per image: the fastest of three batches, after one to warm up."""
    forward = ResidentModel(model.model, device)
    images = torch.zeros(rows, *model.input_shape, device=device).to(
        memory_format=torch.channels_last
    )
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        forward.model(images)
        if is_gpu(device):
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:]) / rows
