"""The choice of the batch size."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mega_hf.models.cifar_resnet  # noqa: F401
from mega_hf.evaluation.batch_size import choose_batch_size, choose_chunk, even_batches

CPU = torch.device("cpu")


@given(st.integers(1, 5000), st.integers(1, 600))
@settings(max_examples=100, deadline=None)
def test_even_batches_need_no_more_batches_and_leave_little_padding(rows, limit):
    size = even_batches(rows, limit)
    batches = -(-rows // size)
    assert 1 <= size <= limit
    assert batches == -(-rows // limit)
    assert batches * size - rows < batches


def test_even_batches_of_known_sizes():
    assert [even_batches(5000, 128), even_batches(10, 128), even_batches(10, 4)] == [125, 10, 4]


@pytest.mark.parametrize(
    ("arch", "pixels", "expected"), [("cifar_resnet20", 32, 128), ("resnet18", 224, 32)]
)
def test_small_images_get_large_batches(arch, pixels, expected):
    """The constants come from measurements, see the comment in the module."""
    model = timm.create_model(arch, num_classes=10).eval()
    assert choose_batch_size(None, expected * 100, CPU, model, (3, pixels, pixels)) == expected
    assert not any(part._forward_hooks for part in model.modules()), "left on the model"


def test_the_recipes_batch_size_is_used():
    model = timm.create_model("cifar_resnet20", num_classes=10).eval()
    assert choose_batch_size(48, 4800, CPU, model, (3, 32, 32)) == 48
    assert choose_batch_size(48, 10, CPU, model, (3, 32, 32)) == 10


def test_small_batches_are_evaluated_several_at_a_time_unless_the_recipe_sets_the_size():
    assert [choose_chunk(None, 32), choose_chunk(None, 512), choose_chunk(10, 10)] == [128, 512, 10]
