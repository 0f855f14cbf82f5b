"""Parents that were trained for a run go along with it: they exist nowhere else, and others can't
train them alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mega_hf import MergeResult, Recipe, merge
from tests.hub.checks import MIT
from tests.hub_server.server import Hub
from tests.tools import tiny, trainings
from tests.tools.commands import Commands

MADE = ("a", "a@1", "a@2", "b")
FILES = {"config.json", "model.safetensors", "train.sha256"}


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    """A run that merges a network trained for it with its own snapshot and a fine-tune."""
    parents = {"a": {"seed": 1, "checkpoints": 2}, "b": {"seed": 2, "from": "a", "epochs": 1}}
    tree = trainings.tree(data, parents, epochs=2) | {
        "merges": {"m": {"parents": ["a@1", "a", "b"]}}
    }
    return merge(
        Recipe.from_dict(tree | {"merge": tiny.MERGE}), tmp_path_factory.mktemp("trained") / "run"
    )


def sent(hub: Hub, name: str) -> dict[str, bytes]:
    return hub.repositories["models", name].files("main")


def parents_in(hub: Hub, name: str) -> set[str]:
    return {path for path in sent(hub, name) if path.startswith("parents/")}


def test_a_stranger_verifies_and_makes_it_again_with_them(
    trained: MergeResult, run: Commands, hub: Hub, name: str, tmp_path: Path, data: Path
) -> None:
    assert (
        "parents/a@1/model.safetensors" in run("push", trained.folder, name, *MIT, "--dry-run").out
    )
    assert run("push", trained.folder, name, *MIT).code == 0
    assert parents_in(hub, name) == {
        f"parents/{parent}/{file}" for parent in MADE for file in FILES
    }
    card = sent(hub, name)["README.md"].decode()
    check, pull, again = [line for line in card.splitlines() if line.startswith("mega-hf ")]
    assert check == f"mega-hf verify {name}"
    answer = run(*check.split()[1:])
    assert answer.code == 0 and trained.record.digests.file in answer.out, answer.err
    assert run(*pull.replace("pulled", str(tmp_path / "pulled")).split()[1:]).code == 0
    made = again.replace("pulled", str(tmp_path / "pulled")).replace(
        "--out again", f"--out {tmp_path / 'again'}"
    )
    before = {
        path: path.read_bytes() for path in (tmp_path / "pulled").rglob("*") if path.is_file()
    }
    answer = run(*made.replace("data.path=PATH", f"data.path={data}").split()[1:], "--quiet")
    assert answer.code == 0, answer.err
    assert before == {
        path: path.read_bytes() for path in (tmp_path / "pulled").rglob("*") if path.is_file()
    }
    digests = MergeResult.load(tmp_path / "again").record.digests
    assert digests.file == trained.record.digests.file
    assert (
        run("push", tmp_path / "pulled", name, *MIT).code == 0 and len(parents_in(hub, name)) == 12
    )


def test_a_forged_one_is_named(
    trained: MergeResult, run: Commands, hub: Hub, name: str, tmp_path: Path
) -> None:
    assert run("push", trained.folder, name, *MIT).code == 0
    for path, content in sent(hub, name).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    shutil.copyfile(
        tmp_path / "parents/b/model.safetensors", tmp_path / "parents/a/model.safetensors"
    )
    hub.add("models", name, tmp_path)
    answer = run("verify", name)
    assert (answer.code, answer.out) == (1, "") and "parent a" in answer.err
    assert run("pull", name, "--out", tmp_path / "pulled").code == 2
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize(
    "foreign", ["model.safetensors", "model-2.safetensors", "adapter_config.json", "x.bin"]
)
def test_what_would_be_loaded_from_a_repository_is_its_own(
    foreign: str, trained: MergeResult, run: Commands, hub: Hub, name: str, tmp_path: Path
) -> None:
    assert run("push", trained.folder, name, *MIT).code == 0
    for path, content in sent(hub, name).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    shutil.copyfile(tmp_path / "parents/b/model.safetensors", tmp_path / foreign)
    record = json.loads((tmp_path / "result.json").read_text())
    record["files"].pop(foreign, None)
    (tmp_path / "result.json").write_text(json.dumps(record))
    hub.add("models", name, tmp_path)
    answer = run("verify", name)
    assert (answer.code, answer.out) == (1, "") and foreign in answer.err, answer.err


def test_they_stay_here_when_asked_to_and_leave_nothing_there(
    trained: MergeResult, run: Commands, hub: Hub, name: str
) -> None:
    assert run("push", trained.folder, name, *MIT).code == 0
    assert run("push", trained.folder, name, *MIT, "--without-parents").code == 0
    assert not parents_in(hub, name)
    card = sent(hub, name)["README.md"].decode()
    assert f"mega-hf verify {name} --parents DIR\n" in card and "same kind of processor" in card
    answer = run("verify", name)
    assert answer.code == 2 and "--parents DIR" in answer.err
    assert run("verify", name, "--parents", trained.folder / "parents").code == 0


def test_where_they_lie_can_be_said_and_what_is_lost_is_told(
    trained: MergeResult, run: Commands, hub: Hub, name: str, tmp_path: Path
) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    (tmp_path / "run" / "parents").rename(tmp_path / "elsewhere")
    shutil.copyfile(
        tmp_path / "elsewhere/a/model.safetensors", tmp_path / "elsewhere/b/model.safetensors"
    )
    (tmp_path / "elsewhere" / "a@1" / "config.json").write_text("{")
    answer = run("push", tmp_path / "run", name, *MIT, "--parents", tmp_path / "elsewhere")
    assert answer.code == 2 and "elsewhere: parents that were trained" in answer.err, answer.err
    assert "no a@1, b\n" in answer.err and "--without-parents" in answer.err
    assert f"/{name}" not in str(hub.repositories), "nothing was sent"
    for lost in ("a@1", "b"):
        shutil.rmtree(tmp_path / "elsewhere" / lost)
        shutil.copytree(trained.folder / "parents" / lost, tmp_path / "elsewhere" / lost)
    assert run("push", tmp_path / "run", name, *MIT, "--parents", tmp_path / "elsewhere").code == 0
    assert len(parents_in(hub, name)) == 12


def test_a_merge_pushes_those_that_it_shares_with_others(
    data: Path, run: Commands, hub: Hub, name: str, tmp_path: Path
) -> None:
    recipe = trainings.tree(data, epochs=1) | {
        "merge": tiny.MERGE,
        "push": {"repo": name, "license": "mit"},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    words = [
        "merge",
        tmp_path / "recipe.yaml",
        "--out",
        tmp_path / "out",
        "--parents",
        tmp_path / "shared",
        "--quiet",
    ]
    answer = run(*words)
    assert answer.code == 0, answer.err
    assert len(parents_in(hub, name)) == 6
