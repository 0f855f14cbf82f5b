"""The forward pass: each row counts once, in any batch, and all batches have one shape."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mega_hf.errors import RunError
from mega_hf.evaluation.compile import choose_path, compile_everywhere
from mega_hf.evaluation.forward import COMPILED, EAGER, PLAIN, ResidentModel, place_examples
from mega_hf.runtime.processes import Processes

CPU = torch.device("cpu")
SHAPE = (3, 4, 4)


def _model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    )


def _examples(rows, batch_size, seed=0):
    examples = place_examples(rows, SHAPE, batch_size, CPU, 0.5)
    generator = torch.Generator().manual_seed(seed)
    examples.images[:rows] = torch.randn(rows, *SHAPE, generator=generator)
    examples.labels[:rows] = torch.randint(0, 5, (rows,), generator=generator)
    return examples


def _naive(model, examples):
    model = model.eval()
    correct = 0
    with torch.no_grad():
        for i in range(examples.count):
            correct += int(model(examples.images[i : i + 1]).argmax()) == int(examples.labels[i])
    return correct


# --- Images


def test_images_that_do_not_fit_go_to_disk_and_give_the_same_count():
    model = ResidentModel(_model(), CPU)
    resident, mapped = _examples(10, 4), place_examples(10, SHAPE, 4, CPU, 1e-12)
    mapped.images.copy_(resident.images)
    mapped.labels.copy_(resident.labels)
    assert (resident.place, mapped.place) == ("device", "disk")
    assert model.count_correct(mapped) == model.count_correct(resident)


# --- Counting


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_count_equals_a_naive_loop(rows, batch_size, seed):
    examples = _examples(rows, batch_size, seed)
    assert ResidentModel(_model(seed), CPU).count_correct(examples) == _naive(
        _model(seed), examples
    )


def test_predictions_are_in_the_order_of_the_rows():
    examples, model = _examples(10, 4), _model().eval()
    correct, _, finite, _ = ResidentModel(_model(), CPU).predict(examples)
    expected = model(examples.images[:10]).argmax(dim=1) == examples.labels[:10]
    assert (correct.dtype, correct.shape, finite) == (torch.bool, (10,), True)
    assert torch.equal(correct, expected)
    assert 0 < correct.sum() < 10  # else a constant would pass


@given(st.permutations(range(10)), st.integers(1, 10), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_a_prediction_does_not_depend_on_the_other_rows_of_the_batch(order, chosen, batch_size):
    examples, forward = _examples(10, batch_size), ResidentModel(_model(), CPU)
    whole, rows = forward.predict(examples), torch.tensor(order[:chosen])
    some = forward.predict(examples, rows)
    assert torch.equal(some.correct, whole.correct[rows])
    assert torch.equal(some.margin, whole.margin[rows])


def test_a_model_that_mixes_the_rows_of_a_batch_is_detected():
    class Mixing(nn.Module):
        def forward(self, images):
            scores = images.flatten(1)[:, :5]
            return scores + 1e-6 * scores.cumsum(dim=0)

    assert ResidentModel(_model(), CPU).is_order_free(_examples(40, 10))
    assert not ResidentModel(Mixing(), CPU).is_order_free(_examples(40, 10))


def test_margins_are_those_of_the_label():
    examples, model = _examples(10, 4), _model().eval()
    found = ResidentModel(_model(), CPU).predict(examples)
    scores = model(examples.images).detach()
    for row, label in enumerate(examples.labels.tolist()):
        others = torch.cat([scores[row, :label], scores[row, label + 1 :]])
        assert found.margin[row] == pytest.approx(
            float(scores[row, label] - others.max()), abs=1e-5
        )
    assert torch.equal(found.correct, found.margin > 0)


def test_every_batch_has_one_shape():
    shapes, model = [], _model()
    model[0].register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    ResidentModel(model, CPU).count_correct(_examples(10, 4))
    assert shapes == [(4, *SHAPE)] * 3


@pytest.mark.parametrize("row", [0, 5, 9])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_gives_none(row, bad):
    examples = _examples(10, 4)
    examples.images[row, 0, 0, 0] = bad
    assert ResidentModel(_model(), CPU).count_correct(examples) is None


def test_one_bad_logit_that_is_not_the_largest_is_enough():
    class Broken(nn.Module):
        def forward(self, images):
            return torch.tensor([1.0, -torch.inf, 0.0, 0.0, 0.0]).expand(len(images), 5)

    assert ResidentModel(Broken(), CPU).count_correct(_examples(10, 4)) is None


def test_a_model_may_return_a_record_with_logits():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = _model()

        def forward(self, images):
            return SimpleNamespace(logits=self.inner(images))

    examples = _examples(10, 4)
    assert ResidentModel(Wrapped(), CPU).count_correct(examples) == ResidentModel(
        _model(), CPU
    ).count_correct(examples)


# --- The resident model


def test_predictions_use_the_written_weights():
    forward, examples = ResidentModel(_model(0), CPU), _examples(40, 10)
    counts = []
    for seed in (1, 2, 0, 1):
        forward.write(_model(seed).state_dict().items())
        counts.append(forward.count_correct(examples))
        assert counts[-1] == _naive(_model(seed), examples)
    assert counts[0] == counts[3]
    assert len(set(counts)) > 1


def test_buffers_are_written_too():
    forward, state = ResidentModel(_model(), CPU), _model().state_dict()
    state["1.running_mean"] = torch.full((4,), 7.0)
    forward.write(state.items())
    assert torch.equal(forward.model[1].running_mean, torch.full((4,), 7.0))


def test_write_copies_without_rounding():
    forward = ResidentModel(_model(), CPU)
    state = {k: v.clone() for k, v in _model(1).state_dict().items()}
    state = {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
    forward.write(state.items())
    written = {k: v.clone() for k, v in forward.model.state_dict().items()}
    state["0.weight"].zero_()
    assert torch.equal(forward.model[0].weight, written["0.weight"])
    assert torch.equal(written["4.weight"], state["4.weight"].float())


def test_writing_an_incomplete_state_is_an_error():
    state = {k: v for k, v in _model().state_dict().items() if k != "4.bias"}
    with pytest.raises(AssertionError, match=r"4\.bias"):
        ResidentModel(_model(), CPU).write(state.items())


def test_predicting_twice_gives_the_same_and_changes_nothing():
    forward, examples = ResidentModel(_model().train(), CPU), _examples(10, 4)
    before = {k: v.clone() for k, v in forward.model.state_dict().items()}
    assert forward.count_correct(examples) == forward.count_correct(examples)
    assert all(torch.equal(v, before[k]) for k, v in forward.model.state_dict().items())


def test_the_path_decides_the_memory_format():
    fast, plain = ResidentModel(_model(), CPU), ResidentModel(_model(), CPU, PLAIN)
    assert fast.path == EAGER
    assert fast.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert plain.model[0].weight.is_contiguous()
    assert plain.count_correct(_examples(30, 8)) == _naive(_model(), _examples(30, 8))


# --- Compiled


def test_a_compiled_model_is_compiled_once_and_predicts_the_same_for_all_weights(monkeypatch):
    examples = _examples(40, 10)
    eager = ResidentModel(_model(), CPU)
    fast = ResidentModel(_model(), CPU, COMPILED)
    shapes = []
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: (shapes.append(1), compiler(*a, **k))[1])
    for seed in (0, 1, 2, 0):
        for forward in (eager, fast):
            forward.write(_model(seed).state_dict().items())
        slow, quick = eager.predict(examples), fast.predict(examples)
        assert torch.allclose(slow.margin, quick.margin, atol=1e-5)
        assert torch.equal(slow.correct, quick.correct)
    assert (fast.path, len(shapes)) == (COMPILED, 1)


def test_another_batch_shape_is_an_error_of_a_compiled_model():
    forward = ResidentModel(_model(), CPU, COMPILED)
    forward.count_correct(_examples(40, 10))
    with pytest.raises(RuntimeError, match="recompile"):
        forward.count_correct(_examples(40, 8))


def test_a_model_that_cannot_be_compiled_runs_eagerly(monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand more")

    examples, forward = _examples(40, 10), ResidentModel(_model(), CPU)
    expected = forward.count_correct(examples)
    monkeypatch.setattr(torch, "compile", fail)
    assert compile_everywhere(forward, examples, Processes()) is False
    assert "No working C++ compiler found" in caplog.text
    assert (forward.path, forward.count_correct(examples)) == (EAGER, expected)
    with pytest.raises(
        RunError,
        match=r"cannot compile the model[\s\S]*No working C\+\+ compiler[\s\S]*--forward eager",
    ):
        ResidentModel(_model(), CPU, COMPILED).count_correct(examples)


def test_a_compiler_that_miscalculates_is_not_used(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda run, **_: lambda images: run(images) * 1.1)
    forward = ResidentModel(_model(), CPU)
    with pytest.raises(ArithmeticError, match="differ by"):
        forward.compile(_examples(40, 10))
    assert forward.count_correct(_examples(40, 10)) == _naive(_model(), _examples(40, 10))


@pytest.mark.parametrize(("shown", "path"), [(1000, EAGER), (10**11, COMPILED)])
def test_only_a_long_search_is_compiled(shown, path):
    assert choose_path(_model(), _examples(40, 10), shown, CPU) == path
