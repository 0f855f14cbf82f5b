"""Merges whose parents' channels are put in one order first: journaled, resumed, replayed,
refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from mega_hf import MergeResult, ParentError, Recipe, VerificationError, merge, verify
from mega_hf.evaluation.aligner import Aligner
from mega_hf.run.journal import Journal
from mega_hf.weights.symmetry import find_symmetry
from tests.tools import tiny
from tests.tools.forged import rewrite
from tests.tools.run_files import journal, weights_of
from tests.tools.started import merge_in_two
from tests.weights.permuted import shuffle

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def scattered(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> tiny.Pair:
    """Two parents not far from each other, but for the second one's channels, which are in a random
    order."""
    folder = tmp_path_factory.mktemp("scattered")
    near = tiny.make_pair(folder / "near", tiny.timm_model(), strength=0.3, data=pair.data)
    model = timm.create_model(f"local-dir:{near.b}", pretrained=True).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moved, _ = shuffle(state, find_symmetry(model, SHAPE, "b").groups)
    model.load_state_dict(moved)
    tiny.save_timm(folder / "b", model)
    return tiny.Pair(near.a, folder / "b", pair.data)


def recipe(pair: tiny.Pair, align: str, **more: Any) -> Recipe:
    return Recipe.from_dict(pair.recipe(merge=tiny.MERGE | {"align": align} | more))


@pytest.fixture(scope="module")
def aligned(scattered: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    return merge(recipe(scattered, "weights"), tmp_path_factory.mktemp("aligned") / "out")


def _tests(result: MergeResult) -> dict[str, int]:
    return {model.name: model.test.correct for model in result.report.models}


def test_aligning_makes_the_average_a_good_model(aligned: MergeResult) -> None:
    """By construction the middle of the two in one order is a good model, and without an order it
    is none."""
    found = _tests(aligned)
    assert found["aligned_soup"] > found["uniform_soup"] + 10
    assert found["aligned_soup"] >= max(found["a"], found["b"]) - 3


@pytest.mark.parametrize("encoding", ["direct", "mixing"])
def test_alignment_by_activations(scattered: tiny.Pair, tmp_path: Path, encoding: str) -> None:
    result = merge(recipe(scattered, "activations", encoding=encoding), tmp_path / "out")
    found = _tests(result)
    assert found["aligned_soup"] > found["uniform_soup"] + 10
    assert verify(tmp_path / "out", evaluate=3).digests["file"] == result.record.digests.file


def test_permutations_are_journaled_before_their_use(
    aligned: MergeResult,
) -> None:
    kinds = [line["kind"] for line in journal(aligned.folder)]
    assert kinds[:3] == ["header", "node", "aligned"]
    (line,) = journal(aligned.folder, "aligned")
    assert (line["parent"], len(line["groups"])) == ("b", 6)
    moved = [
        order for group in line["groups"] if (order := group["order"]) != sorted(group["order"])
    ]
    assert len(moved) == 6


def test_baselines_are_aligned_like_the_merge_without_new_permutations(
    scattered: tiny.Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, find = [], Aligner.find
    monkeypatch.setattr(Aligner, "find", lambda self, *words: found.append(1) or find(self, *words))
    more = {
        "baselines": ["greedy_soup", "line-sweep"],
        "data": scattered.recipe()["data"] | {"second_look": 0.5},
    }
    result = merge(
        Recipe.from_dict(scattered.recipe(merge=tiny.MERGE | {"align": "weights"}, **more)),
        tmp_path / "out",
    )
    lines = {line["node"]: line["groups"] for line in journal(result.folder, "aligned")}
    assert list(lines) == ["a+b", "aligned_soup", "greedy_soup", "line-sweep"] and len(found) == 1
    assert len({str(groups) for groups in lines.values()}) == 1
    assert _tests(result)["greedy_soup"] > _tests(result)["uniform_soup"] + 10
    assert verify(tmp_path / "out", evaluate=3).parents == 2


def test_permutations_are_found_once(
    aligned: MergeResult, scattered: tiny.Pair, tmp_path: Path, interrupt: Any, monkeypatch
) -> None:
    calls: Iterator[int] = interrupt(20)
    with pytest.raises(KeyboardInterrupt):
        merge(recipe(scattered, "weights"), tmp_path / "out")
    monkeypatch.setattr(
        "mega_hf.evaluation.aligner.weight_matching", lambda *_, **__: pytest.fail("found again")
    )
    result = merge(recipe(scattered, "weights"), tmp_path / "out")
    assert next(calls) > 20
    assert weights_of(result.folder) == weights_of(aligned.folder)


def test_a_replay_needs_no_tracing(aligned: MergeResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mega_hf.evaluation.aligner.find_symmetry", lambda *_, **__: pytest.fail("traced")
    )
    assert verify(aligned.folder).digests["file"] == aligned.record.digests.file


def test_three_parents_are_aligned_with_the_first(
    scattered: tiny.Pair, pair: tiny.Pair, tmp_path: Path
) -> None:
    parents = {"a": str(scattered.a), "c": str(scattered.a.parent / "b"), "b": str(scattered.b)}
    merges = tiny.MERGE | {"align": "weights"}
    result = merge(Recipe.from_dict(pair.recipe(merge=merges, parents=parents)), tmp_path / "out")
    first, second = journal(result.folder, "aligned")
    assert (first["parent"], second["parent"]) == ("c", "b")
    assert not any(group["order"] != sorted(group["order"]) for group in first["groups"]), (
        "it was in order"
    )
    assert verify(result.folder).parents == 3


def test_parents_are_aligned_with_align_to(scattered: tiny.Pair, tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "baselines": ["greedy_soup"],
        "data": scattered.recipe()["data"] | {"second_look": 0.5},
    }
    merges = tiny.MERGE | {"align": "weights", "align_to": "b"}
    result = merge(Recipe.from_dict(scattered.recipe(merge=merges, **more)), tmp_path / "out")
    lines = journal(result.folder, "aligned")
    assert [line["parent"] for line in lines] == ["a"] * 3, "as the merge was, so its baselines are"
    assert _tests(result)["aligned_soup"] > _tests(result)["uniform_soup"] + 10
    assert verify(result.folder, evaluate=3).parents == 2
    first = journal(merge(recipe(scattered, "weights"), tmp_path / "first").folder, "aligned")
    for there, back in zip(lines[0]["groups"], first[0]["groups"], strict=True):
        assert [there["order"][place] for place in back["order"]] == list(range(back["size"])), (
            "the way back"
        )


def test_of_another_parent_the_report_says_nothing_that_the_merge_did_not_do(
    scattered: tiny.Pair, tmp_path: Path
) -> None:
    """A tree's last merge aligns others than the run's parents: their baselines have the first as
    their reference."""
    merges = {"ab": {"parents": ["a", "b"]}, "last": {"parents": ["ab", "c"], "align_to": "ab"}}
    parents = {"a": str(scattered.a), "b": str(scattered.b), "c": str(scattered.a.parent / "b")}
    more: dict[str, Any] = {"merges": merges, "parents": parents, "baselines": ["greedy_soup"]}
    made = merge(
        Recipe.from_dict(scattered.recipe(merge=tiny.MERGE | {"align": "weights"}, **more)),
        tmp_path / "out",
    )
    assert [line["parent"] for line in journal(made.folder, "aligned")] == ["b", "c", "b", "c"]
    assert verify(made.folder).parents == 3


@pytest.mark.long
@pytest.mark.parametrize("align", ["weights", "activations"])
def test_two_processes_give_the_file_of_one(
    align: str, scattered: tiny.Pair, tmp_path: Path
) -> None:
    one = merge(recipe(scattered, align), tmp_path / "one")
    file = scattered.write(tmp_path, merge=tiny.MERGE | {"align": align})
    merge_in_two(file, tmp_path / "two")
    assert weights_of(tmp_path / "two") == weights_of(one.folder)
    assert MergeResult.load(tmp_path / "two").record.models == one.record.models


# --- What is refused


def _swap(groups: list[dict[str, Any]]) -> None:
    order = groups[3]["order"]
    order[0], order[1] = order[1], order[0]


def _drop_place(groups: list[dict[str, Any]]) -> None:
    groups[3]["places"].pop()


LIES: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "another order": (_swap, r"journal.jsonl"),
    "no permutation": (
        lambda groups: groups[3].update(order=[0] * groups[3]["size"]),
        r"^journal.jsonl: .*aligned",
    ),
    "an order that changes the function": (
        _drop_place,
        r"^journal.jsonl: .*changed its output",
    ),
    "unknown entry": (
        lambda groups: groups[0]["places"][0].__setitem__(0, "x"),
        r"^journal.jsonl: .*aligned",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_forged_permutations_fail_verification(
    lie: str, aligned: MergeResult, tmp_path: Path
) -> None:
    change, said = LIES[lie]
    copy = Path(shutil.copytree(aligned.folder, tmp_path / "copy"))
    lines = journal(copy)
    for line in lines:
        if line["kind"] == "aligned":
            change(line["groups"])
    rewrite(copy, lines)
    with pytest.raises(VerificationError, match=said):
        verify(copy)


def test_missing_permutations_fail_verification(aligned: MergeResult, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(aligned.folder, tmp_path / "copy"))
    rewrite(copy, [line for line in journal(copy) if line["kind"] != "aligned"])
    assert Journal(copy / "journal.jsonl").nodes["a+b"].aligned == {}
    with pytest.raises(VerificationError, match=r"^journal.jsonl: .*aligned"):
        verify(copy)


def test_a_model_that_cant_be_traced_is_an_error_before_the_run(
    pair: tiny.Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mega: Any
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("data-dependent")

    monkeypatch.setattr(torch.export, "export", fail)
    file = pair.write(tmp_path, merge=tiny.MERGE | {"align": "weights"})
    for words in (("merge", file, "--out", tmp_path / "out"), ("merge", file, "--dry-run")):
        answer = mega(*words)
        assert (
            answer.code == 2 and "cannot align the model: torch.export can't trace it" in answer.err
        )
        assert "hint:     set merge.align: none" in answer.err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ParentError):
        merge(Recipe.from_dict(json.loads(file.read_text())), tmp_path / "out")


def test_the_card_says_nothing_of_statistics_that_were_blended(
    scattered: tiny.Pair, tmp_path: Path
) -> None:
    """Aligning by activations shows calibration pictures too."""
    result = merge(recipe(scattered, "activations", batchnorm="blend"), tmp_path / "out")
    assert result.record.data.calibration is not None
    assert "recomputed" not in (result.folder / "README.md").read_text()
