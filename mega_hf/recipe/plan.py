"""The nodes that a run makes: its merges, its baselines and its held-out selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mega_hf.recipe import tree
from mega_hf.recipe.baselines import SECOND_LOOK, baseline_nodes, second_look
from mega_hf.recipe.merge import Node, inputs_of
from mega_hf.recipe.schema import Recipe


@dataclass(frozen=True)
class MergePlan:
    """The nodes of a run by name, computed once from the recipe and the ranking of the parents.

    Attributes:
        leaves: the parents and snapshots that are merged.
        merges: the tree of merges, each after those that it needs, the final one last.
        baselines: searches that the final merge is compared with.
        selection: chooses between the final merge, the baselines and the parents on held-out
            rows; None if the recipe has no such rows.
        levels: the level of each parent (0) and merge in the tree.
        has_ensemble: whether the report has a row for the ensemble of the parents.
    """

    leaves: list[str]
    merges: dict[str, Node]
    baselines: dict[str, Node]
    selection: Node | None
    levels: dict[str, int]
    has_ensemble: bool

    @property
    def final(self) -> str:
        """The name of the final merge."""
        return next(reversed(self.merges))

    @property
    def merged(self) -> str:
        """The name of the node whose model is the run's merged model."""
        return self.final if self.selection is None else SECOND_LOOK

    @property
    def added(self) -> dict[str, Node]:
        """The nodes that follow the merges: the baselines, then the held-out selection."""
        return self.baselines | ({SECOND_LOOK: self.selection} if self.selection else {})

    @property
    def nodes(self) -> dict[str, Node]:
        """All nodes, in the order in which they run."""
        return self.merges | self.added

    @property
    def evaluations(self) -> int:
        """The number of individuals that are evaluated in the whole run."""
        return sum(node.evaluations for node in self.nodes.values())

    def needed_for(self, only: str | None) -> dict[str, Node]:
        """Return the merges that `only` needs, itself last; all merges for None.

        Raises:
            RecipeError: there is no merge of this name.
        """
        if only is None:
            return self.merges
        return {name: self.merges[name] for name in tree.needed_for(inputs_of(self.merges), only)}


def plan_merges(recipe: Recipe, ranking: Sequence[str] | None = None) -> MergePlan:
    """Return the nodes of a run.

    Args:
        recipe: the recipe.
        ranking: the parents from best to worst, where `order: accuracy` pairs them in this order.
            While it is not known, pairs are made in the order of the recipe.
    """
    merges, has_selection = recipe.nodes(ranking), recipe.data.second_look > 0
    baselines = baseline_nodes(merges, recipe.baselines, has_selection)
    selection = second_look(merges, baselines) if has_selection else None
    levels, has_ensemble = tree.levels(inputs_of(merges)), "ensemble" in recipe.baselines
    return MergePlan(recipe.leaves(None), merges, baselines, selection, levels, has_ensemble)
