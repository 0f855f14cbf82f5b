"""The recipe's `merge` and `merges` blocks: how models are merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from mega_hf.recipe.fields import Input, Seed, Share, Strict, invalid

# `variant: reference` fixes these, as in the code published beside the paper.
REFERENCE = {"std": 0.1, "scope": "tensor", "relative": False}
SWEEP = 21  # points of a line sweep
MIN_CMA_ES = 5  # individuals from which an evolution strategy can learn a direction
# the keys that `method: auto` chooses, and their values until then
_AUTO_KEYS = {
    "encoding": "direct",
    "granularity": "layer",
    "align": "none",
    "align_to": None,
    "batchnorm": "recalibrate",
}


class Mutation(Strict):
    """Gaussian noise that is added to a child's genome (paper, section 3.2)."""

    rate: Share = Field(
        default=0.02, description="Probability that a weight or coefficient is mutated."
    )
    std: float = Field(default=0.05, ge=0, le=1e6, description="Standard deviation of the noise.")
    scope: Literal["element", "tensor"] = Field(
        default="element", description="What `rate` decides for: each number, or each whole tensor."
    )
    relative: bool = Field(
        default=True, description="Multiply `std` by the standard deviation of the tensor."
    )


class Founders(Strict):
    """The first generation: random mixtures of the parents."""

    include_parents: bool = Field(
        default=True, description="Put the parents themselves in the first generation."
    )


class Merge(Strict):
    """How models are merged."""

    method: Literal[
        "mega", "cma-es", "auto", "random", "line-sweep", "uniform_soup", "greedy_soup", "choose"
    ] = Field(
        default="mega",
        description="Search or merge method, see [methods](methods.md#search-methods). `cma-es`"
        " needs `encoding: mixing`; `line-sweep` needs two parents.",
    )
    variant: Literal["default", "reference"] = Field(
        default="default",
        description="`reference`: tournaments, mutation and founders as in the code published"
        " beside the paper; only for `mega` with `encoding: direct`.",
    )
    population_size: int = Field(
        default=20, ge=2, le=100_000, description="Individuals in a generation (the paper's N)."
    )
    generations: int = Field(
        default=20, ge=1, le=1_000_000, description="Generations, the first one included (G)."
    )
    num_mates: int = Field(
        default=4,
        ge=2,
        le=1000,
        description="Tournament winners that breed the next generation (K).",
    )
    tournament_size: int = Field(
        default=3,
        ge=1,
        le=100_000,
        description="Individuals in a tournament (t), at most `population_size`.",
    )
    mutation: Mutation = Field(default=Mutation(), description="Noise that is added to each child.")
    founders: Founders = Field(default=Founders(), description="The first generation.")
    encoding: Literal["direct", "mixing"] = Field(
        default="direct",
        description="What a genome is. `direct`: all weights, as in the paper. `mixing`: a few"
        " coefficients, how much of each parent goes into each part of the model.",
    )
    granularity: Literal["model", "stage", "layer", "tensor"] = Field(
        default="layer",
        description="The part of the model that has its own coefficients in `mixing`.",
    )
    align: Literal["none", "weights", "activations"] = Field(
        default="none",
        description="Permute the channels of each parent so that they match those of one parent,"
        " compared by weights or by activations.",
    )
    align_to: Input | None = Field(
        default=None,
        description="Parent that the others are aligned to. `null`: the first one.",
    )
    fitness: Literal["accuracy", "accuracy+loss"] = Field(
        default="accuracy",
        description="`accuracy+loss`: the smaller cross-entropy decides between individuals with"
        " equally many correct answers.",
    )
    prefer: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="For `method: choose`: the first N parents of the merge are preferred: the best"
        " of them wins unless another parent is better by more than one standard error.",
    )
    batchnorm: Literal["recalibrate", "blend"] = Field(
        default="recalibrate",
        description="BatchNorm statistics of a mixture. `recalibrate`: recomputed on"
        " `data.calibration`. `blend`: mixed like weights, as in the paper.",
    )
    seed: Seed = Field(default=46, description="Seed of all random draws of the search.")

    @model_validator(mode="after")
    def _check_consistent(self) -> Merge:
        if self.variant == "reference" and self.encoding != "direct":
            expected = "direct, the only encoding of variant: reference"
            hint = "use variant: default, or encoding: direct"
            raise invalid("encoding", expected, self.encoding, hint)
        if self.variant == "reference" and self.method != "mega":
            expected = "mega, the only method of variant: reference"
            raise invalid("method", expected, self.method, "use variant: default")
        if self.method == "cma-es" and self.encoding != "mixing":
            expected = "encoding: mixing, for cma-es"
            raise invalid("method", expected, self.encoding, "add encoding: mixing")
        if self.method == "cma-es" and self.population_size < MIN_CMA_ES:
            expected, hint = f"at least {MIN_CMA_ES}, for cma-es", "use a larger population_size"
            raise invalid("population_size", expected, self.population_size, hint)
        given = [key for key, value in _AUTO_KEYS.items() if getattr(self, key) != value]
        if self.method == "auto" and given:
            hint = "leave this key out, or use another method"
            raise invalid(given[0], "nothing, since auto chooses it", getattr(self, given[0]), hint)
        if self.align_to is not None and self.align == "none":
            hint = "add align: activations, or leave align_to out"
            raise invalid("align_to", "align: weights or activations", self.align, hint)
        if self.prefer and self.method != "choose":
            raise invalid("prefer", "method: choose", self.method, "leave prefer out")
        if self.tournament_size > self.population_size:
            expected = f"at most population_size, which is {self.population_size}"
            hint = "use a smaller tournament_size"
            raise invalid("tournament_size", expected, self.tournament_size, hint)
        return self

    @model_validator(mode="before")
    @classmethod
    def _apply_reference(cls, tree: Any) -> Any:
        """Set what `variant: reference` fixes."""
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
        """Whether losses decide between individuals with equally many correct answers."""
        return self.fitness == "accuracy+loss"

    @property
    def recalibrates(self) -> bool:
        """Whether BatchNorm statistics are recomputed."""
        return self.batchnorm == "recalibrate"


class Node(Merge):
    """One merge of a tree. Keys that are missing are taken from the shared `merge` block."""

    parents: list[Input] = Field(
        min_length=2, description="What to merge: parents, snapshots (`seed44@10`), nodes."
    )

    @property
    def evaluations(self) -> int:
        """The number of individuals that are evaluated, at most."""
        size, count = self.population_size, len(self.parents)
        breeding = size + (self.generations - 1) * (size - 1)  # the elite is known
        strategy = 1 + count + max(1, (breeding - 1 - count) // (size - 1)) * (size - 1)
        by_method = {
            "line-sweep": SWEEP,
            "uniform_soup": 1,
            # each step has a line for the best so far, which is not evaluated again
            "greedy_soup": 3 * count - 2,
            "choose": count,
            "cma-es": strategy,
        }
        return by_method.get(self.method, breeding)

    @property
    def founders_count(self) -> int:
        """The number of individuals in the first generation."""
        count, sweep = len(self.parents), min(SWEEP, self.population_size)
        by_method = {"line-sweep": sweep, "uniform_soup": 1, "greedy_soup": count, "choose": count}
        by_method["cma-es"] = 1 + count
        return by_method.get(self.method, self.population_size)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the merge as plain values, without its parents."""
        return self.model_dump(mode="json", exclude={"parents"})


_AnyMerge = TypeVar("_AnyMerge", bound=Merge)


def apply_auto(merge: _AnyMerge, chosen: Mapping[str, str]) -> _AnyMerge:
    """Return the settings with the choice of `method: auto` in place, if the method is that."""
    return merge.model_copy(update=dict(chosen)) if merge.method == "auto" else merge


def inputs_of(nodes: Mapping[str, Node]) -> dict[str, list[str]]:
    """Return the names that each node merges."""
    return {name: node.parents for name, node in nodes.items()}
