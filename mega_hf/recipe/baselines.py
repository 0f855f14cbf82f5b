"""The baselines of a search, and the selection of the merged model on held-out rows.

A search may select noise in the rows that it evaluates on. So its best individual, the baselines
and the parents are evaluated on validation rows that no search has seen. The best model on these
rows is the merged model, except that a searched model must be better than the average and the
parents by more than one standard error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from mega_hf.recipe import tree
from mega_hf.recipe.merge import Node, inputs_of

Baseline = Literal["greedy_soup", "line-sweep", "random", "ensemble"]
BASELINES: tuple[Baseline, ...] = ("greedy_soup", "line-sweep", "random", "ensemble")
SECOND_LOOK = "second_look"
# reserved: no parent and no merge may have these names
NAMES = ("uniform_soup", "aligned_soup", *BASELINES, SECOND_LOOK)
# methods with a number of evaluations, which a random search can be given too
_SEARCHES = ("mega", "cma-es", "random", "auto")


def baseline_nodes(
    nodes: dict[str, Node], wanted: Sequence[str], has_second_look: bool
) -> dict[str, Node]:
    """Return the merges that the final merge is compared with, by name.

    Each merges all parents of the run, aligned, encoded and recalibrated as in the final merge. The
    random search evaluates at least as many individuals as all searches of the tree together.

    Args:
        nodes: the recipe's merges, the final one last.
        wanted: the recipe's baselines.
        has_second_look: whether there are held-out rows, which need the parents' average as a node.
    """
    root, leaves = _final(nodes)
    size = root.population_size
    tried = sum(node.evaluations for node in nodes.values() if node.method in _SEARCHES)
    later = math.ceil(max(0, tried - size) / (size - 1))
    changes: dict[str, dict[str, object]] = {
        "greedy_soup": {},
        "line-sweep": {},
        "random": {"generations": 1 + later},
    }
    if not tried:
        del changes["random"]
    if len(leaves) != 2:
        del changes["line-sweep"]
    methods = [
        method
        for method in changes
        if method in wanted and not (len(nodes) == 1 and method == root.method)
    ]
    baselines = {method: _like(root, leaves, method, changes[method]) for method in methods}
    if not has_second_look:
        return baselines
    soup = "aligned_soup" if is_aligned(root, leaves) else "uniform_soup"
    return {soup: _like(root, leaves, "uniform_soup", {})} | baselines


def second_look(nodes: dict[str, Node], baselines: Mapping[str, Node]) -> Node:
    """Return the node that selects among the final merge, the baselines and the parents.

    The average and the parents come first and are preferred, since no search selected them.
    """
    root, leaves = _final(nodes)
    finalists = [*baselines, next(reversed(nodes))]
    soup, *searched = finalists
    changes = {"align": "none", "align_to": None, "fitness": "accuracy", "prefer": 1 + len(leaves)}
    return _like(root, [soup, *leaves, *searched], "choose", changes)


def names_merged(names: Iterable[str]) -> str:
    """Return the name of a run's merged model: the held-out selection's, or the final merge.

    Args:
        names: the merges, the final one last; then baselines and selection, if there are any.
    """
    *_, last = (name for name in names if name not in NAMES or name == SECOND_LOOK)
    return last


def is_aligned(root: Node, leaves: Sequence[str]) -> bool:
    """Return whether the final merge aligns all parents of the run at once."""
    return root.align != "none" and sorted(root.parents) == sorted(leaves)


def _final(nodes: dict[str, Node]) -> tuple[Node, list[str]]:
    name = next(reversed(nodes))
    return nodes[name], tree.leaves_of(inputs_of(nodes), name)


def _like(root: Node, parents: Sequence[str], method: str, changes: Mapping[str, object]) -> Node:
    reference = root.align_to if root.align_to in parents else None
    like = {"method": method, "parents": list(parents), "variant": "default", "align_to": reference}
    return root.model_copy(update={**like, **changes})
