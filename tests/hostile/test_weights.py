"""Weights with any byte or header entry changed: they load, or there is a clear error."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mega_hf.errors import ParentError
from mega_hf.models.load import open_model
from mega_hf.models.timm_models import open_weights
from mega_hf.models.weight_files import stored_dtypes
from tests.hostile.cases import bounded, cases, mutated, used

NAME = "model.safetensors"
LENGTHS = [0, 1, 7, 8, 24_999_999, 25_000_001, 10**8, 2**31, 2**32, 2**63, 2**64 - 1]


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    for file in folders["timm"].iterdir():
        if file.name != NAME:
            os.link(file, tmp_path / file.name)
    return tmp_path


@pytest.fixture
def valid(folders: dict[str, Path]) -> bytes:
    return (folders["timm"] / NAME).read_bytes()


def _parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _packed(header: str | bytes, data: bytes, length: int | None = None) -> bytes:
    raw = header.encode("utf-8", errors="surrogatepass") if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def _read(folder: Path) -> None:
    used(lambda: stored_dtypes(folder, "x"))
    used(lambda: open_model(folder), lambda opened: opened.state())


def test_any_bytes(folder: Path, valid: bytes) -> None:
    header = 8 + struct.unpack("<Q", valid[:8])[0]
    at = st.integers(0, header) | st.integers(0, len(valid) - 1)

    @cases(400)
    @given(
        st.lists(st.tuples(at, st.integers(1, 255)), max_size=4),
        st.none() | at,
        st.none() | st.sampled_from(LENGTHS),
    )
    def check(flips: list[tuple[int, int]], end: int | None, length: int | None) -> None:
        content = bytearray(valid)
        for place, bits in flips:
            content[place] ^= bits
        if length is not None:
            content[:8] = struct.pack("<Q", length)
        (folder / NAME).write_bytes(content[:end])
        _read(folder)

    check()


def test_any_value_of_the_header(folder: Path, valid: bytes) -> None:
    header, data = _parts(valid)
    header["__metadata__"] = {"format": "pt"}
    few = {
        name: header[name]
        for name in ("__metadata__", "conv1.weight", "bn1.running_var", "fc.bias")
    }
    kinds = ["F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F4", "C64", "f32"]
    offsets = [
        [0, 0],
        [0, 4],
        [-4, 0],
        [len(data), len(data) + 4],
        [4, 0],
        [0, 2**63],
        [0, 2**64],
        [0, len(data)],
    ]
    shapes = [[2**32, 2**32], [0, 2**63], [2**61], [-1, 3], [], [1] * 2000]

    @cases(250)
    @given(mutated(few, [*kinds, *offsets, *shapes]))
    def check(changed: dict[str, Any]) -> None:
        changed = {name: changed[name] for name in few if name in changed} | changed
        whole = {name: value for name, value in header.items() if name not in few} | changed
        (folder / NAME).write_bytes(_packed(json.dumps(whole), data))
        _read(folder)

    check()


def _twice(header: dict[str, Any]) -> str:
    """Return a header in which one name stands twice, for other bytes."""
    return (
        json.dumps(header)[:-1]
        + ', "fc.bias": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}'
    )


def _overlapping(header: dict[str, Any]) -> str:
    return json.dumps(header | {"fc.bias": header["fc.bias"] | {"data_offsets": [0, 12]}})


HEADERS = {
    "twice": _twice,
    "overlapping": _overlapping,
    "deep": lambda header: '{"a":' * 100_000,
    "empty": lambda header: "",
    "a list": lambda header: "[]",
    "no tensors": lambda header: "{}",
    "many tensors": lambda header: (
        "{"
        + ",".join(
            f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(10**5)
        )
        + "}"
    ),
    "a long name": lambda header: json.dumps(
        {"a" * 10**6: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}
    ),
    "no text": lambda header: b"\xff\xfe" * 100,
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_is_none(kind: str, folder: Path, valid: bytes) -> None:
    header, data = _parts(valid)
    (folder / NAME).write_bytes(_packed(HEADERS[kind](header), data))
    with bounded(), pytest.raises(ParentError):
        open_model(folder)
    with bounded(), pytest.raises(ParentError):
        open_weights("cifar_resnet8", folder / NAME, 3, {}, "x")


def test_a_header_of_gigabytes_is_not_read(folder: Path) -> None:
    with (folder / NAME).open("wb") as opened:
        opened.write(struct.pack("<Q", 90_000_000) + b'{"a":' + b"[" * 1000)
        opened.truncate(2**33)
    with bounded(), pytest.raises(ParentError, match="unreadable weights"):
        open_model(folder)


@pytest.mark.parametrize(
    "arguments", [{"depth": 3}, {"layers": [3]}, {"pretrained": True}, {"num_classes": 4}]
)
def test_an_architecture_that_its_weights_do_not_explain(
    arguments: dict[str, Any], folders: dict[str, Path]
) -> None:
    with bounded(), pytest.raises(ParentError):
        open_weights("test_vit", folders["timm vit"] / NAME, 3, arguments, "x")


@pytest.mark.parametrize("arch", ["hf-hub:org/model", "local-dir:/etc", "../x", "", "a" * 10**6])
def test_an_architecture_that_timm_does_not_have(arch: str, folders: dict[str, Path]) -> None:
    with bounded(), pytest.raises(ParentError):
        open_weights(arch, folders["timm"] / NAME, 3, {}, "x")
