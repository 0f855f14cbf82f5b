"""A Hub that misbehaves: one commit or none, the run as it was, and a second push completes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.hub.checks import MIT, commits, content, folder, front_of, refused
from tests.hub_server.server import Hub
from tests.tools.commands import Commands

LFS, COMMIT = r"PUT /lfs/", r"POST /api/models/.*/commit/"
PASSING: dict[str, tuple[str, str, dict[str, Any]]] = {
    "429 on creation": ("status", r"POST /api/repos/create", {"status": 429, "retry_after": 1}),
    "429 on upload": ("status", LFS, {"status": 429, "retry_after": 1}),
    "500 on upload": ("status", LFS, {"status": 500}),
    "503 on the list": ("status", r"POST .*/preupload/", {"status": 503}),
    "500 on commit": ("status", COMMIT, {"status": 500}),
    "a cut upload": ("cut", LFS, {"after": 1000}),
    "a cut commit": ("cut", COMMIT, {"after": 100}),
    "no commit of what was uploaded": ("lose_commit", "", {}),
    "a stalled commit": ("stall", COMMIT, {"seconds": 30}),
    "a cut download while comparing": ("cut", r"GET /.*/resolve/.*/result.json", {"after": 10}),
}


@pytest.mark.parametrize("case", PASSING)
def test_what_passes_is_waited_for(case: str, hub: Hub, run: Commands, name: str) -> None:
    kind, match, options = PASSING[case]
    before = content(folder(run))
    hub.misbehave(kind, match, times=1, **options)
    answer = run("push", "run", name, *MIT)
    assert answer.code == 0, answer.err
    assert "retry" in answer.err.lower() or "download" in case, answer.err
    assert commits(hub, name) == 1
    assert content(folder(run)) == before


@pytest.mark.parametrize("case", PASSING)
def test_what_does_not_pass_ends_the_push_and_a_second_one_completes(
    case: str, hub: Hub, run: Commands, name: str
) -> None:
    kind, match, options = PASSING[case]
    before = content(folder(run))
    hub.misbehave(kind, match, times=None, **options)
    refused(run("push", "run", name, *MIT), "nothing is lost: run the same push")
    assert content(folder(run)) == before
    assert commits(hub, name) <= 1
    hub.behave()
    second = run("push", "run", name, *MIT)
    assert second.code == 0, second.err
    assert commits(hub, name) == 1
    files = hub.repositories["models", name].files("main")
    assert files["model.safetensors"] == before["merged/model.safetensors"]
    assert {
        "README.md",
        "recipe.yaml",
        "journal.jsonl",
        "result.json",
        "fitness.png",
        "config.json",
    } <= files.keys()


def test_what_was_uploaded_is_not_sent_twice(hub: Hub, run: Commands, name: str) -> None:
    hub.misbehave("lose_commit", "", times=None)
    refused(run("push", "run", name, *MIT))
    hub.behave()
    asked = len(hub.requests)
    assert run("push", "run", name, *MIT).code == 0
    assert not [line for line in hub.requests[asked:] if line.startswith("PUT")]


def test_a_commit_whose_answer_is_lost_is_not_made_twice(
    hub: Hub, run: Commands, name: str
) -> None:
    hub.misbehave("lose_answer", "", times=None)
    answer = run("push", "run", name, *MIT)
    assert answer.code == 0, answer.err
    assert commits(hub, name) == 1


def test_a_pull_request_whose_answer_is_lost_is_not_opened_twice(
    hub: Hub, run: Commands, name: str
) -> None:
    assert run("push", "run", name, *MIT).code == 0
    hub.misbehave("lose_answer", "", times=1)
    answer = run("push", "run", name, "--license", "apache-2.0", "--create-pr", "--overwrite-card")
    assert answer.code == 0, answer.err
    assert "/discussions/1" in answer.out
    repository = hub.repositories["models", name]
    assert len(repository.pulls) == 1
    assert front_of(hub, name)["license"] == "mit"
    assert front_of(hub, name, "refs/pr/1")["license"] == "apache-2.0"


@pytest.mark.parametrize("silent", [False, True])
def test_other_bytes_than_were_sent_are_noticed(
    silent: bool, hub: Hub, run: Commands, name: str
) -> None:
    before = content(folder(run))
    hub.misbehave("corrupt", r"PUT /lfs/", times=None, silent=silent)
    answer = run("push", "run", name, *MIT)
    refused(answer, *(["other bytes than were sent"] if silent else []))
    assert content(folder(run)) == before
    hub.behave()
    second = run("push", "run", name, *MIT)
    assert second.code == 0, second.err
    assert (
        hub.repositories["models", name].files("main")["model.safetensors"]
        == before["merged/model.safetensors"]
    )


def test_someone_elses_commit_in_between_is_kept(
    hub: Hub, run: Commands, name: str, tmp_path: Path
) -> None:
    assert run("push", "run", name, *MIT).code == 0
    (tmp_path / "NOTES.txt").write_text("mine")
    hub.add("models", name, tmp_path)  # now a repository with nothing but this file
    assert run("push", "run", name, *MIT).code == 0
    files = hub.repositories["models", name].files("main")
    assert files["NOTES.txt"] == b"mine" and "model.safetensors" in files


def test_a_download_that_was_damaged_is_fetched_again(
    hub: Hub, run: Commands, name: str, tmp_path: Path
) -> None:
    assert run("push", "run", name, *MIT).code == 0
    hub.misbehave("corrupt", rf"GET /{name}/resolve/.*/config\.json", times=1)
    pulled = run("pull", name, "--out", tmp_path / "pulled")
    assert pulled.code == 0, pulled.err
