"""The tree of merges as names: what is merged with what, in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from mega_hf.errors import RecipeError

Nodes = Mapping[str, Sequence[str]]  # node -> the parents and nodes that it merges
Error = Callable[..., Exception]  # (key as a list, expected, got, hint) -> the exception
_LONGEST = 100  # characters of an automatic name


def parent_name(name: str) -> str:
    """Return the name of the parent that a parent or snapshot `NAME@EPOCH` belongs to."""
    return name.partition("@")[0]


def node_name(leaves: Sequence[str]) -> str:
    """Name a merge after its parents, `a+b`.

    A name that would be too long has the first and the last parent and a digest of all.
    """
    name = "+".join(leaves)
    if len(name) <= _LONGEST:
        return name
    return f"{leaves[0][:40]}+...+{leaves[-1][:40]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def pair_up(names: Sequence[str]) -> dict[str, list[str]]:
    """Return a balanced binary tree of pairwise merges, the final one last.

    Neighbours are merged; the last of an odd number moves up a level.
    """
    nodes: dict[str, list[str]] = {}
    level = [(name, [name]) for name in names]  # (node or parent, the parents below it)
    while len(level) > 1:
        above = []
        for (left, under_left), (right, under_right) in zip(level[::2], level[1::2], strict=False):
            under = under_left + under_right
            nodes[node_name(under)] = [left, right]
            above.append((node_name(under), under))
        level = above + (level[-1:] if len(level) % 2 else [])
    return nodes


def arrange(nodes: Nodes) -> list[str]:
    """Return the nodes in the given order, except that each comes after those that it needs.

    Raises:
        ValueError: there is a cycle. The argument is its names, the first one repeated at the end.
    """
    arranged: list[str] = []

    def _visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ValueError((*path[path.index(name) :], name))
        if name in nodes and name not in arranged:
            for parent in nodes[name]:
                _visit(parent, (*path, name))
            arranged.append(name)

    for name in nodes:
        _visit(name, ())
    return arranged


def needed_for(nodes: Nodes, name: str) -> list[str]:
    """Return the nodes that a node needs, itself last, in the order of `arrange`.

    Raises:
        RecipeError: there is no node of this name.
    """
    if name not in nodes:
        raise RecipeError(
            "no such node",
            expected=f"one of {', '.join(nodes)}",
            got=name,
            hint="pass one of these names to --only",
        )
    below = set(_below(nodes, name))
    return [node for node in arrange(nodes) if node in below]


def leaves_of(nodes: Nodes, name: str) -> list[str]:
    """Return the parents below a node, each once, from left to right."""
    return [below for below in _below(nodes, name) if below not in nodes]


def levels(nodes: Nodes) -> dict[str, int]:
    """Return each name's level: 0 for parents, and one above its highest parent for a node."""
    known: dict[str, int] = {}
    for node in arrange(nodes):
        for parent in nodes[node]:
            known.setdefault(parent, 0)
        known[node] = 1 + max(known[parent] for parent in nodes[node])
    return known


def _below(nodes: Nodes, name: str) -> list[str]:
    """Return a node and everything below it, each once, from left to right."""
    found: dict[str, None] = {}
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found[current] = None
            waiting += reversed(nodes.get(current, ()))
    return list(found)


def render_tree(nodes: Nodes, root: str, notes: Mapping[str, str]) -> list[str]:
    """Return the lines of a drawing of a tree, each a name and its note.

    A node that is used twice is drawn in full once.
    """
    drawn: set[str] = set()

    def _lines(name: str) -> Iterator[str]:
        again = name in nodes and name in drawn
        yield f"{name}  {'as above' if again else notes.get(name, '')}".rstrip()
        if again or name not in nodes:
            return
        drawn.add(name)
        *others, last = nodes[name]
        for parent in others:
            first, *rest = _lines(parent)
            yield f"├─ {first}"
            yield from (f"│  {line}" for line in rest)
        first, *rest = _lines(last)
        yield f"└─ {first}"
        yield from (f"   {line}" for line in rest)

    return list(_lines(root))


def check_tree(nodes: Nodes, parents: Sequence[str], usable: Sequence[str], error: Error) -> None:
    """Raise unless the nodes are one tree of merges.

    Args:
        nodes: the nodes as in the recipe.
        parents: the parents that a node must use.
        usable: the names that a node may merge, beside other nodes: parents and snapshots.
        error: makes the exception from (key, expected, got, hint).
    """
    for node, inputs in nodes.items():
        key = ["merges", node, "parents"]
        if node in usable:
            raise error(
                key[:2],
                "a name that no parent has",
                f"{node}, which is a parent",
                "rename the node",
            )
        for name in inputs:
            if name not in usable and name not in nodes:
                known = ", ".join([*usable, *(other for other in nodes if other != node)])
                raise error(key, f"one of {known}", name, "use the name of a parent or a node")
            if list(inputs).count(name) > 1:
                raise error(key, "each name once", f"{name} twice", "remove one of the two")
    try:
        arrange(nodes)
    except ValueError as cycle:
        path = cycle.args[0]
        got, hint = " needs ".join(path), "remove one of these names"
        raise error(["merges", path[0], "parents"], "no cycle", got, hint) from None
    merged = {name for names in nodes.values() for name in names}
    roots = [node for node in nodes if node not in merged]
    if len(roots) > 1:
        hint = f"merge them in one more node: final: {{parents: [{', '.join(roots)}]}}"
        expected = "one final node, which needs all others"
        raise error(["merges", roots[1]], expected, " and ".join(roots), hint)
    used = {parent_name(name) for name in merged}
    for parent in parents:
        if parent not in used:
            hint = "use this parent in a node, or remove it"
            raise error(
                ["parents", parent], "parents that a node merges", f"{parent}, in no node", hint
            )
