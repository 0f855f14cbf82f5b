"""`mega-hf verify`: what it prints, its exit codes, and bad words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_the_command(copied: Path, mega) -> None:
    answer = mega("verify", copied)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(
        "reproduced bit for bit from 2 parents and 26 recorded evaluations in "
    )
    told = json.loads(mega("verify", copied, "--json", "--evaluate", "2").out)
    assert (told["reproduced"], told["remeasured"]["lines"][0]["rows"]) == (True, 60)
    file = copied / "merged" / "config.json"
    file.write_text(file.read_text() + " ")
    answer = mega("verify", copied)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("mega-hf: not verified: merged: changed since the run")
    answer = mega("verify", copied, "--json")
    told = json.loads(answer.out)
    assert (answer.code, told["reproduced"], told["where"]) == (1, False, "merged")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "no such run"),
        (["./nowhere"], "no such run"),
        (["runs/nowhere"], "if you mean a folder, no folder has this name"),
        (["."], "not a run that can be verified"),
        (["RUN", "--data", "x"], "--data needs --evaluate"),
        (["RUN", "--parent", "c=./x"], "there is no parent c"),
        (["RUN", "--parent", "a=./x"], "a: no such parent folder"),
    ],
)
def test_bad_words(
    words: list[str], said: str, copied: Path, mega, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    answer = mega("verify", *(str(copied) if word == "RUN" else word for word in words))
    assert (answer.code, answer.out) == (2, "")
    for part in (said, "expected:", "got:", "hint:"):
        assert part in answer.err
