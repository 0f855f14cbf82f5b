"""The parents of a run: found, checked against each other, ranked; their weights are held one at a
time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mega_hf.errors import ParentError
from mega_hf.evaluation.aligner import check_alignable
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Examples, ResidentModel
from mega_hf.evaluation.row_difficulty import RowDifficulty, cache_key
from mega_hf.models.compatibility import check_distinct, check_layouts, check_values
from mega_hf.models.load import open_model, try_model
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.merge_inputs import ModelSource, is_recalibrated
from mega_hf.models.references import LoadedParent, ParentInfo, open_parent, resolve
from mega_hf.models.save import layout_digest
from mega_hf.models.timm_models import open_weights
from mega_hf.recipe.merge import Merge
from mega_hf.recipe.parents import ParentRef, WeightsParent
from mega_hf.recipe.paths import is_local
from mega_hf.recipe.schema import Recipe
from mega_hf.recipe.tree import parent_name
from mega_hf.run.journal import Journal
from mega_hf.runtime.environment import trim
from mega_hf.runtime.processes import Processes
from mega_hf.tasks.image_classification import match_classes
from mega_hf.tasks.splits import Splits, add_calibration
from mega_hf.weights.batchnorm import statistics_names


@dataclass
class ParentSet:
    """The parents that a run merges, each checked against the first; weights are read again where
    they are needed.

    Attributes:
        splits: whose classes they must know.
        identities: name -> what it is and where it came from.
        sources: name -> how a merge opens it.
        pinned: name -> its reference, the revision pinned.
        first: the first that was admitted, whose model stays in memory.
        mapping: for each class of the data set the models' output.
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

        Raises:
            ParentError: it can't be read, or can't be merged with the others.
            DataError: it lacks a class of the data set.
        """
        opened = open_parent(name, reference, trained)
        if self.first is None:
            try_model(opened.model, name)  # the others are refused unless they are as it is
        self.first = self.first or opened
        self.mapping, self.matched = self.expect({name: opened.model})
        check_values(self.first, opened)  # of the first itself: weights that are not finite
        self.identities[name], self.pinned[name] = opened.parent, opened.reference
        model = opened.model
        load = _opener(name, reference, model.folder)
        self.sources[name] = ModelSource(
            name, opened.parent.sha256, layout_digest(model), load, model.files
        )
        check_distinct(self.identities.values())

    def expect(self, models: dict[str, LoadedModel]) -> tuple[list[int], str]:
        """Check models, by name, against the first parent and each other, whatever their weights;
        as `refuse_unlike`.

        Raises:
            MegaError: they can't be merged.
        """
        first = {self.first.parent.name: self.first.model} if self.first else {}
        return check_mergeable({**first, **models}, self.splits)

    @property
    def model(self) -> LoadedModel:
        """The first parent's model."""
        assert self.first is not None, "a run has parents"
        return self.first.model

    def release(self, was_compiled: bool) -> None:
        """Give up the first parent's weights, once no search needs them: others are read where they
        are needed."""
        self.model.model.to("meta")
        if was_compiled:
            torch.compiler.reset()  # what was compiled holds them too
        trim()


def check_mergeable(models: dict[str, LoadedModel], splits: Splits) -> tuple[list[int], str]:
    """Raise MegaError unless all models, by name, can be merged for this data set; their weights
    are not looked at.

    Returns:
        for each class of the data set the models' output, and how classes were matched, in words.
    """
    check_layouts(models)
    names, classes = splits.class_names, splits.classes
    found = {
        name: match_classes(one.labels, one.num_classes, names, classes)
        for name, one in models.items()
    }
    first = next(iter(found))
    for name in found:
        if found[name][0] != found[first][0]:
            expected, got = (
                f"{found[one][0]} ({one}, matched {found[one][1]})" for one in (first, name)
            )
            raise ParentError(
                f"{first} and {name} number the classes otherwise",
                expected=expected,
                got=got,
                hint=(
                    "give the parents the class names of the data set (label_names in config.json)"
                ),
            )
    return found[first]


def _opener(name: str, reference: ParentRef, folder: Path | None) -> Callable[[], LoadedModel]:
    if folder is not None:
        return partial(open_model, folder, name)
    # its user loads it into the architecture
    assert isinstance(reference, WeightsParent), "all others are folders"
    one = reference
    return partial(
        open_weights,
        one.arch,
        Path(one.weights),
        one.num_classes,
        one.arch_args,
        name,
        one.data_config,
    )


def pin(recipe: Recipe, opened: dict[str, ParentRef], trained: Sequence[str]) -> Recipe:
    """Return the recipe with revisions pinned: of the parents opened, and of what others are
    trained from."""
    parents = recipe.parents | opened
    for name in trained:
        parent = recipe.trained[name]
        source = parent.train.source
        reference = parents.get(source, source) if source else None
        if not isinstance(reference, str) or is_local(reference) or source in opened:
            continue
        if source in parents:
            parents[source] = resolve(reference, source, only_configuration=True)[1]
        elif source not in recipe.usable:
            pinned = resolve(reference, name, only_configuration=True)[1]
            parents[name] = parent.model_copy(
                update={"train": parent.train.model_copy(update={"source": pinned})}
            )
    return recipe.model_copy(update={"parents": parents})


def trained_for(recipe: Recipe, leaves: Sequence[str]) -> list[str]:
    """Return the parents that must be trained so that `leaves` are there, in the recipe's order."""
    wanted: set[str] = set()
    waiting = [parent_name(leaf) for leaf in leaves]
    while waiting:
        name = waiting.pop()
        if name in recipe.trained and name not in wanted:
            wanted.add(name)
            source = recipe.trained[name].train.source
            waiting += [parent_name(source)] if source in recipe.usable else []
    return [name for name in recipe.trained if name in wanted]


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


def prepared(recipe: Recipe, splits: Splits, parent: LoadedModel) -> Splits:
    """See that parents of a kind can be treated as their merges ask; return splits with the rows
    for that.

    Raises:
        DataError: there are none.
        ParentError: the model can't be aligned.
    """
    nodes = recipe.nodes().values()
    check_alignable(
        nodes, parent.model, parent.input_shape, parent.structure.get("architecture", "model")
    )
    wanted = needs_calibration(nodes, parent.model)
    if recipe.is_auto:  # what is there may be used; what is not is no error
        wanted = splits.calibration is not None and len(splits.calibration) > 1
    return add_calibration(splits) if wanted else splits


def needs_calibration(nodes: Iterable[Merge], model: nn.Module) -> bool:
    """Say whether merges need pictures beside those that individuals are measured on."""
    return any(node.align == "activations" or is_recalibrated(node, model) for node in nodes)
