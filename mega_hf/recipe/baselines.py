"""What stands beside a search: baselines made as its merge was, and the second look, which names
the merged model.

A search that is better than the average of its parents on the rows that it was searched on may have
selected noise. So its best individual, the baselines and the parents meet again on validation rows
that no search has seen. The best of them there is the merged model; but what was searched for must
be better than the average, or a parent, by more than a standard error.
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
# that no parent and no merge may bear
NAMES = ("uniform_soup", "aligned_soup", *BASELINES, SECOND_LOOK)
# methods with a budget, to which a random search can be held
_SEARCHES = ("mega", "cma-es", "random", "auto")


def baseline_nodes(
    nodes: dict[str, Node], wanted: Sequence[str], has_second_look: bool
) -> dict[str, Node]:
    """Return the merges that a final merge is held against, by name, each of all parents of the
    run.

    They are aligned, encoded and recalibrated as the final merge is. A random search tries at least
    as many individuals as all searches of the tree together.

    Args:
        nodes: the recipe's merges, the final one last.
        wanted: baselines that the recipe asks for.
        has_second_look: whether the parents' average is among those who meet again, and so must be
            a model.
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
    made = {method: _like(root, leaves, method, changes[method]) for method in methods}
    if not has_second_look:
        return made
    soup = "aligned_soup" if is_aligned(root, leaves) else "uniform_soup"
    return {soup: _like(root, leaves, "uniform_soup", {})} | made


def second_look(nodes: dict[str, Node], baselines: Mapping[str, Node]) -> Node:
    """Return the node that chooses between the final merge, the baselines and the parents.

    The average and the parents come first: they were not searched for, and are preferred.
    """
    root, leaves = _final(nodes)
    finalists = [*baselines, next(reversed(nodes))]
    soup, *searched = finalists
    # nothing is mixed
    changes = {"align": "none", "align_to": None, "fitness": "accuracy", "prefer": 1 + len(leaves)}
    return _like(root, [soup, *leaves, *searched], "choose", changes)


def names_merged(names: Iterable[str]) -> str:
    """Return which of a run's models is the merged one: what the second look names, or the final
    merge.

    Args:
        names: merges, the final one last; then baselines, and the second look, if there are any.
    """
    *_, last = (name for name in names if name not in NAMES or name == SECOND_LOOK)
    return last


def is_aligned(root: Node, leaves: Sequence[str]) -> bool:
    """Say whether the final merge aligns all parents of the run at once."""
    return root.align != "none" and sorted(root.parents) == sorted(leaves)


def _final(nodes: dict[str, Node]) -> tuple[Node, list[str]]:
    name = next(reversed(nodes))
    return nodes[name], tree.leaves_of(inputs_of(nodes), name)


def _like(root: Node, parents: Sequence[str], method: str, changes: Mapping[str, object]) -> Node:
    reference = root.align_to if root.align_to in parents else None
    like = {"method": method, "parents": list(parents), "variant": "default", "align_to": reference}
    return root.model_copy(update={**like, **changes})
