"""Local paths and tokens are found in the files of a push, with file and line, and nothing else."""

from __future__ import annotations

import getpass
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mega_hf import MergeResult
from mega_hf.errors import HubError, RunError
from mega_hf.hub.privacy import check_no_private_paths, local_paths
from tests.tools import tiny

TOKEN = "hf_" + "a" * 34
PATHS = ["/home/me", "/data/cluster-7/zoo", "C:\\Users\\me"]


@pytest.fixture(autouse=True)
def user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")


@pytest.mark.parametrize(
    "text",
    [
        '{"file": "/home/me/model.bin"}',
        "path: /home/me",
        "file:///home/me/x",
        r'{"a": "C:\\Users\\me"}',
        r'"\/home\/me\/x"',
        "a:/home/me/x",
        "//home//me/x",
        "(/data/cluster-7/zoo/a)",
        "x\n\n/home/me/b",
        '"/mnt/users/alice/x"',
        "~alice/x",
        r'"c:\\Users\\alice"',
        "`/home/alice`",
    ],
)
def test_a_local_path_is_found_with_file_and_line(text: str) -> None:
    with pytest.raises(HubError, match="contains a local path") as caught:
        check_no_private_paths({"config.json": f"first\n{text}".encode()}, PATHS, None)
    assert re.search(r"config\.json:[24]: ", str(caught.value))


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/alice/name",
        "alice/name@main",
        "http://127.0.0.1:80/home/x",
        "https://huggingface.co/home/me/x",
        '"/m/011k07"',
        '"/m/0abc"',
        "/home/melanie",
        "/home/alicette",
        "/data/cluster-7/zoology",
        "/usr/share/x",
        "./x/y",
        "3/4 of 1/2",
        "</div>",
        "a:\\nb",
    ],
)
def test_other_text_passes(text: str) -> None:
    check_no_private_paths({"config.json": text.encode()}, [*PATHS, "/"], None)


def test_a_run_knows_its_own_paths(finished: MergeResult, pair: tiny.Pair) -> None:
    assert local_paths(finished.folder) >= {
        str(path) for path in (Path.home(), Path.cwd(), finished.folder, pair.a, pair.b, pair.data)
    }


def test_a_token_is_found_and_not_shown() -> None:
    for token, text in ((None, TOKEN), ("short-secret", "xshort-secretx")):
        with pytest.raises(HubError, match="contains a token") as caught:
            check_no_private_paths({"recipe.yaml": f"a\nb\n{text}".encode()}, PATHS, token)
        assert "recipe.yaml:3" in str(caught.value)
        assert text not in str(caught.value)


def test_the_header_of_weights_is_searched(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(1)}, file, metadata={"from": "/home/me/x"})
    with pytest.raises(HubError, match="header"):
        check_no_private_paths({"model.safetensors": file}, PATHS, None)
    save_file({"w": torch.zeros(1)}, file, metadata={"format": "pt"})
    check_no_private_paths({"model.safetensors": file}, PATHS, None)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RunError, match="unreadable weights"):
        check_no_private_paths({"model.safetensors": file}, PATHS, None)
