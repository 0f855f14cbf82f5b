"""Front matter, checked as the Hub checks it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from mega_hf import MergeResult
from mega_hf.errors import HubError
from mega_hf.hub.metadata import check_front
from mega_hf.report.card import render_card
from mega_hf.report.card_edits import split_card


@pytest.fixture
def front(finished: MergeResult) -> dict[str, Any]:
    return copy.deepcopy(split_card(render_card(finished))[0])


def test_what_we_make_is_taken(front: dict[str, Any]) -> None:
    check_front(front)
    check_front(
        front
        | {
            "license": "mit",
            "base_model": ["o/a", "gpt2"],
            "datasets": ["o/d"],
            "co2": {"x": 1},
        }
    )
    check_front(front | {"license": "other", "license_name": "mine", "license_link": "LICENSE"})


WRONG = {
    "license": "my-own",
    "base_model": ["/models/a"],
    "base_model_relation": "marriage",
    "tags": "merge",
    "datasets": [{"a": 1}],
    "library_name": None,
    "model-index": [
        {"name": "x", "results": [{"task": {"type": "t"}, "dataset": {"type": "d"}, "metrics": []}]}
    ],
}


@pytest.mark.parametrize("key", WRONG)
def test_what_the_hub_would_refuse_is_refused_here(key: str, front: dict[str, Any]) -> None:
    with pytest.raises(HubError, match="front matter") as caught:
        check_front(front | {key: WRONG[key]})
    assert key in str(caught.value)


def test_other_needs_a_name(front: dict[str, Any]) -> None:
    with pytest.raises(HubError, match="license_name"):
        check_front(front | {"license": "other"})


def test_a_metric_that_is_no_number_is_refused(front: dict[str, Any]) -> None:
    front["model-index"][0]["results"][0]["metrics"][0]["value"] = None
    with pytest.raises(HubError, match=r"metrics\.0\.value"):
        check_front(front)
