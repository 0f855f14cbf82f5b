"""What is pushed: licence, card, no path and no token; and what an earlier push left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.commands import Commands
from tests.hub_server import Hub
from tests.push.checks import MIT, READER, front_of, refused


def test_without_a_licence_nothing_is_guessed(run: Commands, hub: Hub, name: str) -> None:
    refused(run("push", "run", name), "a: none; b: none", "--license")
    refused(run("push", "run", name, "--license", "my-own"), "no licence that the Hub knows")
    assert ("models", name) not in hub.repositories


def edit(hub: Hub, name: str, tmp_path: Path, change: Any) -> None:
    """Change a repository's card, as its owner does on the page."""
    for path, file in hub.repositories["models", name].files("main").items():
        (tmp_path / path).write_bytes(file if path != "README.md" else change(file.decode()).encode())
    hub.add("models", name, tmp_path)


def test_what_was_written_by_hand_is_kept(run: Commands, hub: Hub, name: str, tmp_path: Path) -> None:
    assert run("push", "run", name, *MIT).code == 0
    edit(hub, name, tmp_path, lambda card: card.replace("tags:", "language: en\ntags:", 1) + "\n## Mine\n\nKeep.\n")
    assert run("push", "run", name, "--license", "mit").code == 0
    text = hub.repositories["models", name].files("main")["README.md"].decode()
    assert "## Mine\n\nKeep." in text
    assert front_of(hub, name)["language"] == "en"
    assert run("pull", name, "--out", tmp_path / "pulled").code == 0
    assert run("card", tmp_path / "pulled").code == 0
    assert "## Mine\n\nKeep." in (tmp_path / "pulled" / "README.md").read_text()
    assert run("push", "run", name, "--license", "mit", "--overwrite-card").code == 0
    assert "Keep." not in hub.repositories["models", name].files("main")["README.md"].decode()


def test_a_change_of_the_generated_text_stops_the_push(run: Commands, hub: Hub, name: str, tmp_path: Path) -> None:
    assert run("push", "run", name, *MIT).code == 0
    edit(hub, name, tmp_path, lambda card: card.replace("## Limits", "## Limits\n\n- Mine too."))
    refused(run("push", "run", name, *MIT), "changed by hand", "--overwrite-card")
    assert "Mine too" in hub.repositories["models", name].files("main")["README.md"].decode()
    assert run("push", "run", name, *MIT, "--overwrite-card").code == 0


def test_front_matter_that_the_hub_would_refuse_stops_the_push(
    run: Commands, hub: Hub, name: str, tmp_path: Path
) -> None:
    assert run("push", "run", name, *MIT).code == 0
    edit(hub, name, tmp_path, lambda card: card.replace("library_name:", "base_model: /a/b\nlibrary_name:", 1))
    asked = len(hub.requests)
    refused(run("push", "run", name, *MIT), "front matter", "base_model")
    assert not [line for line in hub.requests[asked:] if line.startswith(("POST", "PUT"))]


def test_models_of_an_earlier_push_are_not_left_beside(run: Commands, hub: Hub, name: str, tmp_path: Path) -> None:
    stale = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "preprocessor_config.json")
    (tmp_path / "nodes" / "a+b").mkdir(parents=True)
    for path in (*stale, "nodes/a+b/model.safetensors", "mine.bin", "images/mine.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"{}")
    hub.add("models", name, tmp_path)
    assert run("push", "run", name, *MIT).code == 0
    files = hub.repositories["models", name].files("main")
    assert not {*stale, "nodes/a+b/model.safetensors"} & files.keys()
    assert {"mine.bin", "images/mine.png", "model.safetensors"} <= files.keys()


@pytest.mark.parametrize("secret", ["/home/someone/models/a", READER])
def test_a_path_or_a_token_stops_the_push(secret: str, run: Commands, hub: Hub, name: str, tmp_path: Path) -> None:
    """In a parent's configuration, from where a merge takes it."""
    pair = tiny.make_pair(tmp_path, tiny.timm_model("test_vit", img_size=8, patch_size=4))
    for parent in (pair.a, pair.b):
        config = json.loads((parent / "config.json").read_text())
        config["pretrained_cfg"]["notes"] = [secret]
        (parent / "config.json").write_text(json.dumps(config))
    recipe = pair.write(tmp_path, merge={"population_size": 2, "generations": 1, "tournament_size": 1})
    assert run("merge", recipe, "--out", tmp_path / "out", "--quiet").code == 0
    asked = len(hub.requests)
    answer = run("push", tmp_path / "out", name, *MIT)
    refused(answer, "config.json:", "a token" if secret == READER else "a path of a machine")
    assert not [line for line in hub.requests[asked:] if line.startswith(("POST", "PUT"))]
    assert ("models", name) not in hub.repositories
