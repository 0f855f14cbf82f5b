"""The tree of merges, by names alone: who is merged with whom, in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from mega_hf.errors import RecipeError

Nodes = Mapping[str, Sequence[str]]  # node -> the parents and nodes that it merges
Error = Callable[..., Exception]  # (key as a list, expected, got, hint) -> what is raised
_LONGEST = 100  # characters of an automatic name


def parent_name(name: str) -> str:
    """Return the parent that a name belongs to: of a snapshot, the one whose training it was taken
    from."""
    return name.partition("@")[0]


def node_name(leaves: Sequence[str]) -> str:
    """Name a merge after its parents: `a+b`; where that would be too long, its first, its last and
    a digest of all."""
    name = "+".join(leaves)
    if len(name) <= _LONGEST:
        return name
    return f"{leaves[0][:40]}+...+{leaves[-1][:40]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def pair_up(names: Sequence[str]) -> dict[str, list[str]]:
    """Return a balanced binary tree: neighbours are merged, an odd one moves up a level; the root
    stands last."""
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
    """Return the nodes so that each comes after those that it needs, else in the order given.

    Raises:
        ValueError: its one argument is a cycle of names, the first of which is repeated at its end.
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
    """Return the parents below a node, each once, in the order met."""
    return [one for one in _below(nodes, name) if one not in nodes]


def levels(nodes: Nodes) -> dict[str, int]:
    """Return each name's level: 0 for parents, one more than the highest of its own parents for a
    node."""
    known: dict[str, int] = {}
    for node in arrange(nodes):
        for parent in nodes[node]:
            known.setdefault(parent, 0)
        known[node] = 1 + max(known[parent] for parent in nodes[node])
    return known


def _below(nodes: Nodes, name: str) -> list[str]:
    """Return a node and everything below it, each once, in the order met."""
    met: dict[str, None] = {}
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in met:
            met[one] = None
            waiting += reversed(nodes.get(one, ()))
    return list(met)


def render_tree(nodes: Nodes, root: str, notes: Mapping[str, str]) -> list[str]:
    """Draw a tree, a line a name, each followed by its note; what stands in it twice is drawn in
    full once."""
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
    """Raise `error(key, expected, got, hint)` unless the nodes are one tree of merges.

    Args:
        nodes: as written.
        parents: the recipe's parents: each of them must be used.
        usable: what a node may name beside other nodes: parents and their snapshots.
        error: makes the exception; `key` is the place in the recipe, as a list.
    """
    for node, inputs in nodes.items():
        if node in usable:
            raise error(
                ["merges", node],
                "a name of its own",
                f"{node}, which is a parent",
                "rename the node",
            )
        for name in inputs:
            if name not in usable and name not in nodes:
                known = ", ".join([*usable, *(n for n in nodes if n != node)])
                raise error(
                    ["merges", node, "parents"],
                    f"one of {known}",
                    name,
                    "name a parent or another node",
                )
            if list(inputs).count(name) > 1:
                raise error(
                    ["merges", node, "parents"], "each name once", f"{name} twice", "list it once"
                )
    try:
        arrange(nodes)
    except ValueError as cycle:
        path = cycle.args[0]
        got, hint = " needs ".join(path), "no node can need itself: take one of these names out"
        raise error(["merges", path[0], "parents"], "merges without a cycle", got, hint) from None
    merged = {name for names in nodes.values() for name in names}
    roots = [node for node in nodes if node not in merged]
    if len(roots) > 1:
        got = " and ".join(roots)
        hint = f"merge them in one more node: final: {{parents: [{', '.join(roots)}]}}"
        raise error(["merges", roots[1]], "one final node, which needs all others", got, hint)
    used = {parent_name(name) for name in merged}
    for parent in parents:
        if parent not in used:
            where = ["parents", parent]
            raise error(
                where,
                "parents that a node merges",
                f"{parent}, in no node",
                "use it, or leave it out",
            )
