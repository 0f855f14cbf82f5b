"""Permissions on the test Hub, and the cards that it accepts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from tests.hub_server.card import LICENSES, check_card
from tests.hub_server.server import Hub, serve

HIDDEN, MISSING = "RepositoryNotFoundError 401", "RepositoryNotFoundError 404"
WRONG = "HfHubHTTPError 401"
# token -> repository -> what its info and its files answer
ACCESS: dict[str | bool, dict[str, tuple[str, str]]] = {
    False: {
        "team/private": (HIDDEN, HIDDEN),
        "me/gated": ("seen", "GatedRepoError 401"),
        "me/missing": (HIDDEN, HIDDEN),
    },
    "hf_you": {
        "team/private": (MISSING, MISSING),
        "me/gated": ("seen", "GatedRepoError 403"),
        "me/missing": (MISSING, MISSING),
    },
    "hf_reader": {
        "team/private": ("seen", "seen"),
        "me/gated": ("seen", "seen"),
        "me/missing": (MISSING, MISSING),
    },
    "hf_wrong": {
        "team/private": (WRONG, WRONG),
        "me/gated": (WRONG, WRONG),
        "me/missing": (WRONG, WRONG),
    },
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("closed")
    (folder / "config.json").write_text("{}")
    with serve() as hub:
        hub.add("models", "me/gated", folder, gated=True)
        hub.add("models", "team/private", folder, private=True)
        hub.add("models", "me/open", folder)
        hub.add_user("me", token="hf_me")
        hub.add_user("you", token="hf_you")
        hub.add_user("reader", token="hf_reader", orgs=("team",), role="read", access=("me/gated",))
        yield hub


@pytest.mark.parametrize("token", ACCESS)
def test_who_sees_what(hub: Hub, token: str | bool, tmp_path) -> None:
    api = HfApi(endpoint=hub.url, token=token)

    def outcome(what: str, repository: str) -> str:
        try:
            if what == "info":
                api.model_info(repository)
            else:
                api.hf_hub_download(repository, "config.json", cache_dir=tmp_path)
        except HfHubHTTPError as error:
            return f"{type(error).__name__} {error.response.status_code}"
        return "seen"

    assert {
        name: (outcome("info", name), outcome("file", name)) for name in ACCESS[token]
    } == ACCESS[token]


def test_a_wrong_token_is_called_so(hub: Hub) -> None:
    # what the client says of a 401 to this question
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=hub.url, token="hf_wrong").whoami()
    with pytest.raises(HfHubHTTPError, match=r"Invalid username or password\."):
        HfApi(endpoint=hub.url, token="hf_wrong").model_info("me/open")


def test_lists_show_what_may_be_seen(hub: Hub) -> None:
    def seen(token: str | bool) -> set[str]:
        return {one.id for one in HfApi(endpoint=hub.url, token=token).list_models()}

    assert seen("hf_you") == {"me/gated", "me/open"}
    assert seen("hf_reader") == {"me/gated", "me/open", "team/private"}


def test_a_reader_writes_nothing(hub: Hub) -> None:
    for create_pr in (False, True):
        with pytest.raises(HfHubHTTPError, match="no right to write") as refused:
            HfApi(endpoint=hub.url, token="hf_reader").create_commit(
                "team/private",
                [CommitOperationAdd("a", b"1")],
                commit_message="Add",
                create_pr=create_pr,
            )
        assert refused.value.response.status_code == 403


INDEX = (
    "model-index: [{{name: m, results: [{{task: {{type: t}}, dataset: {{name: d, type: d}},"
    " metrics: [{}]}}]}}]"
)
GOOD = [
    "license: apache-2.0",
    "license: [mit, llama3.2]",
    "license: other\nlicense_name: mine\nlicense_link: https://example.org",
    "base_model: org/a",
    "base_model: [org/a, timm/b.c_d]\nbase_model_relation: merge",
    (
        "tags: [merge, mega]\ndatasets: [org/d]\nmetrics: [accuracy]\nlibrary_name:"
        " timm\npipeline_tag: x"
    ),
    INDEX.format("{type: accuracy, value: 0.5, name: Accuracy}, {type: note, value: high}"),
]
BAD = {
    "[a, b]": "YAML metadata must be a mapping",
    "license: mit\nlicense: mit": "duplicated mapping key",
    "license: 'unclosed": "YAML metadata error",
    "value: !!python/object/apply:numpy.float64 [1]": "YAML metadata error",
    "license: my-own": '"license" must be one of',
    "license: [mit, my-own]": '"license" must be one of',
    "license: other": '"license_name" is required',
    "base_model: [org/a, ./run]": (
        '"base_model[1]" with value "./run" is not valid. Use a model id from'
    ),
    "base_model: /home/me/model": '"base_model" with value "/home/me/model" is not valid',
    "base_model: [a/b/c]": '"base_model[0]" with value "a/b/c" is not valid',
    "base_model_relation: merged": '"base_model_relation" must be one of',
    "tags: merge": '"tags" must be an array of strings',
    "metrics: [1]": '"metrics" must be an array of strings',
    "library_name: [timm]": '"library_name" must be a string',
    "model-index: {name: m}": '"model-index" must be an array',
    "model-index: [{results: []}]": '"model-index[0].name" is required',
    INDEX.format("{value: 1}"): '"model-index[0].results[0].metrics[0].type" is required',
    INDEX.format("{type: accuracy, value: .nan}"): "must be a number or a string",
    INDEX.format("{type: accuracy}"): "must be a number or a string",
    INDEX.format(""): "metrics",
    INDEX.format("{type: a, value: 1}").replace(
        "name: d, ", ""
    ): '"model-index[0].results[0].dataset.name" is',
}


@pytest.mark.parametrize("data", GOOD)
def test_cards_that_are_taken(data: str) -> None:
    assert check_card(f"---\n{data}\n---\ntext") == ([], [])


@pytest.mark.parametrize("data", BAD)
def test_cards_that_are_refused(data: str) -> None:
    errors, _ = check_card(f"---\n{data}\n---\ntext")
    assert len(errors) == 1
    assert BAD[data] in errors[0]


def test_a_card_without_data_is_taken_with_a_warning() -> None:
    for text in ("# A model", "---\n---\n# A model", ""):
        assert check_card(text) == ([], ["empty or missing yaml metadata in repo card"])
    assert len(LICENSES) > 70


def test_a_bad_card_is_never_committed(hub: Hub) -> None:
    """The client asks before it uploads; the commit is checked too."""
    api, card = HfApi(endpoint=hub.url, token="hf_me"), b"---\nbase_model: ['./a']\n---\n"
    asked, head = len(hub.requests), hub.repositories["models", "me/open"].head
    with pytest.raises(
        ValueError, match=r'Invalid metadata in README.md.\n- "base_model\[0\]" with value "./a"'
    ):
        api.create_commit("me/open", [CommitOperationAdd("README.md", card)], commit_message="Add")
    assert hub.requests[asked:] == ["POST /api/validate-yaml"]
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(HfHubHTTPError, match="base_model") as refused,
    ):
        patch.setattr(HfApi, "_validate_yaml", lambda *_, **__: None)
        api.create_commit("me/open", [CommitOperationAdd("README.md", card)], commit_message="Add")
    assert refused.value.response.status_code == 400
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.create_commit(
            "me/open", [CommitOperationAdd("README.md", b"# A model")], commit_message="Add"
        )
    assert hub.repositories["models", "me/open"].head != head
