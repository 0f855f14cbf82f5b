"""Memory-mapped weights."""

import torch
from safetensors.torch import save_file

from mega_hf.weights.mapped import is_mapped, map_copy, map_files

STATE = {"w": torch.rand(3, 4), "h": torch.rand(2).bfloat16(), "n": torch.tensor(3)}


def _same(a, b):
    return a is not None and a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in b)


def test_shards_are_combined(tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in STATE]
    for file, (name, tensor) in zip(files, STATE.items(), strict=True):
        save_file({name: tensor}, file)
    assert _same(map_files(files), STATE)


def test_a_mapped_state_dict_is_compared_bit_for_bit(tmp_path):
    file = tmp_path / "some.safetensors"
    nan = torch.tensor([float("nan"), -0.0])
    save_file(STATE | {"nan": nan}, file)
    mapped = map_files([file])
    assert is_mapped(mapped, STATE | {"nan": nan.clone()})
    for other in (
        STATE,
        STATE | {"other": nan},
        STATE | {"nan": nan.abs()},
        STATE | {"nan": nan.double()},
        STATE | {"nan": nan[None]},
        STATE | {"nan": nan, "n": torch.tensor(4)},
    ):
        assert not is_mapped(mapped, other)


def test_a_mapped_copy_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shared = torch.rand(4, 4)
    state = {"a": shared, "same": shared, "turned": shared.T}
    assert _same(map_copy(state), state)
    assert list(tmp_path.iterdir()) == []
