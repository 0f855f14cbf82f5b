"""A merge that begins and ends on the Hub: one command, a stranger who loads it, a pull that gives
it back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mega_hf import MergeResult
from tests.hub_server.server import Hub, serve
from tests.tools import tiny
from tests.tools.commands import Commands, commands

TOKEN = "hf_" + "Secret7" * 5
CARD = "---\nlicense: mit\n---\n# A parent\n"
SETTINGS = {
    "population_size": 6,
    "generations": 4,
    "mutation.rate": 0.2,
    "mutation.std": 0.4,
    "seed": 46,
}
MERGE = [word for key, value in SETTINGS.items() for word in ("--set", f"merge.{key}={value}")]

# A stranger: counts right answers on test with the parents' own library, and prints them. No
# mega_hf in it.
STRANGER = """
import json, sys
import datasets, torch
datasets.disable_progress_bars()
library, repository = sys.argv[1:]
test = datasets.load_dataset("uoft-cs/cifar10")["test"]
if library == "timm":
    import timm
    model = timm.create_model(f"hf-hub:{repository}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    names = model.pretrained_cfg["label_names"]
    batch = torch.stack([transform(picture.convert("RGB")) for picture in test["image"]])
else:
    from transformers import AutoImageProcessor, AutoModelForImageClassification
    model = AutoModelForImageClassification.from_pretrained(repository).eval()
    processor = AutoImageProcessor.from_pretrained(repository)
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    batch = processor([picture.convert("RGB") for picture in test["image"]], return_tensors="pt")["pixel_values"]
with torch.inference_mode():
    output = model(batch)
answers = getattr(output, "logits", output).argmax(dim=1).tolist()
given = test.features["label"].names
print(sum(names[answer] == given[label] for answer, label in zip(answers, test["label"])))
assert "mega_hf" not in sys.modules
"""  # noqa: E501


@dataclass(frozen=True)
class Place:
    """A Hub with two parents and a data set, and a process that runs commands against it."""

    hub: Hub
    run: Commands
    folder: Path

    def environment(self, home: Path) -> dict[str, str]:
        return {"HF_ENDPOINT": self.hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home)}


def parents(kind: str, folder: Path) -> tiny.Pair:
    """Make two parents, with a license, of an architecture that timm or transformers has itself."""
    if kind == "timm":
        pair = tiny.make_pair(
            folder, tiny.timm_model("test_vit", img_size=8, patch_size=4), strength=0.4
        )
    else:
        pair = tiny.make_pair(
            folder, tiny.transformers_model(kind), tiny.save_transformers, strength=0.4
        )
    for parent in (pair.a, pair.b):
        (parent / "README.md").write_text(CARD)
    return pair


@pytest.fixture(scope="module", params=["timm", pytest.param("vit", marks=pytest.mark.long)])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp(request.param)
    pair = parents(request.param, folder / "made")
    with serve() as hub:
        hub.add_user("me", token=TOKEN)
        hub.add("models", "org/a", pair.a)
        hub.add("models", "org/b", pair.b)
        hub.add("datasets", "uoft-cs/cifar10", pair.data)
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home")}
        with commands(folder, environment) as run:
            yield Place(hub, run, folder)


@pytest.fixture(scope="module")
def pushed(place: Place) -> dict[str, Any]:
    """The record of a merge that began and ended on the Hub, with an empty cache."""
    words = [
        "merge",
        "org/a",
        "org/b",
        "--data",
        "uoft-cs/cifar10",
        "--push",
        "me/m",
        "--out",
        "run",
        *MERGE,
    ]
    answer = place.run(*words)
    assert answer.code == 0, answer.err
    assert f"{place.hub.url}/me/m" in answer.out
    return MergeResult.load(place.folder / "run").record.to_dict()


def test_one_commit_holds_all(place: Place, pushed: dict[str, Any]) -> None:
    repository = place.hub.repositories["models", "me/m"]
    assert len(repository.commits) == 2, "the Hub's own first commit, and one more"
    files = repository.files("main")
    model = {path.name: path.read_bytes() for path in (place.folder / "run" / "merged").iterdir()}
    assert {"config.json", "model.safetensors"} <= model.keys()
    assert {name: files[name] for name in model} == model
    record = {"README.md", "recipe.yaml", "journal.jsonl", "result.json", "fitness.png"}
    assert files.keys() - {".gitattributes"} == model.keys() | record
    assert not repository.private


def test_the_card_says_what_it_was_made_of(place: Place, pushed: dict[str, Any]) -> None:
    text = place.hub.repositories["models", "me/m"].files("main")["README.md"].decode()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == ["org/a", "org/b"]
    assert front["base_model_relation"] == "merge"
    assert front["license"] == "mit"
    assert front["datasets"] == ["uoft-cs/cifar10"]
    for name in "ab":
        assert place.hub.repositories["models", f"org/{name}"].head in text
    assert place.hub.repositories["datasets", "uoft-cs/cifar10"].head in text
    results = {
        # "validation without the held-out rows"
        result["dataset"]["split"].partition(" ")[0]: result["metrics"][0]
        for result in front["model-index"][0]["results"]
    }
    merged = pushed["models"][-1]
    for split in ("validation", "test"):
        assert results[split]["value"] == pytest.approx(
            merged[split]["correct"] / merged[split]["n"], abs=1e-6
        )


def test_a_stranger_loads_it_and_counts_the_same(
    place: Place, pushed: dict[str, Any], tmp_path: Path
) -> None:
    """In fresh processes with an empty cache; of timm's models transformers' wrapper too."""
    libraries = ["timm", "transformers"] if pushed["library"] == "timm" else ["transformers"]
    for library in libraries:
        environment = {
            **os.environ,
            **place.environment(tmp_path / f"home-{library}"),
            "HF_TOKEN": "",
        }
        words = [sys.executable, "-c", STRANGER, library, "me/m"]
        done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.split()[-1]) == pushed["models"][-1]["test"]["correct"]


def test_the_cards_snippet_runs(place: Place, pushed: dict[str, Any], tmp_path: Path) -> None:
    from PIL import Image

    text = place.hub.repositories["models", "me/m"].files("main")["README.md"].decode()
    snippet = text.split("```python\n")[1].split("```")[0]
    Image.fromarray(tiny.examples(1, 0)[0][0]).save(tmp_path / "image.png")
    environment = os.environ | place.environment(tmp_path / "home")
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in tiny.NAMES


def test_what_is_pulled_is_finished_and_makes_the_same_weights_again(
    place: Place, pushed: dict[str, Any]
) -> None:
    pulled = place.run("pull", "me/m", "--out", "pulled")
    assert pulled.code == 0, pulled.err
    there = place.run("merge", "pulled/recipe.yaml", "--out", "pulled")
    assert (there.code, pulled.out.splitlines()[0]) == (0, there.out.splitlines()[0]), there.err
    again = place.run("merge", "pulled/recipe.yaml", "--out", "again", "--quiet")
    assert again.code == 0, again.err
    assert MergeResult.load(place.folder / "again").record.digests.file == pushed["digests"]["file"]
    for command in (
        ["card", "pulled"],
        ["evaluate", "./pulled", "--data", "uoft-cs/cifar10", "--split", "test"],
    ):
        answer = place.run(*command)
        assert answer.code == 0, answer.err
    assert f"{pushed['models'][-1]['test']['correct']} of" in answer.out


def test_pushing_again_changes_nothing(place: Place, pushed: dict[str, Any]) -> None:
    """From the run, from a pulled copy, and by the first command."""
    repository = place.hub.repositories["models", "me/m"]
    head, number = repository.head, len(repository.commits)
    if not (place.folder / "copy").exists():
        assert place.run("pull", "me/m", "--out", "copy").code == 0
    first = [
        "merge",
        "org/a",
        "org/b",
        "--data",
        "uoft-cs/cifar10",
        "--push",
        "me/m",
        "--out",
        "run",
        *MERGE,
    ]
    for words in (["push", "run", "me/m"], ["push", "copy", "me/m"], first):
        answer = place.run(*words)
        assert answer.code == 0, answer.err
        assert "already" in answer.out
    assert (repository.head, len(repository.commits)) == (head, number)


def test_the_token_is_nowhere(place: Place, pushed: dict[str, Any]) -> None:
    secret = TOKEN.encode()
    searched = [
        path
        for name in ("run", "home")
        for path in (place.folder / name).rglob("*")
        if path.is_file()
    ]
    assert len(searched) > 10
    assert not [path for path in searched if secret in path.read_bytes()]
    assert TOKEN not in place.run.said
    assert place.hub.bodies and not [body for body in place.hub.bodies if secret in body]
    assert not [line for line in place.hub.requests if TOKEN in line]


def test_a_pulled_merge_is_a_parent_like_any_other(place: Place, pushed: dict[str, Any]) -> None:
    answer = place.run("compare", "me/m", "org/a", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["mergeable"]


def test_a_stranger_verifies_it_by_the_cards_command(
    place: Place, pushed: dict[str, Any], tmp_path: Path
) -> None:
    files = place.hub.repositories["models", "me/m"].files("main")
    command = next(
        line
        for line in files["README.md"].decode().splitlines()
        if line.startswith("mega-hf verify")
    )
    answer = place.run(*command.split()[1:])
    assert answer.code == 0, answer.err
    made = [*pushed["nodes"], *pushed["baselines"], pushed["second_look"]]
    count = sum(node["search"]["evaluations"] for node in made)
    assert answer.out.startswith(
        f"reproduced bit for bit from 2 parents and {count} recorded evaluations"
    )
    assert pushed["digests"]["file"] in answer.out and "the model's own" in answer.out
    assert place.run("verify", "me/m@main", "--evaluate", "3").code == 0
    for name, blamed in (
        ("model.safetensors", "model.safetensors"),
        ("journal.jsonl", "journal"),
        ("recipe.yaml", "r"),
    ):
        forged = tmp_path / name
        forged.mkdir()
        for one, content in files.items():
            (forged / one).write_bytes(
                content if one != name else content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
            )
        repository = f"me/forged-{name.replace('.', '-')}"
        place.hub.add("models", repository, forged)
        answer = place.run("verify", repository)
        assert (answer.code, answer.out) == (1, ""), answer.err
        assert "not verified" in answer.err and blamed in answer.err, answer.err
    assert place.run("verify", "me/nothing").code == 2
    assert "not a merge that mega-hf pushed" in place.run("verify", "org/a").err
