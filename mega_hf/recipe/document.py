"""Read YAML into a tree that knows the file and line of each value, for errors."""

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
from mega_hf.runtime.untrusted import RECIPE_BYTES, read_bytes

Location = tuple[str | int, ...]


@dataclass(frozen=True)
class Origin:
    """Where a value was written, and the folder at which its relative paths start."""

    label: str
    base: Path


@dataclass
class Document:
    """A tree of dicts, lists and scalars, with the origin of each of its entries.

    Recipes with the same content are equal, and so are their documents: trees and origins are
    not compared.
    """

    tree: dict[str, Any] = field(default_factory=dict, compare=False)
    origins: dict[Location, Origin] = field(default_factory=dict, compare=False)
    # key of a placeholder that a path was given for -> the placeholder's digest
    substituted: dict[str, Any] = field(default_factory=dict)

    def origin(self, location: Location) -> Origin:
        """Return the origin of the entry at `location`, or of the nearest entry above it."""
        for length in range(len(location), -1, -1):
            if location[:length] in self.origins:
                return self.origins[location[:length]]
        return Origin("", Path.cwd())

    @contextmanager
    def locating_errors(self) -> Iterator[None]:
        """Add file and line to DataErrors, which are raised long after the recipe was read."""
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
        """Split a key at its dots, except at those inside a name that the tree has."""
        path, rest, inner = [], key.split("."), self.tree
        while rest:
            lengths = range(len(rest), 0, -1)
            known = inner if isinstance(inner, dict) else {}
            length = next((n for n in lengths if ".".join(rest[:n]) in known), 1)
            path.append(".".join(rest[:length]))
            inner, rest = known.get(path[-1], {}), rest[length:]
        return tuple(path)

    def override(self, assignment: str) -> None:
        """Apply one `a.b=c` of the command line.

        Args:
            assignment: key and value. The value is YAML; its relative paths start at the working
                folder.

        Raises:
            RecipeError: there is no `=`, or the value is not YAML.
        """
        key, equals, text = assignment.partition("=")
        label, path = f"--set {key}", self._path(key)
        if not equals or not all(path):
            raise RecipeError(
                "invalid assignment",
                expected="--set KEY.KEY=VALUE",
                got=f"--set {assignment}",
                hint="write the key, an equals sign and the value, as in merge.seed=7",
            )
        block, new_blocks = self.tree, []
        for i, part in enumerate(path[:-1], start=1):
            if not isinstance(block.get(part), dict):
                # A mapping may replace a scalar, as {split: ...} replaces train[45000:].
                block[part] = {}
                new_blocks.append(path[:i])
            block = block[part]
        if is_placeholder(block.get(path[-1])) and "sha256" in block[path[-1]]:
            self.substituted[key] = block[path[-1]]["sha256"]
        block[path[-1]] = parse(text, label, Path.cwd()).tree["value"] if text else None
        self.origins = {
            at: origin for at, origin in self.origins.items() if at[: len(path)] != path
        }
        self.origins |= {at: Origin(label, Path.cwd()) for at in (*new_blocks, path)}


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads 1e-3 as a number, as YAML 1.2 does, and raises on aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        # A few lines of aliases can stand for a tree larger than any memory.
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            problem = f"the alias *{event.anchor}: recipes have none, write the value out"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """A SafeDumper that quotes a text that `_Loader` would read as a number."""


_EXPONENT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def dump(tree: dict[str, Any]) -> str:
    """Return a tree as YAML that `parse` reads back to the same values."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=119)


def read(path: Path) -> Document:
    """Read a YAML file whose top level is a mapping.

    Raises:
        RecipeError: the file is missing, unreadable or not YAML, or has a duplicate key or an
            alias.
    """
    try:
        text = read_bytes(path, RECIPE_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise RecipeError(
            "no such recipe",
            expected="a YAML file",
            got=path,
            hint="check the path; see recipes/ for examples",
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
            hint="see recipes/ for examples",
        )
    return document


def parse(text: str, label: str, base: Path, top: str = "value") -> Document:
    """Parse YAML text.

    Args:
        text: the text.
        label: the file's name, for errors.
        base: the folder at which relative paths start.
        top: the key under which the value is put; "" if the value is the tree itself.

    Raises:
        RecipeError: the text is not YAML, or has a duplicate key or an alias.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        document = Document({}, {(): Origin(label if top else f"{label}:1", base)})
        value = _value(loader, node, (), document, label, base) if node is not None else {}
    except MegaError:
        raise
    # The constructors of !!int, !!timestamp and !!bool raise what they met.
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{label}:{mark.line + 1}" if mark else label
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        if isinstance(error, RecursionError):
            problem = "nested too deeply"
        raise RecipeError(
            "invalid YAML",
            where=where,
            expected="YAML",
            got=str(problem)[:500],
            hint="fix this line; check its indentation, colons and quotes",
        ) from None
    document.tree = {top: value} if top else value
    return document


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
        return _plain(loader.construct_object(node), f"{label}:{node.start_mark.line + 1}")
    tree: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = (
            str(loader.construct_object(key_node))
            if isinstance(key_node, yaml.ScalarNode)
            else "(a mapping or list)"
        )
        origin = Origin(f"{label}:{key_node.start_mark.line + 1}", base)
        if key in tree:
            first = document.origins[(*at, key)].label
            raise RecipeError(
                f"duplicate key {key}",
                where=origin.label,
                expected="each key once",
                got=f"the same key at {first}",
                hint="remove one of the two",
            )
        document.origins[(*at, key)] = origin
        tree[key] = _value(loader, value_node, (*at, key), document, label, base)
    return tree


def _plain(value: Any, where: str) -> Any:
    """Return a scalar that JSON has too; raise RecipeError for others, such as dates."""
    is_long = isinstance(value, int) and value.bit_length() > 64
    if is_long or not (value is None or isinstance(value, str | int | float)):
        raise RecipeError(
            "unsupported YAML value",
            where=where,
            expected="a text, a number, true, false or null",
            got="a number of more than 64 bits" if is_long else type(value).__name__,
            hint="put quotes around the value to make it a text",
        )
    return value
