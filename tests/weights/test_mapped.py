"""Weights that stay on the disk."""

import torch
from safetensors.torch import save_file

from mega_hf.weights.mapped import map_copy, map_files
from mega_hf.weights.space import digest

STATE = {"w": torch.rand(3, 4), "h": torch.rand(2).bfloat16(), "n": torch.tensor(3)}


def _same(a, b):
    return a is not None and a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in b)


def test_files_that_hold_the_state_are_mapped(tmp_path):
    save_file(STATE, tmp_path / "whole.safetensors")
    assert _same(map_files([tmp_path / "whole.safetensors"], digest(STATE)), STATE)


def test_shards_are_put_together(tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in STATE]
    for file, (name, tensor) in zip(files, STATE.items(), strict=True):
        save_file({name: tensor}, file)
    assert _same(map_files(files, digest(STATE)), STATE)


def test_files_that_hold_something_else_are_not(tmp_path):
    """By another name, with another number, damaged, gone."""
    file, sha256 = tmp_path / "some.safetensors", digest(STATE)
    for other in ({**STATE, "more": torch.zeros(1)}, {**STATE, "n": torch.tensor(4)}):
        save_file(other, file)
        assert map_files([file], sha256) is None
    file.write_bytes(file.read_bytes()[:-1])
    assert map_files([file], sha256) is None
    assert map_files([tmp_path / "none.safetensors"], sha256) is None
    assert map_files([], digest({})) is None


def test_a_copy_goes_with_its_last_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shared = torch.rand(4, 4)
    state = {"a": shared, "same": shared, "turned": shared.T}
    assert _same(map_copy(state), state)
    assert list(tmp_path.iterdir()) == []
