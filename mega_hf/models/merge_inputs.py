"""The inputs of a merge: memory-mapped models, their weight space, and the encoding."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from mega_hf.errors import RunError
from mega_hf.models.loaded import LoadedModel
from mega_hf.recipe.merge import Merge, Node
from mega_hf.runtime.environment import trim
from mega_hf.runtime.files import FileStamp, file_stamps
from mega_hf.weights.batchnorm import statistics_names
from mega_hf.weights.encoding import Direct, Encoding, Mixing
from mega_hf.weights.mapped import is_mapped, map_copy, map_files
from mega_hf.weights.space import StateDict, WeightSpace, build_space, digest


@dataclass
class ModelSource:
    """A parent or a merged model as an input of a merge; its weights stay on the disk.

    The weights are hashed when they are first read, and again only if their files were changed.
    """

    name: str
    sha256: str  # of its state dict
    layout: str  # the digest of what a merge takes from it beside weights, if it is the first
    load: Callable[[], LoadedModel]
    _stamps: tuple[FileStamp, ...] | None = None  # the files when their content was last verified
    _is_mappable: bool = False  # whether the files hold the state dict just as it is
    _part_digests: dict[tuple[str, ...], str] = field(default_factory=dict)

    def open(self) -> LoadedModel:
        """Load the model.

        Raises:
            RunError: its weights have changed since it was identified.
        """
        model = self.load()
        if not model.stamps or model.stamps != self._stamps:
            found = digest(model.view())
            if found != self.sha256:
                raise RunError(
                    f"{self.name} was changed during the run",
                    expected=f"weights {self.sha256[:12]}",
                    got=f"weights {found[:12]}",
                    hint="run the same command again when nothing else writes to its files",
                )
            self.accept(model)
        return model

    def accept(self, model: LoadedModel) -> None:
        """Remember the files of a loaded model whose weights have this source's digest."""
        self._stamps = model.stamps
        self._is_mappable = is_mapped(map_files([file for file, *_ in model.stamps]), model.view())
        self._part_digests.clear()

    def map(self) -> StateDict:
        """Return the state dict, mapped from its files, or from a copy if they name it differently.

        Raises:
            RunError: as `open`.
        """
        if self._is_unchanged() and self._is_mappable:
            return map_files([file for file, *_ in self._stamps or ()])
        model = self.open()
        if self._is_mappable:
            return map_files([file for file, *_ in model.stamps])
        return map_copy(model.view())

    def digest_without(self, state: StateDict, names: Container[str]) -> str:
        """Return the digest of the mapped state dict without some entries, computed once."""
        kept = tuple(name for name in state if name not in names)
        if kept not in self._part_digests:
            self._part_digests[kept] = digest({name: state[name] for name in kept})
        return self._part_digests[kept]

    def _is_unchanged(self) -> bool:
        try:
            return file_stamps(file for file, *_ in self._stamps or ()) == self._stamps
        except OSError:
            return False


@dataclass(frozen=True)
class MergeInputs:
    """The models that a merge mixes; their weights stay on the disk."""

    first: LoadedModel  # gives the merged model its configuration; its weights are on `meta`
    space: WeightSpace
    states: dict[str, StateDict]
    contents: list[str]  # digests of the states, without statistics that are recomputed
    moved: frozenset[str] = frozenset()  # parents whose channels were permuted


def open_inputs(sources: Mapping[str, ModelSource], recalibrates: bool = False) -> MergeInputs:
    """Map the weights of some models and build their weight space.

    Args:
        sources: the models.
        recalibrates: whether BatchNorm's statistics are recomputed for each mixture, and so are
            not mixed.

    Raises:
        RunError: the weights of a model have changed since it was identified.
        ParentError: the models can't be mixed.
    """
    model = next(iter(sources.values())).open()
    learned = model.learned()
    tied = model.tied()
    order = {name: i for i, name in enumerate(model.view())}
    recomputed = statistics_names(model.model) if recalibrates else []
    model.model.to("meta")  # the mapped weights are used instead
    trim()
    states = {name: _arrange(source.map(), order) for name, source in sources.items()}
    space = build_space(states, learned, tied, recomputed)
    contents = {name: source.sha256 for name, source in sources.items()}
    if recomputed:
        contents = {
            name: source.digest_without(states[name], space.recomputed)
            for name, source in sources.items()
        }
    return MergeInputs(model, space, states, list(contents.values()))


def is_recalibrated(settings: Merge, model: nn.Module) -> bool:
    """Return whether a merge recomputes BatchNorm's statistics, and its model has any."""
    return settings.recalibrates and bool(statistics_names(model))


def digest_without(state: StateDict, names: Container[str]) -> str:
    """Return the digest of a state dict but for some entries."""
    return digest({name: tensor for name, tensor in state.items() if name not in names})


def _arrange(state: StateDict, order: Mapping[str, int]) -> StateDict:
    """Return a state dict in the model's order, which is that of genes; files have another one."""
    return dict(sorted(state.items(), key=lambda entry: order.get(entry[0], len(order))))


def encode(inputs: MergeInputs, settings: Merge) -> Encoding:
    """Return the encoding of a merge: how genomes become weights."""
    if settings.encoding == "mixing":
        return Mixing(
            inputs.space, list(inputs.states.values()), settings.granularity, inputs.contents
        )
    vectors = torch.empty(len(inputs.states), inputs.space.size)
    for vector, state in zip(vectors, inputs.states.values(), strict=True):
        inputs.space.pack(state, out=vector)
    return Direct(inputs.space, vectors)


def genomes_bytes(settings: Node, parents: int, weights: int) -> int:
    """Return how many bytes the genomes of a search take at most.

    Directly encoded, these are copies of the weights in float32: parents, population, mates, the
    best individual and the next child. Mixing coefficients are small.
    """
    if settings.encoding == "mixing":
        return 0
    mates = 0
    if settings.method == "mega":
        is_default = settings.variant == "default"
        mates = settings.num_mates if is_default else settings.population_size
    return 4 * weights * (parents + settings.founders_count + mates + 2)
