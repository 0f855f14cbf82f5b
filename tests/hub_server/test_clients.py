"""The real client libraries on the test Hub, and the test Hub from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tests.hub_server.command import publish_all
from tests.hub_server.server import Hub, serve
from tests.tools import tiny

CLIENTS = """
import json, sys
import datasets, timm, torch, transformers
from huggingface_hub import ModelCard, hf_hub_download, snapshot_download, upload_folder

told = {}
picture = torch.zeros(2, 3, 8, 8)
model = timm.create_model("hf-hub:org/timm", pretrained=True)
told["timm"] = model.eval()(picture).sum().item()
vit = transformers.AutoModelForImageClassification.from_pretrained("org/vit")
told["transformers"] = vit(picture).logits.sum().item()
told["processor"] = type(transformers.AutoImageProcessor.from_pretrained("org/vit")).__name__
rows = datasets.load_dataset("org/pictures")
told["rows"] = {name: len(split) for name, split in rows.items()}
told["names"] = rows["train"].features["label"].names
told["part"] = len(datasets.load_dataset("org/pictures", split="test[:10]"))
vit.push_to_hub("me/vit", commit_message="Push", private=True)
told["pull"] = vit.push_to_hub("org/vit", create_pr=True, commit_message="Propose").pr_url
timm.models.push_to_hf_hub(model, "me/timm", model_card={"license": "mit"}, safe_serialization=True)
again = timm.create_model("hf-hub:me/timm", pretrained=True)
told["timm again"] = again.eval()(picture).sum().item()
rows["test"].push_to_hub("me/pictures")
told["rows again"] = len(datasets.load_dataset("me/pictures", split="test"))
ModelCard("---\\nlicense: mit\\n---\\n").validate()
try:
    ModelCard("---\\nlicense: mine\\n---\\n").validate()
except ValueError as error:
    told["card"] = str(error)
snapshot = snapshot_download("me/timm")
told["snapshot"] = snapshot
told["config"] = hf_hub_download("me/timm", "config.json")
told["upload"] = upload_folder(repo_id="me/vit", folder_path=snapshot, path_in_repo="timm").oid
print(json.dumps(told))
"""


@pytest.mark.slow
def test_the_libraries_read_and_write(data: Path, tmp_path: Path) -> None:
    import torch

    model, vit = tiny.timm_model("test_resnet"), tiny.transformers_model("vit")
    with serve() as hub:
        hub.add("models", "org/timm", tiny.save_timm(tmp_path / "timm", model))
        hub.add("models", "org/vit", tiny.save_transformers(tmp_path / "vit", vit))
        hub.add("datasets", "org/pictures", data)
        hub.add_user("me", token="hf_me")
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_me",
            "HF_HOME": str(tmp_path / "home"),
        }
        words = [sys.executable, "-c", CLIENTS]
        done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        with torch.inference_mode():
            picture = torch.zeros(2, 3, 8, 8)
            assert (
                told["timm"]
                == told["timm again"]
                == pytest.approx(model(picture).sum().item(), abs=1e-5)
            )
            assert told["transformers"] == pytest.approx(vit(picture).logits.sum().item(), abs=1e-5)
        assert told["processor"].startswith("ViTImageProcessor")
        assert (told["rows"], told["names"], told["part"]) == (tiny.ROWS, list(tiny.NAMES), 10)
        assert told["rows again"] == tiny.ROWS["test"]
        assert '"license" must be one of' in told["card"]
        check_pushed(hub, told)


def check_pushed(hub: Hub, told: dict[str, str]) -> None:
    pushed = hub.repositories["models", "me/vit"]
    assert pushed.private
    assert pushed.head == told["upload"]
    assert {"config.json", "model.safetensors", "timm/model.safetensors"} < set(pushed.files())
    assert [one.title for one in pushed.commits.values()][:2] == ["initial commit", "Push"]
    own = hub.repositories["models", "me/timm"]
    assert Path(told["snapshot"]).name == own.head
    assert Path(told["config"]).read_bytes() == own.files()["config.json"]
    assert own.commits[own.head].files["model.safetensors"].large
    (pull,) = hub.repositories["models", "org/vit"].pulls
    assert told["pull"] == f"{hub.url}/org/vit/discussions/1"
    assert (pull.author, pull.title) == ("me", "Propose")
    assert not any(b"hf_me" in body for body in hub.bodies)


XET = """
import sys
from huggingface_hub import CommitOperationAdd, HfApi
for content in (b"one", b"two"):
    operations = [CommitOperationAdd("model.safetensors", content)]
    try:
        print(HfApi().create_commit("me/x", operations, commit_message="Add").oid)
    except ConnectionError as error:
        print("xet-write-token" in str(error))
"""


@pytest.mark.slow
def test_a_client_that_would_use_xet_gets_through_when_it_tries_again(tmp_path: Path) -> None:
    pytest.importorskip("hf_xet")
    with serve() as hub:
        hub.add_user("me", token="hf_me")
        HfApi(endpoint=hub.url, token="hf_me").create_repo("me/x")
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_me",
            "HF_HOME": str(tmp_path),
        }
        del environment["HF_HUB_DISABLE_XET"]
        done = subprocess.run(
            [sys.executable, "-c", XET], env=environment, capture_output=True, text=True
        )
        assert done.stdout.split() == ["True", hub.repositories["models", "me/x"].head], done.stderr
        assert hub.repositories["models", "me/x"].files()["model.safetensors"] == b"two"


class ByHand:
    """The command, running."""

    def __init__(self, root: Path) -> None:
        words = [
            sys.executable,
            "-W",
            "error",
            "-m",
            "tests.hub_server",
            "--root",
            str(root),
            "--port",
            "0",
        ]
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        self.given: dict[str, str] = {}

    def read(self, until: str) -> str:
        """Return the next line with this start, and keep the variables exported before it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").strip().partition("=")
                self.given[name] = value
            if line.startswith(until):
                return line.strip()
        raise AssertionError(f"it ended without a word of {until}")

    def end(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        rest, _ = self.process.communicate(timeout=10)
        assert (self.process.returncode, rest.splitlines()[-1]) == (0, "stopped")


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "org" / "a"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    first = ByHand(tmp_path)
    assert first.read("published").startswith("published models/org/a, commit ")
    assert set(first.given) == {"HF_ENDPOINT", "HF_TOKEN", "HF_HUB_DISABLE_XET", "HF_HOME"}
    api = HfApi(endpoint=first.given["HF_ENDPOINT"], token=first.given["HF_TOKEN"])
    api.create_repo("me/x")
    assert first.read("200").endswith("POST /api/repos/create")
    commit = api.model_info("org/a").sha
    port = first.given["HF_ENDPOINT"].rpartition(":")[2]
    words = [
        sys.executable,
        "-m",
        "tests.hub_server",
        "--root",
        str(tmp_path / "other"),
        "--port",
        port,
    ]
    taken = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (taken.returncode, taken.stderr) == (2, "")
    assert (
        taken.stdout.startswith(f"port {port} of 127.0.0.1 can't be used")
        and "--port" in taken.stdout
    )
    first.end()
    second = ByHand(tmp_path)
    second.read("Ctrl-C")
    assert second.given["HF_TOKEN"] == first.given["HF_TOKEN"]
    api = HfApi(endpoint=second.given["HF_ENDPOINT"], token=second.given["HF_TOKEN"])
    assert api.model_info("me/x").author == "me"
    assert api.model_info("org/a").sha == commit
    second.end()


class Turns(threading.Event):
    """An event that is set after some actions, one between each two checks."""

    def __init__(self, *actions: Callable[[], object]) -> None:
        super().__init__()
        self.actions = list(actions)

    def wait(self, timeout: float | None = None) -> bool:
        if self.actions:
            self.actions.pop(0)()
        else:
            self.set()
        return self.is_set()


def test_folders_are_published_when_they_come_and_when_they_change(tmp_path: Path) -> None:
    folder, heads = tmp_path / "datasets" / "org" / "d", list[str]()

    def write(text: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rows.csv").write_text(text)

    def note() -> None:
        heads.extend(hub.repositories["datasets", "org/d"].commits)

    with serve() as hub:
        publish_all(
            hub,
            tmp_path,
            Turns(lambda: write("a"), lambda: None, note, lambda: write("a,b"), lambda: None),
        )
        repository = hub.repositories["datasets", "org/d"]
        assert list(repository.commits)[:1] == heads
        assert [repository.files(commit)["rows.csv"] for commit in repository.commits] == [
            b"a",
            b"a,b",
        ]
        publish_all(
            hub, tmp_path, Turns(lambda: (folder / "rows.csv").touch(), lambda: None, lambda: None)
        )
        assert len(repository.commits) == 2, "nothing new"
