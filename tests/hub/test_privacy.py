"""What must not leave this machine: paths and tokens, found with file and line, and nothing taken
for them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mega_hf.errors import HubError, RunError
from mega_hf.hub.privacy import check_no_private_paths

TOKEN = "hf_" + "a" * 34


@pytest.mark.parametrize(
    "text",
    [
        '{"file": "/home/me/model.bin"}',
        "path: /gpfs/x",
        "see file:///data/x",
        '"~/models/a"',
        r'{"a": "C:\\Users\\me"}',
        r'"\/home\/alice\/x"',
        "a:/home/alice/x",
        "//home//alice/x",
        "~alice/x",
        r'"c:\\Users\\alice"',
        r'"\\\\server\\share"',
        "C:/Users/alice",
        "/cluster/home/alice/x",
        "cache=/tmp/x/y",
        "(/mnt/disk/a)",
        "`/var/lib/x`",
        '["/usr/share/x"]',
        "x\n\n/opt/a/b",
    ],
)
def test_a_path_is_found_with_file_and_line(text: str) -> None:
    with pytest.raises(HubError, match="a path of a machine") as caught:
        check_no_private_paths({"config.json": f"first\n{text}".encode()}, None)
    assert re.search(r"config\.json:[24]: ", str(caught.value))


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/org/name",
        "a/b and c/d",
        '"/m/011k07"',
        "3/4 of 1/2",
        "./x/y",
        "../x/y",
        "<br/>",
        "km/h",
        "org/name@main",
        "http://127.0.0.1:80/home/x",
        "re: /",
        "</div>",
        "a:\\nb",
        "PATH=/x",
    ],
)
def test_what_is_no_path_passes(text: str) -> None:
    check_no_private_paths({"config.json": text.encode()}, None)


def test_a_token_is_found_and_not_shown() -> None:
    for token, text in ((None, TOKEN), ("short-secret", "xshort-secretx")):
        with pytest.raises(HubError, match="a token stands there") as caught:
            check_no_private_paths({"recipe.yaml": f"a\nb\n{text}".encode()}, token)
        assert "recipe.yaml:3" in str(caught.value)
        assert text not in str(caught.value)


def test_the_header_of_weights_is_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(1)}, file, metadata={"from": "/home/me/x"})
    with pytest.raises(HubError, match="header"):
        check_no_private_paths({"model.safetensors": file}, None)
    save_file({"w": torch.zeros(1)}, file, metadata={"format": "pt"})
    check_no_private_paths({"model.safetensors": file}, None)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RunError, match="unreadable weights"):
        check_no_private_paths({"model.safetensors": file}, None)
