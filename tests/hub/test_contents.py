"""What is pushed: license, card, no path and no token; and what an earlier push left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mega_hf import MergeResult
from tests.hub.checks import MIT, READER, commits, front_of, refused
from tests.hub_server.server import Hub
from tests.tools import tiny
from tests.tools.commands import Commands


def test_without_a_license_nothing_is_guessed(run: Commands, hub: Hub, name: str) -> None:
    refused(run("push", "run", name), "a: none; b: none", "--license")
    refused(run("push", "run", name, "--license", "my own"), "not a license identifier")
    refused(run("push", "run", name, "--license", "my-own"), "must be one of")
    assert ("models", name) not in hub.repositories


def edit(hub: Hub, name: str, tmp_path: Path, change: Any) -> None:
    """Change a repository's card, as its owner does on the page."""
    for path, file in hub.repositories["models", name].files("main").items():
        (tmp_path / path).write_bytes(
            file if path != "README.md" else change(file.decode()).encode()
        )
    hub.add("models", name, tmp_path)


def test_what_was_written_by_hand_is_kept(
    run: Commands, hub: Hub, name: str, tmp_path: Path
) -> None:
    assert run("push", "run", name, *MIT).code == 0
    edit(
        hub,
        name,
        tmp_path,
        lambda card: card.replace("tags:", "language: en\ntags:", 1) + "\n## Mine\n\nKeep.\n",
    )
    assert run("push", "run", name, "--license", "mit").code == 0
    text = hub.repositories["models", name].files("main")["README.md"].decode()
    assert "## Mine\n\nKeep." in text
    assert front_of(hub, name)["language"] == "en"
    assert run("pull", name, "--out", tmp_path / "pulled").code == 0
    assert run("card", tmp_path / "pulled").code == 0
    assert "## Mine\n\nKeep." in (tmp_path / "pulled" / "README.md").read_text()
    assert run("push", "run", name, "--license", "mit", "--overwrite-card").code == 0
    assert "Keep." not in hub.repositories["models", name].files("main")["README.md"].decode()


def test_a_card_that_is_no_text_is_not_rewritten(
    run: Commands, hub: Hub, name: str, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_bytes("# Grüße aus Köln".encode("latin-1"))
    hub.add("models", name, tmp_path)
    refused(run("push", "run", name, *MIT), "UTF-8", "--overwrite-card")
    assert run("push", "run", name, *MIT, "--overwrite-card").code == 0


def test_own_words_may_name_paths(run: Commands, hub: Hub, name: str, tmp_path: Path) -> None:
    assert run("push", "run", name, *MIT).code == 0
    edit(
        hub, name, tmp_path, lambda card: card + "\n## Mine\n\ndocker run -v /data/models:/models\n"
    )
    answer = run("push", "run", name, *MIT, "--message", "Again")
    assert answer.code == 0, answer.err


def test_a_strangers_record_in_the_target_is_no_hindrance(
    run: Commands, hub: Hub, name: str, tmp_path: Path
) -> None:
    for i, record in enumerate(
        [
            '{"name": "x", "models": [], "paired": {}}',
            "[" * 10_000,
            "text",
            '{"license": {"license": 1}}',
        ]
    ):
        (tmp_path / "result.json").write_text(record)
        hub.add("models", f"{name}-{i}", tmp_path)
        answer = run("push", "run", f"{name}-{i}", *MIT)
        assert answer.code == 0, answer.err


def test_a_change_of_the_generated_text_stops_the_push(
    run: Commands, hub: Hub, name: str, tmp_path: Path
) -> None:
    assert run("push", "run", name, *MIT).code == 0
    edit(hub, name, tmp_path, lambda card: card.replace("## Limits", "## Limits\n\n- Mine too."))
    refused(run("push", "run", name, *MIT), "edited by hand", "--overwrite-card")
    assert "Mine too" in hub.repositories["models", name].files("main")["README.md"].decode()
    assert run("push", "run", name, *MIT, "--overwrite-card").code == 0


def test_front_matter_that_the_hub_would_refuse_stops_the_push(
    run: Commands, hub: Hub, name: str, tmp_path: Path
) -> None:
    assert run("push", "run", name, *MIT).code == 0
    edit(
        hub,
        name,
        tmp_path,
        lambda card: card.replace("library_name:", "base_model: /a/b\nlibrary_name:", 1),
    )
    asked = len(hub.requests)
    refused(run("push", "run", name, *MIT), "front matter", "base_model")
    written = [line for line in hub.requests[asked:] if line.startswith(("POST", "PUT"))]
    assert written == ["POST /api/validate-yaml"]


def test_models_of_an_earlier_push_are_not_left_beside(
    run: Commands, hub: Hub, name: str, tmp_path: Path
) -> None:
    stale = (
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "preprocessor_config.json",
    )
    (tmp_path / "nodes").mkdir()
    for path in (*stale, "nodes/mine.json", "mine.bin", "images/mine.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"{}")
    hub.add("models", name, tmp_path)
    planned = run("push", "run", name, *MIT, "--dry-run").out
    done = run("push", "run", name, *MIT)
    assert done.code == 0
    assert all(path in planned and path in done.out for path in stale) and "mine.bin" not in planned
    files = hub.repositories["models", name].files("main")
    assert not {*stale} & files.keys()
    assert {"mine.bin", "images/mine.png", "nodes/mine.json", "model.safetensors"} <= files.keys()


def test_a_trees_intermediate_models_come_and_go(
    run: Commands, hub: Hub, name: str, treed: MergeResult, tmp_path: Path
) -> None:
    assert run("push", treed.folder, name, *MIT, "--with-nodes").code == 0
    files = hub.repositories["models", name].files("main")
    assert (
        files["nodes/a+b/model.safetensors"]
        == (treed.folder / "nodes/a+b/model.safetensors").read_bytes()
    )
    assert "tree.png" in files
    assert run("pull", name, "--out", tmp_path / "pulled").code == 0
    again = run("merge", tmp_path / "pulled" / "recipe.yaml", "--out", tmp_path / "pulled")
    assert again.code == 0 and str(treed.report) in again.out
    assert run("push", "run", name, *MIT).code == 0
    assert not {
        path
        for path in hub.repositories["models", name].files("main")
        if "node" in path or "tree" in path
    }


@pytest.mark.long
def test_two_processes_push_once(
    run: Commands, hub: Hub, name: str, pair: tiny.Pair, tmp_path: Path
) -> None:
    recipe = pair.write(tmp_path, push={"repo": name, "license": "mit", "private": True})
    answer = run("merge", recipe, "--out", tmp_path / "out", "--quiet", "--num-processes", "2")
    assert answer.code == 0, answer.err
    assert commits(hub, name) == 1
    assert hub.repositories["models", name].private
    assert "push:" not in (tmp_path / "out" / "recipe.yaml").read_text()
    assert b"push:" not in hub.repositories["models", name].files("main")["recipe.yaml"]


@pytest.mark.parametrize("how", ["license", "replaced", "token", "name", "public"])
def test_what_would_keep_a_merge_from_its_push_is_said_before_it(
    how: str, run: Commands, hub: Hub, name: str, pair: tiny.Pair, tmp_path: Path
) -> None:
    license = None if how in ("license", "replaced") else "mit"
    push = {"repo": "me" if how == "name" else name, "license": license}
    if how == "token":
        run.set(HF_TOKEN=None)
    elif how == "replaced":  # the license is in the card that the push would replace
        assert run("push", "run", name, *MIT).code == 0
        push["overwrite_card"] = True
    elif how == "public":
        assert run("push", "run", name, *MIT).code == 0
        push["private"] = True
    refused(run("merge", pair.write(tmp_path, push=push), "--out", tmp_path / "out", "--quiet"))
    assert not (tmp_path / "out").exists()


def test_a_part_of_a_tree_is_not_pushed(
    run: Commands, hub: Hub, name: str, four: dict, tmp_path: Path
) -> None:
    (tmp_path / "four.yaml").write_text(json.dumps(four))
    words = ["merge", tmp_path / "four.yaml", "--out", tmp_path / "out", "--quiet", "--only", "a+b"]
    refused(run(*words, "--push", name), "--only")
    assert commits(hub, name) == 0


@pytest.mark.parametrize("secret", ["path", READER])
def test_a_path_or_a_token_stops_the_push(
    secret: str, run: Commands, hub: Hub, name: str, tmp_path: Path
) -> None:
    """In a parent's configuration, from where a merge takes it."""
    pair = tiny.make_pair(tmp_path, tiny.timm_model("test_vit", img_size=8, patch_size=4))
    for parent in (pair.a, pair.b):
        config = json.loads((parent / "config.json").read_text())
        config["pretrained_cfg"]["notes"] = [str(pair.data) if secret == "path" else secret]
        (parent / "config.json").write_text(json.dumps(config))
    recipe = pair.write(
        tmp_path, merge={"population_size": 2, "generations": 1, "tournament_size": 1}
    )
    assert run("merge", recipe, "--out", tmp_path / "out", "--quiet").code == 0
    asked = len(hub.requests)
    answer = run("push", tmp_path / "out", name, *MIT)
    refused(answer, "config.json:", "a token" if secret == READER else "a local path")
    assert not [line for line in hub.requests[asked:] if line.startswith(("POST", "PUT"))]
    assert ("models", name) not in hub.repositories
