"""Parents and data from the Hub: what is found, pinned, cached and refused, by a real client."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mega_hf import MergeResult
from tests.hub_server.server import Hub, serve
from tests.tools import tiny
from tests.tools.commands import Answer, Commands, commands

QUICK = ["--set", "merge.population_size=4", "--set", "merge.generations=2", "--quiet"]
ME, OTHER = "hf_" + "Me" * 17, "hf_" + "Other" * 7


@dataclass(frozen=True)
class Place:
    """A Hub, and commands against it in a folder, with an empty cache at first."""

    hub: Hub
    run: Commands
    environment: dict[str, str]

    def head(self, kind: str, name: str) -> str:
        return self.hub.repositories[kind, name].head


@pytest.fixture(scope="module")
def place(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("hub")
    pickled = folder / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((pair.a / "config.json").read_bytes())
    torch.save(load_file(pair.a / "model.safetensors"), pickled / "pytorch_model.bin")
    below = shutil.copytree(pair.a, folder / "below")
    shutil.copytree(pair.b, below / "checkpoint-5")
    with serve() as hub:
        hub.add_user("me", token=ME, access=("org/gated", "org/locked"))
        hub.add_user("other", token=OTHER)
        hub.add("models", "org/a", tiny.save_timm(folder / "older", tiny.timm_model(seed=5)))
        hub.add("models", "org/a", pair.a)
        hub.add("models", "org/b", pair.b)
        hub.add("models", "org/below", below)
        hub.add("models", "org/gated", pair.b, gated=True)
        # what one test has fetched, another finds in the cache
        hub.add("models", "org/barred", pair.b, gated=True)
        hub.add("models", "me/private", pair.b, private=True)
        hub.add("models", "me/closed", pair.b, private=True)
        hub.add("models", "org/pickled", pickled)
        hub.add("datasets", "org/pictures", pair.data)
        hub.add("datasets", "org/locked", pair.data, gated=True)
        hub.add("datasets", "org/barred", pair.data, gated=True)
        hub.add("datasets", "me/pictures", pair.data, private=True)
        hub.add("datasets", "me/closed", pair.data, private=True)
        hub.repositories["models", "org/a"].tags["v1"] = next(
            iter(hub.repositories["models", "org/a"].commits)
        )
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "home"),
            "MEGA_HF_HUB_TIMEOUT": "0.5",
        }
        environment |= {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
        with commands(folder, environment) as run:
            yield Place(hub, run, environment)


@pytest.fixture(autouse=True)
def _as_nobody(place: Place) -> None:
    place.hub.behave()
    place.run.set(HF_TOKEN=None)


def check(answer: Answer, *words: str) -> None:
    assert answer.code == 2, answer.err
    missing = [word for word in [*words, "expected:", "got:", "hint:"] if word not in answer.err]
    assert not missing, f"{missing} not in:\n{answer.err}"


def test_a_merge_of_repositories(place: Place, pair: tiny.Pair) -> None:
    """With an empty cache; then the same command again, which needs nothing; then the pinned recipe
    elsewhere."""
    hub, folder = place.hub, place.run.folder
    data = ["--data", "org/pictures", "--validation", "train[60:]"]
    command = ["merge", "org/a", "org/b", *data, "--out", "run", *QUICK]
    done = place.run(*command)
    assert done.code == 0, done.err
    assert done.err.count("no parent was trained on them") == 1, done.err
    result = MergeResult.load(folder / "run")
    assert [parent.hub for parent in result.record.parents] == ["org/a", "org/b"]
    commit = place.head("datasets", "org/pictures")
    assert result.record.data.source.to_dict() == {"hub": "org/pictures", "revision": commit}

    recipe = yaml.safe_load((folder / "run" / "recipe.yaml").read_text())
    assert recipe["parents"] == {
        name: f"org/{name}@{place.head('models', f'org/{name}')}" for name in "ab"
    }
    assert (recipe["data"]["path"], recipe["data"]["revision"]) == ("org/pictures", commit)
    card = yaml.safe_load((folder / "run" / "README.md").read_text().split("---\n")[1])
    assert card["base_model"] == ["org/a", "org/b"]
    assert card["base_model_relation"] == "merge"
    assert card["datasets"] == ["org/pictures"]
    assert (card["library_name"], card["pipeline_tag"]) == ("timm", "image-classification")

    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
    asked = len(hub.requests)
    again = place.run(*command)
    assert again.code == 0, again.err
    assert again.out == done.out
    assert {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")} == before
    elsewhere = place.run("merge", "run/recipe.yaml", "--out", "elsewhere", "--quiet")
    assert elsewhere.code == 0, elsewhere.err
    assert not [
        r
        for r in hub.requests[asked:]
        if r.startswith("GET") and r.endswith((".safetensors", ".parquet"))
    ]
    other = MergeResult.load(folder / "elsewhere")
    assert other.record.digests.file == result.record.digests.file


def test_a_revision_is_what_is_loaded(place: Place, pair: tiny.Pair) -> None:
    older, newer = place.hub.repositories["models", "org/a"].commits
    answer = place.run(
        "compare", f"org/a@{older}", f"org/a@{newer}", "org/a@v1", "org/a@main", pair.a, "--json"
    )
    assert answer.code == 0, answer.err
    first, second, tag, branch, local = (
        model["sha256"] for model in json.loads(answer.out)["models"]
    )
    assert first == tag != second == branch == local


def test_what_lies_below_the_model_is_not_fetched(place: Place) -> None:
    asked = len(place.hub.requests)
    assert place.run("compare", "org/below", "org/b").code == 0
    fetched = [line for line in place.hub.requests[asked:] if "/org/below/resolve/" in line]
    assert fetched and not [line for line in fetched if "checkpoint-5" in line]


def test_with_a_token_private_and_gated_ones_are_read(place: Place) -> None:
    place.run.set(HF_TOKEN=ME)
    answer = place.run(
        "merge", "me/private", "org/a", "--data", "org/locked", "--out", "locked", *QUICK
    )
    assert answer.code == 0, answer.err
    answer = place.run(
        "merge", "org/gated", "org/a", "--data", "me/pictures", "--out", "gated", *QUICK
    )
    assert answer.code == 0, answer.err
    assert ME not in place.run.said


# (models, data, token, what is said)
REFUSED = {
    "missing repository": (
        ["org/nowhere", "org/b"],
        "org/pictures",
        None,
        ["nobody is logged in", "org/nowhere"],
    ),
    "missing to an account": (
        ["org/nowhere", "org/b"],
        "org/pictures",
        ME,
        ["this account may not see it"],
    ),
    "private to nobody": (
        ["me/closed", "org/b"],
        "org/pictures",
        None,
        ["private", "hf auth login", "me/closed"],
    ),
    "private to others": (
        ["me/closed", "org/b"],
        "org/pictures",
        OTHER,
        ["this account may not see it", "owner"],
    ),
    "missing revision": (["org/a@v9", "org/b"], "org/pictures", None, ["no revision v9", "org/a"]),
    "gated to nobody": (
        ["org/barred", "org/b"],
        "org/pictures",
        None,
        ["gated", "hf auth login", "/org/barred;"],
    ),
    "gated to others": (
        ["org/barred", "org/b"],
        "org/pictures",
        OTHER,
        ["gated", "granted to this account"],
    ),
    "unknown token": (
        ["me/closed", "org/b"],
        "org/pictures",
        "hf_" + "Bad" * 11,
        ["does not know this token"],
    ),
    "pickle only": (
        ["org/pickled", "org/b"],
        "org/pictures",
        None,
        ["no safetensors", "safe_serialization=True"],
    ),
    "missing data set": (
        ["org/a", "org/b"],
        "org/nothing",
        None,
        ["data set", "org/nothing", "./FOLDER"],
    ),
    "gated data set": (
        ["org/a", "org/b"],
        "org/barred",
        None,
        ["gated", "datasets/org/barred", "login"],
    ),
    "private data set": (["org/a", "org/b"], "me/closed", None, ["private", "login"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_hub_refuses(case: str, place: Place) -> None:
    models, data, token, words = REFUSED[case]
    place.run.set(HF_TOKEN=token)
    answer = place.run("merge", *models, "--data", data, "--out", "refused", *QUICK)
    check(answer, *words)
    assert not (place.run.folder / "refused").exists()
    assert token is None or token not in answer.err


# What is asked for first of each, once its cache has been left
SILENT = {"a model": "GET /api/models/org/silent", "data": "/api/datasets/org/silent"}


@pytest.mark.parametrize("what", SILENT)
def test_a_hub_that_falls_silent_is_not_waited_for_for_ever(
    what: str, place: Place, pair: tiny.Pair
) -> None:
    place.hub.add("models", "org/silent", pair.a)
    place.hub.add("datasets", "org/silent", pair.data)
    place.hub.misbehave("stall", SILENT[what], times=None, seconds=60)
    model, data = (
        ("org/silent", str(pair.data)) if what == "a model" else (str(pair.a), "org/silent")
    )
    check(
        place.run("evaluate", model, "--data", data, "--split", "test"),
        "did not answer in time",
        "TIMEOUT=300",
    )


def test_without_a_network_the_cache_is_enough(
    place: Place, pair: tiny.Pair, tmp_path: Path
) -> None:
    merge = ["merge", "org/a", "org/b", "--data", "org/pictures", *QUICK]
    online = place.run(*merge, "--out", "online")
    assert online.code == 0, online.err
    asked = len(place.hub.requests)
    with commands(tmp_path, place.environment | {"HF_HUB_OFFLINE": "1"}) as offline:
        answer = offline(*merge, "--out", "offline")
        assert answer.code == 0, answer.err
        files = [place.run.folder / "online", tmp_path / "offline"]
        assert len({MergeResult.load(file).record.digests.weights for file in files}) == 1
        check(
            offline("compare", "org/a", "org/never"),
            "HF_HUB_OFFLINE is set",
            "./FOLDER",
        )
        check(
            offline("evaluate", "org/a", "--data", "org/never", "--split", "test"), "HF_HUB_OFFLINE"
        )
        check(offline("pull", "org/never", "--out", "x"), "HF_HUB_OFFLINE")
        # of which the model is cached, no record
        check(offline("pull", "org/a", "--out", "x"), "HF_HUB_OFFLINE")
    assert len(place.hub.requests) == asked


def test_no_hub_at_all(pair: tiny.Pair, tmp_path: Path) -> None:
    environment = {
        "HF_ENDPOINT": os.environ["HF_ENDPOINT"],
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": ME,
    }
    with commands(tmp_path, environment) as run:
        check(
            run("merge", "org/a", pair.b, "--data", pair.data, "--out", "run", *QUICK),
            "./FOLDER",
            "network",
        )
        check(
            run("merge", pair.a, pair.b, "--data", "org/x", "--out", "run", *QUICK),
            "./FOLDER",
            "network",
        )
        check(run("evaluate", "org/a", "--data", pair.data, "--split", "test"), "network")
        check(run("compare", "org/a", pair.b), "network")
        check(run("pull", "org/a", "--out", "pulled"), "network")
        assert not (tmp_path / "run").exists() and not (tmp_path / "pulled").exists()
        local = run("merge", pair.a, pair.b, "--data", pair.data, "--out", "local", *QUICK)
        assert local.code == 0, "a merge of local files needs no network"
        check(run("push", "local", "me/x", "--license", "mit"), "network", "nothing is lost")
