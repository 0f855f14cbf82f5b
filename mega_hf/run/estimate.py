"""What a run would cost, before anything is made: parents, splits, the tree of merges, memory,
minutes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mega_hf.evaluation.batch_size import choose_batch_size
from mega_hf.evaluation.forward import ResidentModel
from mega_hf.models.load import try_model
from mega_hf.models.merge_inputs import genomes_bytes
from mega_hf.models.timm_models import LoadedModel
from mega_hf.recipe import tree
from mega_hf.recipe.baselines import SECOND_LOOK
from mega_hf.recipe.merge import Node, inputs_of
from mega_hf.recipe.schema import Recipe
from mega_hf.recipe.tree import parent_name
from mega_hf.run.candidates import BASELINES, ENSEMBLE
from mega_hf.run.prepare import prepare
from mega_hf.runtime.environment import keep_freed_memory
from mega_hf.runtime.processes import Processes, is_gpu
from mega_hf.tasks.splits import Splits
from mega_hf.training.train import is_trained, training_levels
from mega_hf.training.trainer import time_training


@dataclass(frozen=True)
class Estimate:
    """A run's cost; `str` is what --dry-run prints."""

    recipe: Recipe
    nodes: dict[str, Node]  # those that would be run, each after those that it needs
    splits: Splits
    matched: str
    architecture: str
    weights: int  # numbers in one individual
    picture: int  # numbers in one picture
    seconds_a_picture: float
    training: dict[str, float]  # minutes for each parent that would be trained
    trained: dict[str, Path]  # parents that were trained before -> where they lie
    device: str
    processes: int
    only: str | None  # the node, if it is a part of the tree that would be run
    # rows on which BatchNorm's statistics would be computed, for each individual
    calibration: int = 0
    # baselines that would be searched for, and a second look
    beside: Mapping[str, Node] = field(default_factory=dict)
    runs: int = 1  # that would be made, each from a seed of its own

    @property
    def leaves(self) -> list[str]:
        """The parents that are merged."""
        return tree.leaves_of(inputs_of(self.nodes), next(reversed(self.nodes)))

    @property
    def memory_bytes(self) -> int:
        """Of a process, in the stage that needs most: models, genomes, and pictures ready to use.

        Two models: the one that is measured, and one that is made, or saved. What a batch's
            activations take comes on
        top, and so do the parents of a merge by coefficients, which are mapped from the disk.
        """
        splits, models = self.splits, 2 * 4 * self.weights
        train, validation, test = (
            4 * self.picture * len(s or ()) for s in (splits.train, splits.validation, splits.test)
        )
        stages = [2 * models + train] if self.training else []  # weights, gradients, two moments
        calibration = 4 * self.picture * self.calibration
        stages += [
            models + self._genomes(node) + validation + calibration for node in self._searches
        ]
        stages += [models + validation + test + calibration] if self.only is None else []
        return max(stages)

    @property
    def _searches(self) -> list[Node]:
        return [*self.nodes.values(), *self.beside.values()]

    def _genomes(self, node: Node) -> int:
        return genomes_bytes(node, len(node.parents), self.weights)

    @property
    def mapped_bytes(self) -> int:
        """The parents of a merge by coefficients, in the node that needs most: read from the disk
        again and again."""
        counts = [len(node.parents) for node in self._searches if node.encoding == "mixing"]
        return 4 * self.weights * max(counts, default=0)

    def node_minutes(self, node: Node) -> float:
        """One merge's search, all processes at work."""
        shares = math.ceil(node.founders_count / self.processes) / node.founders_count
        rows = (
            self.splits.second_look
            if node is self.beside.get(SECOND_LOOK)
            else self.splits.validation
        )
        examples = len(rows or ()) + (self.calibration if node.recalibrates else 0)
        return node.evaluations * examples * shares * self.seconds_a_picture / 60

    @property
    def training_minutes(self) -> float:
        """Training, each parent by one process, several side by side; what starts from others waits
        for them."""
        total = 0.0
        for level in training_levels(self.recipe, self.training):
            shares = [level[rank :: self.processes] for rank in range(self.processes)]
            total += max(sum(self.training[name] for name in share) for share in shares)
        return total

    @property
    def minutes(self) -> float:
        """Training, search and report, without loading and downloads."""
        validation, test = len(self.splits.validation), len(self.splits.test)
        root, leaves = next(reversed(self.nodes.values())), len(self.leaves)
        calibration = self.calibration if root.recalibrates else 0
        measured = leaves * (2 if calibration else 1) + len(self._searches) + len(BASELINES)
        measured += leaves if ENSEMBLE in self.recipe.baselines else 0
        examples = (
            math.ceil(measured / self.processes) * (validation + test)
            + (leaves + len(BASELINES)) * calibration
        )
        examples = examples if self.only is None else 0
        if self.recipe.order == "accuracy":
            examples += math.ceil(len(self.recipe.parents) / self.processes) * validation
        searches = sum(map(self.node_minutes, self._searches))
        return self.training_minutes + searches + examples * self.seconds_a_picture / 60

    @property
    def total_minutes(self) -> float:
        """All runs; parents are trained once."""
        return self.runs * self.minutes - (self.runs - 1) * self.training_minutes

    def _tree(self) -> list[str]:
        notes = {
            name: f"{n.evaluations:,} evaluations, {_about(self.node_minutes(n))}"
            for name, n in self.nodes.items()
        }
        for leaf in self.leaves:
            if parent_name(leaf) in self.trained:
                notes[leaf] = f"trained already: {self.trained[parent_name(leaf)].parent / leaf}"
            elif parent_name(leaf) in self.training:
                here = f"trained here, {_about(self.training[parent_name(leaf)])}"
                notes[leaf] = here if leaf == parent_name(leaf) else "snapshot"
            else:
                notes[leaf] = str(self.recipe.to_dict()["parents"][leaf])
        drawn = tree.render_tree(inputs_of(self.nodes), next(reversed(self.nodes)), notes)
        return [f"tree         {drawn[0]}", *(f"             {line}" for line in drawn[1:])]

    def _built(self) -> str:
        grains = {
            node.granularity: None for node in self.nodes.values() if node.encoding == "mixing"
        }
        return (
            f", built from each parent's coefficients, by {' or '.join(grains)}" if grains else ""
        )

    def _beside(self) -> list[str]:
        """Say what the final merge would be held against."""
        searched = [
            f"{name} {node.evaluations:,}"
            for name, node in self.beside.items()
            if name != SECOND_LOOK
        ]
        lines = [f"baselines    {', '.join(searched)} evaluations"] if searched else []
        if self.beside and "line-sweep" in self.recipe.baselines and len(self.leaves) != 2:
            lines += ["             no line-sweep, which takes two parents"]
        look, rows = self.beside.get(SECOND_LOOK), self.splits.second_look
        if look is not None and rows is not None:
            between = f"to choose between {len(look.parents)} models"
            lines += [f"second look  {len(rows):,} of the validation rows, {between}"]
        return lines

    def __str__(self) -> str:
        splits, nodes = self.splits, self.nodes.values()
        lines = [
            f"recipe       {self.recipe.name}",
            *self._tree(),
            f"architecture {self.architecture}, {self.weights:,} numbers an individual"
            + self._built(),
            f"validation   {splits.validation.spec}: {len(splits.validation):,} rows",
            f"test         {splits.test.spec}: {len(splits.test):,} rows, "
            + (
                "read once after the search"
                if self.only is None
                else "not read before the whole tree is run"
            ),
            *(
                [f"calibration  {splits.calibration.spec}"]
                if self.calibration and splits.calibration
                else []
            ),
            f"classes      {splits.classes}, matched {self.matched}",
            (
                f"evaluations  {sum(node.evaluations for node in nodes):,} in"
                f" {_count(len(nodes), 'merge')}"
            ),
            *self._beside(),
            f"memory       {_mib(self.memory_bytes)} a process for two models, pictures, and"
            f" {_mib(max(map(self._genomes, self._searches)))} of genomes; a batch's activations"
            " come on top"
            + (
                f"; {_mib(self.mapped_bytes)} of parents mapped from the disk"
                if self.mapped_bytes
                else ""
            ),
        ]
        if self.training:
            rows = len(splits.train) if splits.train else 0
            trained = f"{_count(len(self.training), 'parent')} on {rows:,} rows"
            lines += [f"training     {trained}: {_about(self.training_minutes)} of the time below"]
        lines += [
            f"time         {_about(self.minutes)} on {self.processes} x {self.device}"
            f" ({1000 * self.seconds_a_picture:.2f} ms a picture, one batch timed on random"
            " weights), all rows for every individual: losers see fewer, and a long search is"
            " compiled"
        ]
        if self.runs > 1:
            lines += [f"runs         {self.runs}, one a seed, {_about(self.total_minutes)} in all"]
        if self.recipe.is_auto:
            lines += [
                "method       auto: chosen once the parents are measured; reckoned as if it were"
                " mega"
            ]
        if self.recipe.order == "accuracy":
            lines += [
                "order        by validation accuracy: who is paired with whom is known once they"
                " are measured"
            ]
        return "\n".join(
            [*lines, *(f"note         {notice}" for notice in splits.notices), "Nothing was made."]
        )


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
) -> Estimate:
    """Check parents, splits and classes, and time one batch; nothing is made. Weights are read only
    of what parents were trained from that lie in `kept`, to see whether they would be trained so
    again.

    Args:
        recipe: what to do.
        processes: how many would share the work.
        only: the one node that would be run, with what it needs.
        kept: where trained parents may lie already.
        update: whether those that were trained otherwise would be trained again.

    Raises:
        MegaError: what would have ended the merge before its search.
    """
    nodes, leaves = recipe.chosen_nodes(only), recipe.leaves(only)
    prepared = prepare(recipe, leaves, kept, update, dry_run=True)
    splits, model, to_train = prepared.splits, prepared.model, prepared.to_train
    try_model(model, leaves[0])
    calibration = len(splits.calibration or ()) if "calibration" in splits.digests else 0
    device = Processes().device
    trained = {
        name: kept / name
        for name, key in prepared.keys.items()
        if kept is not None and is_trained(prepared.recipe, kept, {name: key})
    }
    training = _train(
        recipe, [name for name in to_train if name not in trained], model, splits, device
    )
    batch, shape = recipe.evaluation.batch_size, model.input_shape
    rows = choose_batch_size(batch, len(splits.validation), device, model.model, shape)
    numbers = sum(t.numel() for t in model.view().values() if t.is_floating_point())
    beside = (
        {}
        if only
        else {name: node for name, node in recipe.all_nodes().items() if name not in nodes}
    )
    return Estimate(
        recipe,
        nodes,
        splits,
        prepared.matched,
        str(model.structure.get("architecture", "")),
        numbers,
        picture=math.prod(shape),
        seconds_a_picture=_time_batch(model, device, rows),
        training=training,
        trained=trained,
        device=device.type,
        processes=processes,
        only=only,
        calibration=calibration,
        beside=beside,
    )


def _train(
    recipe: Recipe, names: list[str], model: LoadedModel, splits: Splits, device: torch.device
) -> dict[str, float]:
    """Return the minutes that each parent's training would take, one step of each kind timed."""
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
    """Return seconds a picture: the fastest of three batches, after one to warm up."""
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
