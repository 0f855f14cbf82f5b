"""The card: front matter that the Hub reads, numbers that are the result's, text of others made
harmless."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from mega_hf import MergeResult
from mega_hf.report.card import escape, render_card
from mega_hf.report.record import RunRecord


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
            assert escape(cell) in text
    assert escape(finished.report.verdict) in text
    assert finished.record.digests.file in text
    assert "selected on" in text
    assert "fitness.png" in text
    assert "import mega_hf.models.cifar_resnet" in text, (
        "a stranger's timm does not know the architecture"
    )
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert recipe["merge"] == finished.record.recipe["merge"]


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
    assert "not better than the parent that is best on validation" in render_card(
        changed(finished, models=models, paired=paired)
    )


def test_how_the_merged_model_was_made_is_said_of_that_model(
    finished: MergeResult, treed: MergeResult
) -> None:
    """Of the one that was named: a tree's own, a baseline that is none of its merges, or a parent
    as it is."""
    assert "by\nevolution (MeGA): a genetic" in render_card(finished)
    assert "evolution (MeGA, 3 merges, level by level): a genetic" in render_card(treed)
    soup = treed.record.final.to_dict() | {
        "name": "aligned_soup",
        "parents": list("abcd"),
    }
    soup["merge"] |= {"method": "uniform_soup", "align": "weights"}
    look = soup | {
        "name": "second_look",
        "chosen": "aligned_soup",
        "finalists": [{"name": "a", "correct": 1, "n": 2}],
    }
    models = treed.record.to_dict()["models"]
    row = next(model for model in models if model["role"] == "baseline") | {"name": "aligned_soup"}
    more = {"models": [row, *models], "baselines": [soup]}
    text = render_card(changed(treed, second_look=look, **more))
    assert (
        "averaging: the plain mean of the parents' weights, their channels in one order,"
        " measured on" in text
    )
    parent = render_card(changed(treed, second_look=look | {"chosen": "a"}, **more))
    assert "keeping one of them, a: none of the mixtures was surely better" in parent
    nodes = finished.record.to_dict()["nodes"]
    nodes[-1]["search"] |= {"generation": 1, "index": 1}
    assert "keeping one of them, b: nothing better was found" in render_card(
        changed(finished, nodes=nodes)
    )


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
    body = text.split("---\n", 2)[2].split("```yaml")
    for part in (body[0], body[1].split("```", 1)[1]):
        assert "<script>" not in part
        assert "[x](http" not in part
        assert "\n# head" not in part
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
def test_escape(text: object, expected: str) -> None:
    assert escape(text) == expected
