"""The recipe's `merge` and `merges` blocks: how models are merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from mega_hf.recipe.fields import Input, Seed, Share, Strict, impossible

# Fixed by `variant: reference`, the code published beside the paper, whatever else the recipe says.
REFERENCE = {"std": 0.1, "scope": "tensor", "relative": False}
SWEEP = 21  # points of a line sweep
# What `method: auto` chooses, and how it stands until then.
_OPEN = {
    "encoding": "direct",
    "granularity": "layer",
    "align": "none",
    "align_to": None,
    "batchnorm": "recalibrate",
}


class Mutation(Strict):
    """Each weight gets N(0, std²) with probability `rate`; `scope: tensor` draws once per
    tensor."""

    rate: Share = 0.02
    std: Annotated[float, Field(ge=0, le=1e6)] = 0.05
    scope: Literal["element", "tensor"] = "element"
    relative: bool = True


class Founders(Strict):
    """The first population: mixtures of the parents and, with `include_parents`, the parents
    themselves."""

    include_parents: bool = True


class Merge(Strict):
    """The genetic algorithm's settings; the defaults are the paper's, where it gives them."""

    FEWEST: ClassVar[int] = 5  # individuals of which an evolution strategy learns a direction
    method: Literal[
        "mega", "cma-es", "auto", "random", "line-sweep", "uniform_soup", "greedy_soup", "choose"
    ] = "mega"
    variant: Literal["default", "reference"] = "default"
    population_size: Annotated[int, Field(ge=2, le=100_000)] = 20
    generations: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    num_mates: Annotated[int, Field(ge=2, le=1000)] = 4
    tournament_size: Annotated[int, Field(ge=1, le=100_000)] = 3
    mutation: Mutation = Mutation()
    founders: Founders = Founders()
    encoding: Literal["direct", "mixing"] = "direct"
    granularity: Literal["model", "stage", "layer", "tensor"] = "layer"  # of mixing
    # channels put beside those of one parent
    align: Literal["none", "weights", "activations"] = "none"
    align_to: Input | None = None  # that parent; the first one listed
    # cross-entropy decides between equals, or nothing
    fitness: Literal["accuracy", "accuracy+loss"] = "accuracy"
    # inputs of `choose` that win unless others are surely better
    prefer: Annotated[int, Field(ge=0, le=100_000)] = 0
    # how a mixture gets its running statistics
    batchnorm: Literal["recalibrate", "blend"] = "recalibrate"
    seed: Seed = 46

    @model_validator(mode="after")
    def _possible(self) -> Merge:
        if self.variant == "reference" and self.encoding != "direct":
            hint = "variant: default, or encoding: direct"
            raise impossible(
                "encoding", "direct: the published code has no other", self.encoding, hint
            )
        if self.variant == "reference" and self.method != "mega":
            raise impossible(
                "method", "mega: the published code has no other", self.method, "variant: default"
            )
        if self.method == "cma-es" and self.encoding != "mixing":
            raise impossible(
                "method", "encoding: mixing, for cma-es", self.encoding, "add encoding: mixing"
            )
        if self.method == "cma-es" and self.population_size < self.FEWEST:
            expected = f"at least {self.FEWEST}, for cma-es"
            raise impossible(
                "population_size", expected, self.population_size, "a larger population_size"
            )
        closed = [key for key, open_value in _OPEN.items() if getattr(self, key) != open_value]
        if self.method == "auto" and closed:
            hint = "leave it out, or take another method"
            raise impossible(
                closed[0], "nothing, since auto chooses it", getattr(self, closed[0]), hint
            )
        if self.align_to is not None and self.align == "none":
            hint = "add align: activations, or leave this out"
            raise impossible("align_to", "align: weights or activations", self.align, hint)
        if self.prefer and self.method != "choose":
            raise impossible("prefer", "method: choose", self.method, "leave it out")
        if self.tournament_size > self.population_size:
            limit = f"at most population_size, {self.population_size}"
            raise impossible(
                "tournament_size", limit, self.tournament_size, "a smaller tournament_size"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _published_code(cls, tree: Any) -> Any:
        """Let `variant: reference` fix what the published code fixes."""
        if (
            isinstance(tree, dict)
            and tree.get("variant") == "reference"
            and isinstance(tree.get("mutation", {}), dict)
        ):
            mutation = {**(tree.get("mutation") or {}), **REFERENCE}
            founders = tree.get("founders") or {}
            founders = (
                {**founders, "include_parents": False} if isinstance(founders, dict) else founders
            )
            return {**tree, "mutation": mutation, "founders": founders}
        return tree

    @property
    def sums_losses(self) -> bool:
        """Whether losses decide between individuals with as many right answers."""
        return self.fitness == "accuracy+loss"

    @property
    def recalibrates(self) -> bool:
        """Whether BatchNorm's statistics, if there are any, are computed anew."""
        return self.batchnorm == "recalibrate"


class Node(Merge):
    """One merge of the tree: what it merges, parents or other nodes, and its settings.

    In a recipe it takes from the shared `merge` block what it does not say itself.
    """

    parents: Annotated[list[Input], Field(min_length=2)]

    @property
    def evaluations(self) -> int:
        """How many individuals are measured, at most."""
        size, count = self.population_size, len(self.parents)
        breeding = size + (self.generations - 1) * (size - 1)  # the elite is known
        # Whoever is best so far has a line in each step of a greedy soup, and is not measured
        # again.
        strategy = 1 + count + max(1, (breeding - 1 - count) // (size - 1)) * (size - 1)
        other = {
            "line-sweep": SWEEP,
            "uniform_soup": 1,
            "greedy_soup": 3 * count - 2,
            "choose": count,
            "cma-es": strategy,
        }
        return other.get(self.method, breeding)

    @property
    def founders_count(self) -> int:
        """How many of them are in the first generation."""
        count, sweep = len(self.parents), min(SWEEP, self.population_size)
        other = {"line-sweep": sweep, "uniform_soup": 1, "greedy_soup": count, "choose": count}
        other |= {"cma-es": 1 + count}
        return other.get(self.method, self.population_size)

    @property
    def settings(self) -> dict[str, Any]:
        """The genetic algorithm's settings as plain values."""
        return self.model_dump(mode="json", exclude={"parents"})


_AnyMerge = TypeVar("_AnyMerge", bound=Merge)


def apply_auto(merge: _AnyMerge, chosen: Mapping[str, str]) -> _AnyMerge:
    """Return a merge's settings with what was chosen in the place of `method: auto`."""
    return merge.model_copy(update=dict(chosen)) if merge.method == "auto" else merge


def inputs_of(nodes: Mapping[str, Node]) -> dict[str, list[str]]:
    """Return what each node merges: the tree by names alone."""
    return {name: node.parents for name, node in nodes.items()}
