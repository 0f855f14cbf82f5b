"""Open the parents of a run, check them against each other, and rank them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from mega_hf.errors import ParentError
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
from mega_hf.runtime.environment import trim
from mega_hf.tasks.image_classification import match_classes
from mega_hf.tasks.splits import Splits


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
        self.sources[name] = source_of(name, reference, opened)
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


def source_of(name: str, reference: ParentRef, opened: LoadedParent) -> ModelSource:
    """Return an opened parent as an input of merges, which read it again from its files.

    Args:
        name: its name in the recipe, `NAME@EPOCH` for a snapshot.
        reference: what it was opened by.
        opened: the parent.
    """
    model = opened.model
    load = _opener(name, reference, model.folder)
    source = ModelSource(name, opened.parent.sha256, layout_digest(model), load)
    source.accept(model)
    return source


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


def needs_calibration(nodes: Iterable[Merge], model: nn.Module) -> bool:
    """Return whether merges need images beside the validation images."""
    return any(node.align == "activations" or is_recalibrated(node, model) for node in nodes)
