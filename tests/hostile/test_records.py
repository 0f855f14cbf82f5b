"""A result.json with any value replaced, and other records: each is loaded whole, or an error."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mega_hf.errors import RunError
from mega_hf.models.load import open_model
from mega_hf.report.card import render_card
from mega_hf.report.plots import plot_fitness
from mega_hf.report.result import MergeResult
from mega_hf.verification import consistency
from mega_hf.verification.claims import _reading, load_claims
from tests.hostile.cases import DEEP, bounded, cases, mutated, used

CARDS = Path(__file__).parents[2] / "model_cards"
KINDS = ["cifar10-resnet20-pair-default-46", "cifar10-resnet20-tree4"]


def _record(kind: str) -> Any:
    record = json.loads((CARDS / kind / "result.json").read_text())
    record["history"] = record["history"][:2]  # so that most cases change something else
    for node in record["nodes"]:
        node["history"] = node["history"][:1]
    return record


def _loaded(folder: Path, content: str) -> Any:
    (folder / "result.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    return MergeResult.load(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_any_value_of_a_result(kind: str, tmp_path: Path) -> None:
    uses = [lambda result: str(result.report), lambda result: result.history, render_card]

    @cases(200)
    @given(mutated(_record(kind), ["merged", "parent", "a b", [{}], 2001]))
    def check(record: Any) -> None:
        used(lambda: _loaded(tmp_path, json.dumps(record)), *uses)

    check()


def test_any_value_of_a_plotted_result(tmp_path: Path) -> None:
    @cases(15)
    @given(mutated(_record(KINDS[1]), ["merged", 500]))
    def check(record: Any) -> None:
        used(lambda: _loaded(tmp_path, json.dumps(record)), lambda r: plot_fitness(r.record))

    check()


def test_any_bytes_of_a_result(tmp_path: Path) -> None:
    valid = json.dumps(_record(KINDS[0])).encode()
    at = st.integers(0, len(valid) - 1)

    @cases(200)
    @given(st.lists(st.tuples(at, st.integers(0, 255)), max_size=3), st.none() | at)
    def check(changes: list[tuple[int, int]], end: int | None) -> None:
        content = bytearray(valid)
        for place, byte in changes:
            content[place] = byte
        (tmp_path / "result.json").write_bytes(content[:end])
        used(lambda: MergeResult.load(tmp_path), lambda result: str(result.report))

    check()


@pytest.mark.parametrize(
    "content", [DEEP, "", "NaN", '"x"', "[1]", '{"version": 1e999}', " " * 2**26]
)
def test_invalid_content(content: str, tmp_path: Path) -> None:
    with bounded(), pytest.raises(RunError):
        _loaded(tmp_path, content)


def test_a_result_that_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "result.json")
    with bounded(), pytest.raises(RunError, match="not a regular file"):
        MergeResult.load(tmp_path)


def test_a_version_that_a_terminal_would_obey(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        _loaded(tmp_path, json.dumps({"version": "\x1b[2J"}))
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("stamp", [b"", b"\xff" * 10**6, b"x\n" * 10**6, b"\n"])
def test_a_stamp_of_a_trained_parent(stamp: bytes, tmp_path: Path) -> None:
    from mega_hf.training.train import check_trained

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.sha256").write_bytes(stamp)
    with bounded():
        assert check_trained(tmp_path, {"a": "0" * 64}, update=False) == []


def test_any_value_that_verify_compares(folders: dict[str, Path], tmp_path: Path) -> None:
    """Whatever the replay does not need; a forger sets the digests."""
    told, first = load_claims(CARDS / KINDS[1]), open_model(folders["timm"])
    given_record = told.record.to_dict()

    def doubted(record: Any) -> None:
        with _reading("result.json"):
            doubtful = replace(told, folder=tmp_path, result=_loaded(tmp_path, json.dumps(record)))
        models = consistency._rebuild_models(doubtful, first)
        consistency._rebuild_data(doubtful, first)
        consistency._rebuild_paired(doubtful.record, models)
        assert record == given_record or any(consistency.differences(given_record, record))
        consistency._compare_card(doubtful)

    @cases(200)
    @given(mutated(told.result.record.to_dict(), ["merged", "parent", "a b", [{}], 2001]))
    def check(record: Any) -> None:
        used(lambda: record, doubted)

    check()
