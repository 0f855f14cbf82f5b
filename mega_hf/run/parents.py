"""Open the parents of a run, check them against each other, and rank them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mega_hf.errors import ParentError
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Examples, ResidentModel
from mega_hf.evaluation.row_difficulty import RowDifficulty, cache_key
from mega_hf.models.compatibility import check_distinct, check_layouts, check_values
from mega_hf.models.load import open_model, try_model
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.merge_inputs import ModelSource, is_recalibrated
from mega_hf.models.references import LoadedParent, ParentInfo, open_parent
from mega_hf.models.save import layout_digest
from mega_hf.models.timm_models import open_weights
from mega_hf.recipe.merge import Merge
from mega_hf.recipe.parents import ParentRef, WeightsParent
from mega_hf.recipe.placeholders import existing
from mega_hf.run.journal import Journal
from mega_hf.runtime.environment import trim
from mega_hf.runtime.processes import Processes
from mega_hf.tasks.image_classification import match_classes
from mega_hf.tasks.splits import Splits
from mega_hf.weights.batchnorm import statistics_names


@dataclass
class ParentSet:
    """The parents of a run, each checked against the first one.

    Only the first parent's model stays in memory; a merge reads the others again.

    Attributes:
        splits: the splits, whose classes every parent must know.
        identities: name -> digest, source and license.
        sources: name -> the parent as an input of a merge.
        pinned: name -> the reference with its revision pinned.
        first: the first parent that was added.
        mapping: for each class of the data set, the models' output.
        matched: how classes were matched, in words.
    """

    splits: Splits
    identities: dict[str, ParentInfo] = field(default_factory=dict)
    sources: dict[str, ModelSource] = field(default_factory=dict)
    pinned: dict[str, ParentRef] = field(default_factory=dict)
    first: LoadedParent | None = None
    mapping: list[int] = field(default_factory=list)
    matched: str = ""

    def add_parent(self, name: str, reference: ParentRef, trained: Path | None = None) -> None:
        """Open one parent and check it.

        Args:
            name: its name in the recipe, `NAME@EPOCH` for a snapshot.
            reference: its entry in the recipe.
            trained: the folder of its weights, if it was trained here.

        Raises:
            ParentError: the parent can't be read, or can't be merged with the others.
            DataError: the parent lacks a class of the data set.
        """
        opened = open_parent(name, reference, trained)
        if self.first is None:
            try_model(opened.model, name)  # the others must have the same architecture
        self.first = self.first or opened
        self.mapping, self.matched = self.check_compatible({name: opened.model})
        check_values(self.first, opened)  # the first one against itself: for non-finite weights
        self.identities[name], self.pinned[name] = opened.parent, opened.reference
        model = opened.model
        load = _opener(name, reference, model.folder)
        self.sources[name] = ModelSource(
            name, opened.parent.sha256, layout_digest(model), load, model.files
        )
        check_distinct(self.identities.values())

    def check_compatible(self, models: dict[str, LoadedModel]) -> tuple[list[int], str]:
        """Check models, by name, against the first parent and each other, as `check_mergeable`."""
        first = {self.first.parent.name: self.first.model} if self.first else {}
        return check_mergeable({**first, **models}, self.splits)

    @property
    def model(self) -> LoadedModel:
        """The first parent's model."""
        assert self.first is not None, "a run has parents"
        return self.first.model

    def release(self, was_compiled: bool) -> None:
        """Free the first parent's weights, once no search needs them."""
        self.model.model.to("meta")
        if was_compiled:
            torch.compiler.reset()  # compiled code holds the weights too
        trim()


def check_mergeable(models: dict[str, LoadedModel], splits: Splits) -> tuple[list[int], str]:
    """Check that models, by name, can be merged for a data set, whatever their weights.

    Returns:
        for each class of the data set the models' output, and how classes were matched, in words.

    Raises:
        ParentError: layouts or the order of classes differ.
        DataError: a model lacks a class of the data set.
    """
    check_layouts(models)
    matches = {
        name: match_classes(model.labels, model.num_classes, splits.class_names, splits.classes)
        for name, model in models.items()
    }
    first = next(iter(matches))
    for name in matches:
        if matches[name][0] != matches[first][0]:
            expected, got = (
                f"{matches[n][0]} ({n}, matched {matches[n][1]})" for n in (first, name)
            )
            raise ParentError(
                f"{first} and {name} have their classes in a different order",
                expected=expected,
                got=got,
                hint="use the class names of the data set in the parents' config.json"
                " (label_names)",
            )
    return matches[first]


def _opener(name: str, reference: ParentRef, folder: Path | None) -> Callable[[], LoadedModel]:
    if folder is not None:
        return partial(open_model, folder, name)
    assert isinstance(reference, WeightsParent), "all other parents are folders"
    return partial(
        open_weights,
        reference.arch,
        Path(existing(reference.weights)),
        reference.num_classes,
        reference.arch_args,
        name,
        reference.data_config,
    )


def rank(
    parents: ParentSet,
    journal: Journal,
    forward: ResidentModel,
    validation: Examples,
    processes: Processes,
    context: list[Any],
    memory: RowDifficulty,
    calibration: Calibration | None,
) -> list[str]:
    """Return the parents from best to worst on validation (ties: first listed); measured once, then
    in the journal.

    Args:
        parents: what is ranked.
        journal: keeps the ranking, under the digest of parents and context.
        forward: the resident model.
        validation: the rows.
        processes: who takes part.
        context: what decides a count beside the weights.
        memory: learns the counts: merges don't measure these parents again.
        calibration: what each is recalibrated on first, as the merges will be.
    """
    context = [*context, *(calibration.key if calibration else ())]
    names = list(parents.sources)
    contents = {name: source.sha256 for name, source in parents.sources.items()}
    known = {name: cache_key(sha256, calibration is not None) for name, sha256 in contents.items()}
    key = hashlib.sha256(json.dumps([contents, context]).encode()).hexdigest()
    if journal.order is not None and journal.order["key"] == key:
        _remember(journal.order["correct"], known, memory)
        return journal.order["ranking"]

    def measure(i: int) -> list[int]:
        """Count one parent's right answers."""
        state = parents.sources[names[i]].map()
        forward.write(state.items())
        if calibration:
            calibration.recalibrate(
                forward, {name: state[name].dtype for name in statistics_names(forward.model)}
            )
        correct = forward.count(validation)
        return [-1 if correct is None else correct]

    counted = processes.share(len(names), 1, measure)[:, 0].tolist()
    ranking = [names[i] for i in sorted(range(len(names)), key=lambda i: -counted[i])]
    correct = dict(zip(names, counted, strict=True))
    _remember(correct, known, memory)
    if processes.is_main:
        journal.append(
            {
                "kind": "order",
                "key": key,
                "ranking": ranking,
                "correct": correct,
                "n": validation.count,
            }
        )
    return ranking


def _remember(correct: dict[str, int], known: dict[str, str], memory: RowDifficulty) -> None:
    for name, key in known.items():
        memory.keep(key, correct[name] if correct[name] >= 0 else None)


def needs_calibration(nodes: Iterable[Merge], model: nn.Module) -> bool:
    """Return whether merges need images beside the validation images."""
    return any(node.align == "activations" or is_recalibrated(node, model) for node in nodes)
