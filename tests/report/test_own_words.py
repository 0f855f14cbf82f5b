"""What was written by hand into a run's card stays, whatever becomes of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tools import tiny

MINE = "\n## Mine\n\nKeep this.\n"


@pytest.mark.parametrize("how", ["card", "update", "result lost"])
def test_own_words_in_the_runs_card_are_kept(
    how: str, copied: Path, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    card = copied / "README.md"
    card.write_text(card.read_text() + MINE)
    if how == "card":
        answer = mega("card", copied)
    elif how == "update":
        recipe = pair.write(tmp_path, merge=tiny.MERGE | {"seed": 47})
        answer = mega("merge", recipe, "--out", copied, "--update", "--quiet")
    else:
        (copied / "result.json").unlink()
        answer = mega("merge", pair.write(tmp_path), "--out", copied, "--quiet")
    assert answer.code == 0, answer.err
    assert MINE.strip() in card.read_text()
    assert json.loads((copied / "result.json").read_text())["name"] == "tiny"


def test_a_changed_generated_part_stops_the_card_but_not_the_run(
    copied: Path, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    card = copied / "README.md"
    changed = card.read_text().replace("## Limits", "## Limits\n\n- Mine.")
    card.write_text(changed)
    refused = mega("card", copied)
    assert refused.code == 2 and "edited by hand" in refused.err
    assert card.read_text() == changed
    (copied / "result.json").unlink()
    answer = mega("merge", pair.write(tmp_path), "--out", copied, "--quiet")
    assert answer.code == 0, answer.err
    assert (copied / "README-before.md").read_text() == changed
    assert "- Mine." not in card.read_text()
    assert mega("card", copied, "--overwrite-card").code == 0
