"""State dicts as flat vectors: layout, packing and unpacking, errors, digests."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mega_hf.errors import ParentError
from mega_hf.weights.space import build_space, check_identical, difference, digest


def _model(seed, dtype=torch.float32):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5, bias=False)
    )
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    model[1].num_batches_tracked.fill_(seed + 100)
    return model.to(dtype)


def _state(seed, dtype=torch.float32):
    return {k: v.clone() for k, v in _model(seed, dtype).state_dict().items()}


LEARNED = [name for name, _ in _model(0).named_parameters()]


def _space(*states, tied=None, learned=LEARNED):
    return build_space({f"p{i}": s for i, s in enumerate(states)}, learned, tied or {})


def _same(a, b):
    return sorted(a) == sorted(b) and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


# --- Layout


def test_learned_weights_come_first_then_statistics_without_gaps():
    space = _space(_state(1), _state(2))
    assert [s.name for s in space.segments] == [*LEARNED, "1.running_mean", "1.running_var"]
    assert [s.start for s in space.segments] == [0, *(s.stop for s in space.segments[:-1])]
    assert space.learned_size == sum(p.numel() for p in _model(0).parameters())
    assert space.size == space.learned_size + 8
    assert list(space.copied) == ["1.num_batches_tracked"]


def test_a_model_without_weights_has_an_empty_space():
    space = _space({"n": torch.tensor(3)}, {"n": torch.tensor(4)}, learned=[])
    assert (space.size, space.learned_size) == (0, 0)
    assert space.unpack(space.pack({"n": torch.tensor(3)})) == {"n": torch.tensor(3)}


def test_an_integer_parameter_is_copied():
    a, b = _state(1), _state(2)
    a["ids"], b["ids"] = torch.tensor([1, 2]), torch.tensor([3, 4])
    space = _space(a, b, learned=[*LEARNED, "ids"])
    assert "ids" not in [s.name for s in space.segments]
    assert torch.equal(space.unpack(space.pack(b))["ids"], torch.tensor([1, 2]))


# --- There and back


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pack_and_unpack_are_inverse(dtype):
    state = _state(1, dtype)
    space = _space(state, _state(2, dtype))
    vector = space.pack(state)
    assert (vector.dtype, vector.device.type, vector.shape) == (torch.float32, "cpu", (space.size,))
    assert _same(space.unpack(vector), state)


@given(st.lists(st.floats(-60_000, 60_000, width=32), min_size=12, max_size=12))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_vector_is_rounded_to_the_parents_dtype(dtype, values):
    state = {"w": torch.zeros(3, 4, dtype=dtype)}
    space = _space(state, state, learned=["w"])
    vector = torch.tensor(values, dtype=torch.float32)
    unpacked = space.unpack(vector)["w"]
    assert unpacked.shape == (3, 4)
    assert torch.equal(unpacked, vector.reshape(3, 4).to(dtype))
    again = space.unpack(space.pack({"w": unpacked}))["w"]
    assert torch.equal(again, unpacked)


def test_mixed_dtypes_each_keep_their_own():
    a = {"w": torch.randn(3).bfloat16(), "v": torch.randn(2)}
    space = _space(a, a, learned=["w", "v"])
    assert [t.dtype for t in space.unpack(space.pack(a)).values()] == [
        torch.bfloat16,
        torch.float32,
    ]


def test_packing_neither_tracks_gradients_nor_depends_on_memory_layout():
    model = _model(1)
    space = _space(_state(1), _state(2))
    expected = space.pack(_state(1))
    vector = space.pack(
        dict(model.to(memory_format=torch.channels_last).state_dict(keep_vars=True))
    )
    assert not vector.requires_grad
    assert torch.equal(vector, expected)


def test_packing_does_not_write_to_the_state():
    state, before = _state(1), _state(1)
    vector = _space(state, _state(2)).pack(state)
    vector.zero_()
    assert _same(state, before)


def test_a_state_dict_comes_back_complete_and_loads():
    a, b = _state(1), _state(2)
    space = _space(a, b)
    _model(3).load_state_dict(space.unpack((space.pack(a) + space.pack(b)) / 2), strict=True)


def test_integer_buffers_are_those_of_the_first_parent():
    a, b = _state(1), _state(2)
    mixed = _space(a, b).unpack(_space(a, b).pack(b))
    assert mixed["1.num_batches_tracked"] == 101
    assert mixed["1.num_batches_tracked"].dtype == torch.int64


# --- Tied names and other buffers


def test_a_tied_name_gets_the_value_of_its_source_and_no_place_of_its_own():
    a, b = _state(1), _state(2)
    for state in (a, b):
        state["head.weight"] = state["3.weight"]
    space = _space(a, b, tied={"head.weight": "3.weight"}, learned=[*LEARNED, "head.weight"])
    assert space.size == _space(_state(1), _state(2)).size
    mixed = space.unpack(space.pack(a) * 0.5)
    assert torch.equal(mixed["head.weight"], a["3.weight"] * 0.5)
    assert mixed["head.weight"] is mixed["3.weight"]


def test_a_float_buffer_is_copied_if_equal_and_an_error_otherwise():
    a, b = _state(1), _state(2)
    a["scale"], b["scale"] = torch.tensor([1.0]), torch.tensor([1.0])
    assert torch.equal(_space(a, b).unpack(_space(a, b).pack(b))["scale"], torch.tensor([1.0]))
    b["scale"] = torch.tensor([1.5])
    with pytest.raises(ParentError, match=r"buffer scale differs[\s\S]*p1"):
        _space(a, b)


# --- Refusals


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("3.weight", None, "3.weight is only in the first"),
        ("extra", torch.zeros(1), "extra is only in the second"),
        ("3.weight", torch.zeros(6, 4), r"3.weight is \[5, 4\] and \[6, 4\]"),
        ("3.weight", torch.zeros(5, 4).half(), "3.weight is torch.float32 and torch.float16"),
    ],
)
def test_different_architectures_are_an_error_that_shows_the_difference(key, value, shown):
    a, b = _state(1), _state(2)
    b = {k: v for k, v in b.items() if k != key} | ({} if value is None else {key: value})
    with pytest.raises(ParentError, match=rf"p0 and p1 differ[\s\S]*{shown}"):
        _space(a, b)


def test_all_parents_are_compared():
    c = {k: v for k, v in _state(3).items() if k != "3.weight"}
    with pytest.raises(ParentError, match="p0 and p2 differ"):
        _space(_state(1), _state(2), c)


def test_five_differences_are_shown_and_the_others_counted():
    with pytest.raises(ParentError, match="and 3 more"):
        check_identical({"a": {f"k{i}": torch.zeros(1) for i in range(8)}, "b": {}})


def test_equal_layouts_have_no_difference():
    assert list(difference(_state(1), _state(2))) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["3.weight", "1.running_var"])
@pytest.mark.parametrize("parent", [0, 1])
def test_nan_or_infinity_is_an_error_that_names_parent_and_entry(bad, key, parent):
    states = [_state(1), _state(2)]
    states[parent][key].view(-1)[-1] = bad
    with pytest.raises(ParentError, match=rf"p{parent} holds NaN or infinity[\s\S]*{key}"):
        _space(*states)


# --- Digests


def _flip(tensor, bit=0):
    tensor.view(torch.int32).view(-1)[0] ^= 1 << bit


@pytest.mark.parametrize("bit", [0, 12, 31])
@pytest.mark.parametrize("key", ["0.weight", "1.running_mean"])
def test_one_bit_changes_the_digest(key, bit):
    state = _state(1)
    before = digest(state)
    _flip(state[key], bit)
    assert digest(state) != before


def test_names_shapes_and_dtypes_change_the_digest():
    values = torch.arange(6, dtype=torch.int32)
    states = [
        {"a": values},
        {"b": values},
        {"a": values.reshape(2, 3)},
        {"a": values.view(torch.float32)},
    ]
    assert len({digest(s) for s in states}) == 4


def test_the_digest_does_not_depend_on_order_or_memory_layout():
    state = _state(1)
    other = {
        k: state[k].t().contiguous().t() if state[k].dim() == 2 else state[k]
        for k in reversed(state)
    }
    assert digest(other) == digest(state)


def test_minus_zero_has_another_digest():
    assert digest({"a": torch.tensor([0.0])}) != digest({"a": torch.tensor([-0.0])})


def test_the_digest_of_a_known_state_never_changes():
    state = {
        "w": torch.tensor([[1.0, -2.0]]),
        "h": torch.tensor([0.5]).bfloat16(),
        "n": torch.tensor(3),
    }
    assert digest(state) == "01202dda06f16054f7bac60100d56f8df97b03ede982e4a54a5983738ffa888d"


def test_weights_and_statistics_have_separate_digests():
    a = _state(1)
    space = _space(a, _state(2))
    vector = space.pack(a)

    def learned_and_statistics():
        state = space.unpack(vector)
        return space.learned_digest(state), space.statistics_digest(state)

    learned, statistics = learned_and_statistics()
    vector[space.learned_size] += 1
    assert learned_and_statistics()[0] == learned
    assert learned_and_statistics()[1] != statistics
    vector[space.learned_size] -= 1
    _flip(vector)
    assert learned_and_statistics()[0] != learned
    assert learned_and_statistics()[1] == statistics


def test_a_digest_is_that_of_the_saved_dtype():
    """A change that rounding to the parents' dtype removes does not change it."""
    state = {"w": torch.ones(3).bfloat16()}
    space = _space(state, state, learned=["w"])
    vector = space.pack(state)
    exact, near, far = (space.unpack(vector + shift) for shift in (0, 1e-6, 1e-2))
    assert space.learned_digest(near) == space.learned_digest(exact)
    assert space.learned_digest(far) != space.learned_digest(exact)
    assert space.statistics_digest(exact) is None
