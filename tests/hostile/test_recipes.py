"""Recipes with any value, key or byte changed give a valid recipe or a RecipeError."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mega_hf.cli.output import print_error
from mega_hf.errors import RecipeError
from mega_hf.recipe.schema import Recipe
from mega_hf.runtime.untrusted import printable_lines
from tests.hostile.cases import HOSTILE, bounded, cases, mutated, used

TEXTS = [
    "&a [*a, *a]",
    "!!int x",
    "!!int ''",
    "!!bool x",
    "!!timestamp x",
    "!!binary x",
    "!!set {a}",
    "!!python/object:os.system x",
    "2024-13-45",
    "1:" * 3000 + "1",
    "0x" + "f" * 4000,
    "1" * 4000,
    "1e999",
    "-.inf",
    ".nan",
    "2024-01-01",
    "? [a, b]\n: c",
    "<<: {a: b}",
    "=",
    "[" * 2000,
    "{a: " * 500,
    '"\\e[2J"',
    '"\\u202e"',
    "~nobody/x",
    "~",
    "/" + "a" * 300,
    "|\n  a\n  b",
    "../../x",
    "a\x00b",
    "%TAG ! x",
    "---\n---",
    "'",
    "\t",
    "&a",
    "*a",
    "@x",
    "`x`",
    "# x",
    "\ufeff",
    "\x85",
]


def _read(file: Path) -> Any:
    return Recipe.from_yaml(file)


def _use(recipe: Recipe) -> None:
    """Use a recipe as a run does before anything is loaded."""
    assert (
        all(c.isprintable() for c in recipe.name)
        and not recipe.name.startswith(".")
        and "/" not in recipe.name
    )
    assert len(recipe.sha256) == 64 and recipe.nodes() and recipe.usable
    assert all("/" not in name and name != ".." for name in (*recipe.parents, *recipe.nodes()))
    copied = Recipe.from_dict(recipe.to_dict())
    assert copied.sha256 == recipe.sha256
    assert yaml.safe_load(recipe.to_yaml())["name"] == recipe.name


def test_the_recipe_that_is_changed_is_a_good_one(
    recipe_tree: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe_tree))
    _use(_read(tmp_path / "r.yaml"))


def test_any_value_of_a_recipe(recipe_tree: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    extra = [
        "c",
        "d@2",
        {"local": "x", "sha256": "y"},
        {"train": {"seed": 5}},
        10**8,
        "pairwise",
        "joint",
    ]

    @cases(300)
    @given(mutated(recipe_tree, extra))
    def check(tree: Any) -> None:
        text = yaml.dump(tree, allow_unicode=True, sort_keys=False)
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        used(lambda: _read(file), _use)
        used(lambda: Recipe.from_dict(tree, base=tmp_path), _use)

    check()


def test_any_text_of_a_recipe(recipe_tree: dict[str, Any], tmp_path: Path) -> None:
    file, lines = tmp_path / "r.yaml", yaml.safe_dump(recipe_tree, sort_keys=False).splitlines()
    change = st.tuples(
        st.integers(0, len(lines) - 1),
        st.sampled_from(TEXTS),
        st.sampled_from(["value", "line", "cut", "byte"]),
    )

    @cases(300)
    @given(st.lists(change, min_size=1, max_size=2), st.binary(max_size=3))
    def check(changes: list[tuple[int, str, str]], noise: bytes) -> None:
        written = [line.encode() for line in lines]
        for at, text, how in changes:
            head, raw = written[at].partition(b":")[0], text.encode()
            written[at] = {
                "value": head + b": " + raw,
                "line": raw,
                "cut": written[at][: len(text)],
                "byte": written[at] + noise,
            }[how]
        file.write_bytes(b"\n".join(written))
        used(lambda: _read(file), _use)

    check()


@pytest.mark.parametrize("kind", ["levels", "bytes", "text", "aliases", "pipe", "device", "folder"])
def test_a_recipe_that_is_a_bomb(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    aliases = "\n".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}, *a{i}]" for i in range(40))
    content = {
        "levels": "a: " + "[" * 500_000,
        "bytes": "# x\n" * 300_000,
        "text": "name: " + "x" * 900_000,
        "aliases": "a0: &a0 [x]\n" + aliases,
    }
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda to: os.symlink("/dev/zero", to)}
    make.get(kind, lambda to: to.write_text(content[kind]))(file)
    with bounded(), pytest.raises(RecipeError):
        _read(file)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "..",
        ".",
        "/x",
        "a/b",
        "a\\b",
        "",
        "-x",
        "a\nb",
        "$(id)",
        "`id`",
        "a b",
        "a|b",
        "\u202ex",
    ],
)
@pytest.mark.parametrize("where", ["name", "parents", "merges"])
def test_a_name_that_would_be_a_path_or_a_command(
    name: str, where: str, recipe_tree: dict[str, Any], tmp_path: Path
) -> None:
    tree = dict(recipe_tree)
    tree[where] = (
        name if where == "name" else tree[where] | {name: next(iter(tree[where].values()))}
    )
    with bounded(), pytest.raises(RecipeError):
        Recipe.from_dict(tree, base=tmp_path)


def test_many_findings_are_not_all_shown(recipe_tree: dict[str, Any], tmp_path: Path) -> None:
    tree = recipe_tree | {"merges": {"top": {"parents": list(range(3000))}}}
    with bounded(), pytest.raises(RecipeError, match="3000 problems") as caught:
        Recipe.from_dict(tree, base=tmp_path)
    message = str(caught.value)
    assert message.count("expected:") == 20 and message.endswith("and 2980 more")


def test_many_snapshots_are_not_listed(recipe_tree: dict[str, Any], tmp_path: Path) -> None:
    tree = recipe_tree | {"train": recipe_tree["train"] | {"epochs": 10**9, "checkpoints": 10**9}}
    with bounded(), pytest.raises(RecipeError, match="at most 10,000 snapshots"):
        Recipe.from_dict(tree, base=tmp_path)


@pytest.mark.parametrize("value", [one for one in HOSTILE if isinstance(one, str)], ids=ascii)
def test_nothing_that_is_printed_is_obeyed(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_error(RecipeError(value, expected="x"))
    assert all(c.isprintable() or c == "\n" for c in capsys.readouterr().err)
    assert printable_lines("a\nb\tc") == "a\nb c"
