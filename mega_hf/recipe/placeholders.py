"""Local files of another machine in a recipe, until `--set KEY=PATH` says where they are."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_serializer

from mega_hf.errors import RecipeError
from mega_hf.recipe.fields import Strict

Key = tuple[str, ...]


class LocalPlaceholder(Strict):
    """A local file or folder, named by its content: `{local: NAME, sha256: DIGEST}`.

    A copy of a run has it in place of each local path, so that no path of a machine is published.
    """

    local: str = Field(description="Name of the file or folder where the recipe was run.")
    sha256: str | dict[str, str] | None = Field(
        default=None,
        description="Digest of the model; for a data set a mapping, split to digest of its rows."
        " Another content at the given path is a warning.",
    )

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {"local": self.local} | ({} if self.sha256 is None else {"sha256": self.sha256})


Reference = Annotated[
    Annotated[str, Field(min_length=1), Tag("reference")]
    | Annotated[LocalPlaceholder, Tag("placeholder")],
    Discriminator(
        lambda value: "placeholder" if isinstance(value, dict | LocalPlaceholder) else "reference"
    ),
]


def existing(reference: str | LocalPlaceholder) -> str:
    """Return a reference of a recipe that `check_no_placeholders` has passed."""
    assert isinstance(reference, str), reference
    return reference


def is_placeholder(value: object) -> bool:
    """Return whether a value of a recipe's tree is a LocalPlaceholder as plain values."""
    return isinstance(value, dict) and "local" in value and value.keys() <= {"local", "sha256"}


def references(tree: Any) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yield the key of each model and data set that a recipe's tree names, and the dict it is in.

    The tree need not be a valid recipe.
    """
    tree = tree if isinstance(tree, dict) else {}
    parents = tree["parents"] if isinstance(tree.get("parents"), dict) else {}
    blocks: list[tuple[Key, Any]] = [(("data", "path"), tree.get("data"))]
    for name, parent in parents.items():
        if isinstance(parent, dict) and not is_placeholder(parent):
            blocks.append((("parents", name, "weights"), parent))
            blocks.append((("parents", name, "train", "from"), parent.get("train")))
        else:
            blocks.append((("parents", name), parents))
    blocks.append((("train", "from"), tree.get("train")))
    for key, block in blocks:
        if isinstance(block, dict) and key[-1] in block:
            yield key, block


def placeholder_keys(tree: dict[str, Any]) -> list[Key]:
    """Return the key of each placeholder in a recipe's tree, as `("parents", "a")`."""
    return [key for key, block in references(tree) if is_placeholder(block[key[-1]])]


def same_but_placeholders(tree: dict[str, Any], known: dict[str, Any]) -> bool:
    """Return whether a recipe's tree is `known` with paths in place of its placeholders."""
    tree = copy.deepcopy(tree)
    blocks = dict(references(tree))
    for key, block in references(known):
        if is_placeholder(block[key[-1]]) and key in blocks:
            blocks[key][key[-1]] = block[key[-1]]
    return tree == known and list(tree["parents"]) == list(known["parents"])


def check_no_placeholders(tree: dict[str, Any]) -> None:
    """Raise RecipeError if a recipe's tree has a placeholder."""
    keys = [".".join(key) for key in placeholder_keys(tree)]
    if keys:
        raise RecipeError(
            "this recipe was run with local files that are not on this machine",
            expected="a path for each",
            got="none for " + ", ".join(keys),
            hint="add " + " ".join(f"--set {key}=PATH" for key in keys),
        )
