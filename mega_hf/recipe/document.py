"""YAML as a tree that remembers where each value stands, so that an error can name file and
line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mega_hf.errors import DataError, MegaError, RecipeError
from mega_hf.recipe.placeholders import is_placeholder
from mega_hf.runtime.untrusted import (
    RECIPE_BYTES,
    RECIPE_LEVELS,
    RECIPE_TEXT,
    RECIPE_VALUES,
    read_bytes,
)

Location = tuple[str | int, ...]


@dataclass(frozen=True)
class Origin:
    """Where a value was written, and which folder its relative paths are relative to."""

    label: str
    base: Path


@dataclass
class Document:
    """A plain tree of dicts, lists and scalars, with the origin of each of its entries.

    Recipes that say the same are equal wherever it was written, and so are the documents that they
    keep.
    """

    tree: dict[str, Any] = field(default_factory=dict, compare=False)
    origins: dict[Location, Origin] = field(default_factory=dict, compare=False)
    # key -> digest of what was local where this was run
    substituted: dict[str, Any] = field(default_factory=dict)

    def origin(self, location: Location) -> Origin:
        """Return the origin of the entry at `location`, or of the nearest entry around it."""
        for length in range(len(location), -1, -1):
            if location[:length] in self.origins:
                return self.origins[location[:length]]
        return Origin("", Path.cwd())

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Give errors over the data set, which are met long after this was read, the place of what
        they are about."""
        try:
            yield
        except DataError as error:
            if error.where and not error.key:
                raise
            at = ("data", error.key) if error.key else ("data",)
            raise error.replace(
                what=f"{'.'.join(at)}: {error.what}", where=self.origin(at).label
            ) from error.__cause__

    def _path(self, key: str) -> tuple[str, ...]:
        """Divide a key at its dots; where the tree has a name that holds dots, as a parent's may,
        it is that name."""
        path, rest, inner = [], key.split("."), self.tree
        while rest:
            lengths = range(len(rest), 0, -1)
            known = inner if isinstance(inner, dict) else {}
            length = next((n for n in lengths if ".".join(rest[:n]) in known), 1)
            path.append(".".join(rest[:length]))
            inner, rest = known.get(path[-1], {}), rest[length:]
        return tuple(path)

    def override(self, assignment: str) -> None:
        """Apply one `a.b=c` of the command line; its value is YAML, its paths are relative to the
        working folder.

        Raises:
            RecipeError: there is no `=`, the value is not YAML, or a scalar stands where a mapping
                is needed.
        """
        key, equals, text = assignment.partition("=")
        label, path = f"--set {key}", self._path(key)
        if not equals or not all(path):
            raise RecipeError(
                "not an assignment",
                expected="--set KEY.KEY=VALUE",
                got=f"--set {assignment}",
                hint="write the key, =, and the value: merge.seed=7",
            )
        inner, made = self.tree, []
        for i, part in enumerate(path[:-1], start=1):
            if not isinstance(inner.get(part), dict):
                # a whole other form, as validation: {split: ...} over validation: train[45000:]
                inner[part] = {}
                made.append(path[:i])
            inner = inner[part]
        if is_placeholder(inner.get(path[-1])) and "sha256" in inner[path[-1]]:
            self.substituted[key] = inner[path[-1]]["sha256"]
        inner[path[-1]] = parse(text, label, Path.cwd()).tree["value"] if text else None
        self.origins = {
            at: origin for at, origin in self.origins.items() if at[: len(path)] != path
        }
        self.origins |= {at: Origin(label, Path.cwd()) for at in (*made, path)}


class _Loader(yaml.SafeLoader):
    """SafeLoader, but 1e-3 is a number, as in YAML 1.2 and everywhere else."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper, which quotes a text that our loader would take for a number."""


_EXPONENT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def dump(tree: dict[str, Any]) -> str:
    """Return a tree as YAML that `parse` reads back to the same values."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=119)


def read(path: Path) -> Document:
    """Read a YAML file whose top level is a mapping.

    Raises:
        RecipeError: the file is missing, unreadable, not YAML, or holds a duplicate key or an
            alias.
    """
    try:
        text = read_bytes(path, RECIPE_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise RecipeError(
            "no such recipe",
            got=path,
            hint="check the path; recipes/ holds examples",
            expected="a YAML file",
        ) from None
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"the recipe can't be read: {error}",
            got=path,
            expected=f"a YAML file in UTF-8 of at most {RECIPE_BYTES:,} bytes",
            hint="check the path and the file",
        ) from None
    document = parse(text, str(path), path.resolve().parent, top="")
    if not isinstance(document.tree, dict):
        raise RecipeError(
            "not a recipe",
            where=str(path),
            expected="a YAML mapping",
            got=type(document.tree).__name__,
            hint="recipes/ holds examples",
        )
    return document


def parse(text: str, label: str, base: Path, top: str = "value") -> Document:
    """Parse YAML text; with `top`, the parsed value is put under that one key."""
    try:
        _refuse_bombs(text, label)
        loader = _Loader(text)
        node = loader.get_single_node()
        document = Document({}, {(): Origin(label if top else f"{label}:1", base)})
        value = _value(loader, node, (), document, label, base) if node is not None else {}
    except MegaError:
        raise
    # its constructors raise whatever they met in !!int, !!timestamp, !!bool
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{label}:{mark.line + 1}" if mark else label
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise RecipeError(
            "not YAML",
            where=where,
            expected="YAML",
            got=str(problem)[:500],
            hint="mend this line: often it is indentation, a colon or a quote",
        ) from None
    document.tree = {top: value} if top else value
    return document


def _refuse_bombs(text: str, label: str) -> None:
    """Raise RecipeError where YAML would grow: it is looked at event by event, which takes no
    memory of note."""
    level = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(
            event, yaml.CollectionEndEvent
        )
        where = f"{label}:{event.start_mark.line + 1 if event.start_mark else 1}"
        if isinstance(event, yaml.AliasEvent):
            raise RecipeError(
                "YAML aliases are not used in recipes",
                where=where,
                got=f"*{str(event.anchor)[:100]}",
                expected="plain values",
                hint="write the value out",
            )
        size = len(event.value) if isinstance(event, yaml.ScalarEvent) else 0
        if level > RECIPE_LEVELS or number > RECIPE_VALUES or size > RECIPE_TEXT:
            expected = (
                f"{RECIPE_LEVELS} levels, {RECIPE_VALUES:,} values, texts of {RECIPE_TEXT:,}"
                " characters at most"
            )
            raise RecipeError(
                "too much", where=where, expected=expected, got="more", hint="make it smaller"
            )


def _value(
    loader: _Loader, node: yaml.Node, at: Location, document: Document, label: str, base: Path
) -> Any:
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            document.origins[(*at, i)] = Origin(f"{label}:{item.start_mark.line + 1}", base)
        return [
            _value(loader, item, (*at, i), document, label, base)
            for i, item in enumerate(node.value)
        ]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    tree: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = (
            str(loader.construct_object(key_node))
            if isinstance(key_node, yaml.ScalarNode)
            else "a key of several"
        )
        origin = Origin(f"{label}:{key_node.start_mark.line + 1}", base)
        if key in tree:
            first = document.origins[(*at, key)].label
            raise RecipeError(
                f"the key {key} stands twice",
                where=origin.label,
                got=f"first at {first}",
                expected="each key once",
                hint="keep one of them",
            )
        document.origins[(*at, key)] = origin
        tree[key] = _value(loader, value_node, (*at, key), document, label, base)
    return tree
