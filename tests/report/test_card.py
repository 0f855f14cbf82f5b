"""The card: front matter that the Hub reads, the result's numbers, and escaped text of others."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from mega_hf import MergeResult
from mega_hf.report.card import escape_markdown, render_card
from mega_hf.report.record import NodeResult, RunRecord


def changed(finished: MergeResult, **changes: Any) -> MergeResult:
    return MergeResult(RunRecord.from_dict(finished.record.to_dict() | changes), finished.folder)


def test_the_front_matter(finished: MergeResult) -> None:
    card = ModelCard(render_card(finished))
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("timm", "image-classification")
    assert {"merge", "mega"} <= set(data["tags"])
    assert "base_model" not in data, "local folders are no models of the Hub"
    assert "datasets" not in data
    (results,) = data["model-index"]
    assert results["name"] == "tiny"
    for result in results["results"]:
        counted = getattr(finished.report.merged, result["dataset"]["split"])
        assert result["metrics"][0]["value"] == pytest.approx(counted.accuracy, abs=1e-6)
    assert {result["dataset"]["split"] for result in results["results"]} == {"validation", "test"}
    assert "!!python" not in card.content


def test_the_front_matter_with_parents_of_the_hub(finished: MergeResult) -> None:
    parents = [
        {"name": n, "hub": f"org/{n}", "revision": "0" * 40, "sha256": "1" * 64} for n in "ab"
    ]
    source = {"hub": "org/data", "revision": "2" * 40}
    given = finished.record.to_dict()["data"] | {"source": source}
    record = changed(finished, parents=parents, data=given)
    data = ModelCard(render_card(record)).data.to_dict()
    assert data["base_model"] == ["org/a", "org/b"]
    assert data["base_model_relation"] == "merge"
    assert data["datasets"] == ["org/data"]


def test_a_parent_that_is_used_twice_is_listed_once(finished: MergeResult) -> None:
    parents = [
        {"name": n, "hub": "org/a", "revision": str(i) * 40, "sha256": "1" * 64}
        for i, n in enumerate("ab")
    ]
    assert ModelCard(render_card(changed(finished, parents=parents))).data.base_model == ["org/a"]


def test_the_text_says_what_the_result_says(finished: MergeResult) -> None:
    text = render_card(finished)
    for row in finished.report.rows():
        for cell in row:
            assert escape_markdown(cell) in text
    assert escape_markdown(finished.report.verdict) in text
    assert finished.record.digests.file in text
    assert "selected on" in text
    assert "fitness.png" in text
    assert "import mega_hf.models.cifar_resnet" in text, (
        "a stranger's timm does not know the architecture"
    )
    assert "[recipe.yaml](recipe.yaml)" in text
    assert len(text.split("---\n", 2)[2].splitlines()) <= 120


def test_what_was_local_is_to_be_given_again(finished: MergeResult) -> None:
    parents = {
        "local": {"local": "x", "sha256": "1"},
        "w": {"arch": "x", "weights": {"local": "w", "sha256": "2"}},
    }
    parents |= {"t": {"train": {"seed": 1, "from": {"local": "y"}}}, "h": "org/h@main"}
    recipe = finished.record.recipe | {
        "parents": parents,
        "data": {"path": {"local": "d", "sha256": {}}},
    }
    sets = (
        "--set parents.local=PATH --set parents.w.weights=PATH --set parents.t.train.from=PATH"
        " --set data.path=PATH"
    )
    words = sorted(re.findall(r"--set \S+", sets))
    shown = re.search(
        r"^mega-hf merge recipe.yaml(.*)$",
        render_card(changed(finished, recipe=recipe)),
        flags=re.M,
    )
    assert shown is not None
    assert sorted(re.findall(r"--set \S+", shown[1])) == words
    recipe["parents"], recipe["data"] = {"h": "org/h@main"}, {"path": "org/d"}
    assert "\nmega-hf merge recipe.yaml\n" in render_card(changed(finished, recipe=recipe))


def test_the_sentence_where_the_merge_is_not_better(finished: MergeResult) -> None:
    models = finished.record.to_dict()["models"]
    for model in models:
        model["test"] = {"correct": 50, "n": 90}
    paired = finished.record.to_dict()["paired"]
    paired |= {"against": "a", "only_merged_right": 4, "only_other_right": 4, "p": 1.0}
    assert (
        "**No improvement over a, the best parent on validation (equal on test).**"
        in render_card(changed(finished, models=models, paired=paired))
    )


def test_the_method_is_that_of_the_merged_model(finished: MergeResult, treed: MergeResult) -> None:
    """Of a search, of a tree's final search, of the baseline that was chosen, or of a copy."""
    assert "trained models by a genetic algorithm (MeGA)" in render_card(finished)
    assert "around the parents, in a tree of 3 merges" in render_card(treed)
    soup = treed.record.final.to_dict() | {"name": "aligned_soup", "parents": list("abcd")}
    soup["merge"] |= {"method": "uniform_soup", "align": "weights"}
    finalists = [{"name": "a", "correct": 1, "n": 2}]
    look = soup | {"name": "second_look", "chosen": "aligned_soup", "finalists": finalists}
    models = treed.record.to_dict()["models"]
    row = next(model for model in models if model["role"] == "baseline") | {"name": "aligned_soup"}
    more = {"models": [row, *models], "baselines": [soup]}
    text = render_card(changed(treed, second_look=look, **more))
    assert "by averaging the parents' weights (uniform soup), after aligning their channels" in text
    parent = render_card(changed(treed, second_look=look | {"chosen": "a"}, **more))
    assert "is a copy of the parent a recalibrated: no merge was clearly better on the" in parent
    assert "the result is one of them with recalibrated BatchNorm statistics" in parent
    nodes = finished.record.to_dict()["nodes"]
    nodes[-1]["search"] |= {"generation": 1, "index": 1}
    copy = render_card(changed(finished, nodes=nodes))
    assert "**The merged model is a copy of the parent b recalibrated: no merge was better." in copy


@pytest.mark.parametrize(
    ("method", "generation", "index", "unchanged"),
    [
        ("mega", 1, 1, "b"),
        ("mega", 1, 2, None),
        ("mega", 2, 1, None),
        ("uniform_soup", 1, 0, None),
        ("greedy_soup", 1, 1, "b"),
        ("greedy_soup", 2, 0, None),
        ("cma-es", 1, 0, None),
        ("cma-es", 1, 2, "b"),
        ("choose", 1, 0, "a"),
        ("line-sweep", 1, 0, "a"),
        ("line-sweep", 1, 1, None),
        ("line-sweep", 3, 3, "b"),
        ("line-sweep", 3, 2, None),
    ],
)
def test_a_merge_that_is_a_copy_of_an_input(
    method: str, generation: int, index: int, unchanged: str | None, finished: MergeResult
) -> None:
    """Of a sweep of 14 points in generations of 6, 5 new ones and 3 new ones."""
    node = finished.record.final.to_dict()
    node["merge"] |= {"method": method, "population_size": 6}
    node["search"] |= {"generation": generation, "index": index, "evaluations": 14}
    assert NodeResult.model_validate(node).unchanged_input == unchanged


def test_how_to_load_a_transformers_model(finished: MergeResult) -> None:
    text = render_card(
        changed(finished, library="transformers", architecture="ViTForImageClassification")
    )
    assert 'AutoModelForImageClassification.from_pretrained("merged")' in text
    assert "import timm" not in text


def test_text_of_others_is_harmless(finished: MergeResult) -> None:
    evil = "<script>alert(1)</script> | [x](http://evil) `code`\n# head"
    record = finished.record.to_dict()
    models = record["models"]
    parents = [{"name": evil, "local": evil, "sha256": "1" * 64}, *record["parents"][1:]]
    models[1]["name"] = evil
    other = models[0]["name"] if finished.record.paired.against == "b" else None
    paired = finished.record.to_dict()["paired"] | ({"against": evil} if other else {})
    text = render_card(
        changed(finished, parents=parents, models=models, paired=paired, notices=[evil])
    )
    body = text.split("---\n", 2)[2]
    assert not any(harm in body for harm in ("<script>", "[x](http", "\n# head"))
    assert yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("<b>", "&lt;b&gt;"),
        ("two\nlines", "two lines"),
        ("_x_ *y*", r"\_x\_ \*y\*"),
        (7, "7"),
    ],
)
def test_escape_markdown(text: object, expected: str) -> None:
    assert escape_markdown(text) == expected
