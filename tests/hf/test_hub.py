"""Parents and data from the Hub: a real client in processes of their own, a small Hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mega_hf import MergeResult
from tests import tiny
from tests.hub_server import Hub, serve

# Several commands in one process, since most of a command's time is imports: prints [code, stdout, stderr] of each.
MANY = """
import contextlib, io, json, sys
from mega_hf.cli import main
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""
QUICK = ["--set", "merge.population_size=4", "--set", "merge.generations=2", "--quiet"]


@pytest.fixture(scope="module")
def hub(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    pickled = folder / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((pair.a / "config.json").read_bytes())
    torch.save(load_file(pair.a / "model.safetensors"), pickled / "pytorch_model.bin")
    with serve() as hub:
        hub.add("models", "org/a", tiny.save_timm(folder / "older", tiny.timm_model(seed=5)))
        hub.add("models", "org/a", pair.a)
        hub.add("models", "org/b", pair.b)
        hub.add("models", "org/gated", pair.b, gated=True)
        hub.add("models", "org/pickled", pickled)
        hub.add("datasets", "org/pictures", pair.data)
        hub.add("datasets", "org/locked", pair.data, gated=True)
        yield hub


def environment(hub: Hub, home: Path) -> dict[str, str]:
    return os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home)}


def run_all(hub: Hub, home: Path, commands: list[list[str]], folder: Path) -> list[tuple[int, str, str]]:
    words = [sys.executable, "-c", MANY, json.dumps(commands)]
    done = subprocess.run(words, env=environment(hub, home), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_a_merge_of_repositories(hub: Hub, pair: tiny.Pair, tmp_path: Path) -> None:
    """With an empty cache; then the same command again, which needs nothing; then the pinned recipe elsewhere."""
    commit = {name: repository.head for (_, name), repository in hub.repositories.items()}
    data = ["--data", "org/pictures", "--validation", "train[60:]"]
    command = ["merge", "org/a", "org/b", *data, "--out", "run", *QUICK]
    words = [sys.executable, "-m", "mega_hf", *command]
    home = tmp_path / "home"
    done = subprocess.run(words, env=environment(hub, home), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no parent was trained on them") == 1, done.stderr
    result = MergeResult.load(tmp_path / "run")
    assert [parent["hub"] for parent in result.record["parents"]] == ["org/a", "org/b"]
    assert result.record["data"]["source"] == {"hub": "org/pictures", "revision": commit["org/pictures"]}

    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["parents"] == {"a": f"org/a@{commit['org/a']}", "b": f"org/b@{commit['org/b']}"}
    assert (recipe["data"]["path"], recipe["data"]["revision"]) == ("org/pictures", commit["org/pictures"])
    card = yaml.safe_load((tmp_path / "run" / "README.md").read_text().split("---\n")[1])
    assert card["base_model"] == ["org/a", "org/b"]
    assert card["base_model_relation"] == "merge"
    assert card["datasets"] == ["org/pictures"]
    assert (card["library_name"], card["pipeline_tag"]) == ("timm", "image-classification")

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    asked = len(hub.requests)
    pinned = ["merge", "run/recipe.yaml", "--out", "elsewhere", "--quiet"]
    again, elsewhere = run_all(hub, home, [command, pinned], tmp_path)
    assert again[0] == 0, again[2]
    assert again[1] == done.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    assert elsewhere[0] == 0, elsewhere[2]
    assert not [r for r in hub.requests[asked:] if r.startswith("GET") and r.endswith((".safetensors", ".parquet"))]
    other = MergeResult.load(tmp_path / "elsewhere")
    assert other.record["digests"]["file"] == result.record["digests"]["file"]


def test_a_revision_is_what_is_loaded(hub: Hub, pair: tiny.Pair, tmp_path: Path) -> None:
    older, newer = hub.repositories["models", "org/a"].commits
    compared = [["compare", f"org/a@{older}", f"org/a@{newer}", str(pair.a), "--json"]]
    ((code, out, err),) = run_all(hub, tmp_path / "home", compared, tmp_path)
    assert code == 0, err
    digests = [model["sha256"] for model in json.loads(out)["models"]]
    assert digests[0] != digests[1] == digests[2]


REFUSED = {
    "missing repository": (["org/nowhere", "org/b"], "org/pictures", ["no such repository", "org/nowhere", "login"]),
    "missing revision": (["org/a@v9", "org/b"], "org/pictures", ["no revision v9", "org/a"]),
    "gated": (["org/gated", "org/b"], "org/pictures", ["gated", "hf auth login", "org/gated"]),
    "pickle only": (["org/pickled", "org/b"], "org/pictures", ["no safetensors file", "safe_serialization=True"]),
    "missing data set": (["org/a", "org/b"], "org/nothing", ["data set", "org/nothing", "./FOLDER"]),
    "gated data set": (["org/a", "org/b"], "org/locked", ["org/locked", "login"]),
}


@pytest.fixture(scope="module")
def refusals(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, tuple[int, str, str]], Path]:
    folder = tmp_path_factory.mktemp("refused")
    commands = [["merge", *models, "--data", data, "--out", "run", *QUICK] for models, data, _ in REFUSED.values()]
    answers = run_all(hub, folder / "home", commands, folder)
    return dict(zip(REFUSED, answers, strict=True)), folder


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_hub_refuses(case: str, refusals) -> None:
    answers, folder = refusals
    check(answers[case], REFUSED[case][2])
    assert not (folder / "run").exists()


def test_no_hub_at_all(pair: tiny.Pair, tmp_path: Path) -> None:
    nobody = Hub(url=os.environ["HF_ENDPOINT"])
    commands = [
        ["merge", "org/a", str(pair.b), "--data", str(pair.data), "--out", "run", *QUICK],
        ["merge", str(pair.a), str(pair.b), "--data", "org/pictures", "--out", "run", *QUICK],
        ["evaluate", "org/a", "--data", str(pair.data), "--split", "test"],
        ["compare", "org/a", str(pair.b)],
        ["merge", str(pair.a), str(pair.b), "--data", str(pair.data), "--out", "local", *QUICK],
    ]
    *refused, local = run_all(nobody, tmp_path / "home", commands, tmp_path)
    for answer in refused:
        check(answer, ["./FOLDER", "network"])
    assert not (tmp_path / "run").exists()
    assert local[0] == 0, "a merge of local files needs no network"


def check(answer: tuple[int, str, str], words: list[str]) -> None:
    code, _, err = answer
    assert code == 2, err
    assert "Traceback" not in err
    missing = [word for word in [*words, "expected:", "got:", "remedy:"] if word not in err]
    assert not missing, f"{missing} not in:\n{err}"
