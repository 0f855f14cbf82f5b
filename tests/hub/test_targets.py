"""Who may push, where to, and what a push leaves there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mega_hf import MergeResult
from tests.hub.checks import MIT, READER, TOKEN, commits, folder, refused
from tests.hub_server.server import Hub
from tests.tools.commands import Commands


def test_nobody_is_logged_in(run: Commands, hub: Hub, name: str) -> None:
    run.set(HF_TOKEN=None)
    refused(run("push", "run", name, *MIT), "nobody is logged in", "hf auth login")
    assert commits(hub, name) == 0


@pytest.mark.parametrize(
    ("token", "target", "said"),
    [
        ("hf_" + "Nobody" * 6, "me/x", "does not know this token"),
        (READER, "reader/x", "the token of reader may only read"),
        (TOKEN, "others/x", "me may not write there"),
        (TOKEN, "me", "not a repository's name"),
        (TOKEN, "me/a b", "not a repository's name"),
        (TOKEN, "./run", "not a repository's name"),
    ],
)
def test_who_may_not_push_is_told_why(
    run: Commands, hub: Hub, token: str, target: str, said: str
) -> None:
    run.set(HF_TOKEN=token)
    answer = run("push", "run", target, *MIT)
    refused(answer, said)
    assert token not in answer.err
    assert ("models", target) not in hub.repositories


def test_a_team_of_ones_own(run: Commands, hub: Hub) -> None:
    assert run("push", "run", "team/x", *MIT).code == 0
    assert commits(hub, "team/x") == 1


def test_private_is_private_and_never_public(run: Commands, hub: Hub, name: str) -> None:
    assert run("push", "run", name, *MIT, "--private").code == 0
    assert hub.repositories["models", name].private
    assert run("push", "run", name, *MIT).code == 0, "what is there stays as it is"
    assert hub.repositories["models", name].private
    assert run("push", "run", name + "-open", *MIT).code == 0
    refused(run("push", "run", name + "-open", *MIT, "--private"), "the repository is public")


def test_a_branch_is_made(run: Commands, hub: Hub, name: str) -> None:
    for again in (False, True):
        answer = run("push", "run", name, *MIT, "--branch", "exp/1")
        assert answer.code == 0, answer.err
        assert ("already" in answer.out) == again
    repository = hub.repositories["models", name]
    assert "model.safetensors" in repository.files("exp/1")
    assert "model.safetensors" not in repository.files("main")


def test_a_message_of_ones_own(run: Commands, hub: Hub, name: str) -> None:
    assert run("push", "run", name, *MIT, "--message", "My words").code == 0
    assert b"My words" in b"".join(hub.bodies)


def test_the_run_folder_must_be_one(run: Commands, tmp_path: Path, name: str) -> None:
    refused(run("push", tmp_path, name, *MIT), "no finished run")
    shutil.copytree(folder(run), tmp_path / "changed")
    (tmp_path / "changed" / "merged" / "config.json").write_text("{}")
    refused(run("push", tmp_path / "changed", name, *MIT), "changed since")


def test_a_dry_run_says_all_and_sends_nothing(run: Commands, hub: Hub, name: str) -> None:
    asked = len(hub.requests)
    answer = run("push", "run", name, *MIT, "--dry-run")
    assert answer.code == 0, answer.err
    for part in (
        name,
        "would be created",
        "model.safetensors",
        "README.md",
        "license mit",
        "Nothing was pushed",
    ):
        assert part in answer.out
    written = [line for line in hub.requests[asked:] if not line.startswith(("GET", "HEAD"))]
    assert written == ["POST /api/validate-yaml"]
    assert ("models", name) not in hub.repositories
    refused(run("push", "run", name, "--dry-run"), "no license in common")


def test_the_card_of_a_branch_names_the_branch(
    run: Commands, hub: Hub, name: str, tmp_path: Path
) -> None:
    assert run("push", "run", name, *MIT, "--branch", "exp/1").code == 0
    text = hub.repositories["models", name].files("exp/1")["README.md"].decode()
    assert f'"hf-hub:{name}@exp/1"' in text and f"mega-hf pull {name}@exp/1 --out" in text
    assert run("pull", f"{name}@exp/1", "--out", tmp_path / "pulled").code == 0
    refused(run("pull", name, "--out", tmp_path / "main"), "not a merge that mega-hf pushed")


def test_a_branch_is_not_made_for_a_push_that_is_refused(
    run: Commands, hub: Hub, name: str, tmp_path: Path
) -> None:
    assert run("push", "run", name, *MIT).code == 0
    repository = hub.repositories["models", name]
    for path, file in repository.files("main").items():
        (tmp_path / path).write_bytes(
            file.replace(b"## Limits", b"## Limits\n\n- Mine.") if path == "README.md" else file
        )
    hub.add("models", name, tmp_path)
    for option in ([], ["--dry-run"]):
        refused(run("push", "run", name, *MIT, "--branch", "exp", *option), "edited by hand")
    assert "exp" not in repository.branches


def test_another_merges_pull_request_is_left_alone(
    run: Commands, hub: Hub, name: str, treed: MergeResult
) -> None:
    assert run("push", "run", name, *MIT, "--create-pr").code == 0
    assert run("push", treed.folder, name, *MIT, "--create-pr").code == 0
    repository = hub.repositories["models", name]
    assert len(repository.pulls) == 2
    first, second = (repository.files(f"refs/pr/{number}")["recipe.yaml"] for number in (1, 2))
    assert first != second


def test_the_license_that_a_merge_is_under_is_not_asked_for_again(
    run: Commands, hub: Hub, name: str, tmp_path: Path
) -> None:
    assert run("push", "run", name, *MIT).code == 0
    assert "already" in run("push", "run", name).out
    assert run("pull", name, "--out", tmp_path / "pulled").code == 0
    assert "already" in run("push", tmp_path / "pulled", name).out
    assert run("push", tmp_path / "pulled", name + "-2").code == 0


def test_a_token_in_the_commits_message_stops_the_push(run: Commands, hub: Hub, name: str) -> None:
    refused(
        run("push", "run", name, *MIT, "--message", f"by {READER}"),
        "contains a token",
        "message",
    )
    refused(
        run("push", "run", name, *MIT, "--message", f"from {Path.home()}/x"),
        "a local path",
        "message",
    )
    assert commits(hub, name) == 0
