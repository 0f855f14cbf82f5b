"""verify compares result.json and card with the rebuilt record, and with the data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mega_hf import MergeResult, VerificationError, verify
from mega_hf.evaluation.statistics import bootstrap_interval, sign_test
from mega_hf.report.card import write_card
from mega_hf.report.card_edits import seal
from tests.tools.forged import append, assert_named, claim, edit


def _prefer_the_other(folder: Path) -> None:
    against = json.loads((folder / "result.json").read_text())["paired"]["against"]
    claim(folder, "paired", "against", value="b" if against == "a" else "a")


def _improve_card(folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(re.sub(r"\d\d\.\d\d %", "99.99 %", card.read_text()))


def _forge_card(folder: Path) -> None:
    """A card with a seal of its own, made from another result."""
    before = (folder / "result.json").read_bytes()
    edit(folder, lambda record: record["models"][0]["test"].update(correct=1))
    write_card(MergeResult.load(folder))
    (folder / "result.json").write_bytes(before)


LIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "file digest": (lambda f: claim(f, "digests", "file", value="0" * 64), "^result.json: changed"),
    "weights digest": (
        lambda f: claim(f, "nodes", 0, "digests", "weights", value="0" * 64),
        r"^result.json: .*nodes.a\+b.digests.weights: [0-9a-f]{64}, not 0{64}",
    ),
    "search": (
        lambda f: claim(f, "nodes", 0, "search", "correct", value=60),
        r"^result.json: .*nodes.a\+b.search.correct: \d+, not 60",
    ),
    "history": (
        lambda f: claim(f, "nodes", 0, "history", 1, "best", value=60),
        "^result.json: changed.*history",
    ),
    "parent's digest": (
        lambda f: claim(f, "parents", 0, "sha256", value="0" * 64),
        "^result.json: changed.*parent",
    ),
    "data's digest": (
        lambda f: claim(f, "data", "test", "sha256", value="0" * 64),
        "^result.json: changed.*data",
    ),
    "evaluations": (
        lambda f: claim(f, "nodes", 0, "search", "evaluations", value=27),
        r"^result.json: .*nodes.a\+b.search.evaluations: 26, not 27",
    ),
    "search told twice": (
        lambda f: claim(f, "search", "correct", value=60),
        r"^result.json: .*since the run: search.correct: \d+, not 60",
    ),
    "history told twice": (
        lambda f: claim(f, "history", 1, "best", value=60),
        "^result.json: .*since the run: history.1.best: ",
    ),
    "architecture": (
        lambda f: claim(f, "architecture", value="resnet50"),
        "^result.json: changed.*architecture",
    ),
    "parameters": (
        lambda f: claim(f, "parameters", value=10**9),
        "^result.json: changed.*parameters",
    ),
    "settings": (
        lambda f: claim(f, "nodes", 0, "merge", "seed", value=47),
        r"^result.json: .*nodes.a\+b.merge.seed: 46, not 47",
    ),
    "parents": (
        lambda f: claim(f, "nodes", 0, "parents", value=["b", "a"]),
        r"^result.json: .*nodes.a\+b.parents.0: a, not b",
    ),
    "rows of a split": (
        lambda f: claim(f, "data", "validation", "rows", value=61),
        "^result.json: .*data.validation.rows: 60, not 61",
    ),
    "rows of a model": (
        lambda f: claim(f, "models", 4, "test", "n", value=900),
        "^result.json: .*models.uniform_soup.test.n: 90, not 900",
    ),
    "a model more": (
        lambda f: edit(f, lambda r: r["models"].insert(2, r["models"][2])),
        "^result.json: .*: models.b recalibrated.name: b recalibrated, not a recalibrated",
    ),
    "validation": (
        lambda f: edit(f, lambda r: r["models"][-1]["validation"].update(correct=60)),
        "^result.json: .*models.merged.validation.correct: ",
    ),
    "the best parent": (
        _prefer_the_other,
        "^result.json: .*paired.against: ",
    ),
    "paired": (
        lambda f: claim(f, "paired", "only_merged_right", value=90),
        r"^result.json: .*paired.only_merged_right: \d+, not 90",
    ),
    "p": (
        lambda f: claim(f, "paired", "p", value=0.00001),
        "^result.json: .*paired.p: ",
    ),
    "card": (_improve_card, "^README.md: the generated part of the card was edited"),
    "another card": (_forge_card, "^README.md: changed.*generated part"),
    "nodes": (
        lambda f: claim(f, "nodes", 0, "name", value="b+a"),
        r"^result.json: .*nodes.a\+b.name: a\+b, not b\+a",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_changed_entry_is_named_by_its_path(lie: str, copied: Path) -> None:
    assert_named(copied, *LIES[lie])


def _add_right(record: dict[str, Any], model: int, split: str, more: int) -> None:
    """Claim more correct predictions, and a paired test that agrees with the table."""
    record["models"][model][split]["correct"] += more
    paired = record["paired"]
    counts = {one["name"]: one["test"]["correct"] for one in record["models"]}
    gain = counts["merged"] - counts[paired["against"]]
    few = paired["only_other_right"]
    _set_pair(record, few + gain, few)


def _set_pair(record: dict[str, Any], only_merged: int, only_other: int) -> None:
    """Claim other counts of the paired test, and the p-value and interval that follow."""
    low, high = bootstrap_interval(only_merged, only_other, record["models"][0]["test"]["n"])
    counts = {
        "only_merged_right": only_merged,
        "only_other_right": only_other,
        "low": low,
        "high": high,
    }
    record["paired"] |= counts | {"p": sign_test(only_merged, only_other)}


CLAIMS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "merged": (
        lambda r: _add_right(r, 5, "test", 2),
        "the merged model on test is not what was claimed",
    ),
    "parent": (lambda r: _add_right(r, 0, "test", -2), "a on test is not what was claimed"),
    "baseline": (
        lambda r: _add_right(r, 4, "test", -2),
        "uniform_soup on test is not what was claimed",
    ),
    "validation": (
        lambda r: _add_right(r, 4, "validation", -2),
        "uniform_soup on validation is not what was claimed",
    ),
    "paired": (
        lambda r: _set_pair(
            r, r["paired"]["only_merged_right"] + 2, r["paired"]["only_other_right"] + 2
        ),
        "test rows that only the merged model gets right, of it and ",
    ),
    "classes": (
        lambda r: r["data"].update(classes=4),
        "changed since the run: data.classes: 3, not 4",
    ),
}


@pytest.mark.parametrize("claimed", CLAIMS)
def test_claimed_counts_are_evaluated_again(claimed: str, copied: Path) -> None:
    change, expected = CLAIMS[claimed]
    edit(copied, change)
    write_card(MergeResult.load(copied))
    assert "not checked: accuracies" in str(verify(copied)), "nothing but the data can tell"
    with pytest.raises(VerificationError, match=f"^result.json: {expected}"):
        verify(copied, evaluate=1)


def test_the_card_of_another_release_is_not_compared(copied: Path) -> None:
    edit(copied, lambda record: record["environment"]["versions"].update(mega_hf="0.0.7"))
    write_card(MergeResult.load(copied))
    card = (copied / "README.md").read_text()
    inner = card.partition("-->\n")[2].partition("\n<!--")[0].replace("Data: ", "The data: ")
    front = card.partition("<!--")[0]
    (copied / "README.md").write_text(front + seal(inner))
    assert "not checked: README.md, which mega_hf 0.0.7 worded differently" in str(verify(copied))


def test_own_text_in_a_card_is_accepted(copied: Path) -> None:
    append(copied / "README.md", "\n## Mine\n\n99.99 %\n")
    assert verify(copied).parents == 2
