"""Mirrored and cropped images: against one row at a time, and as a property."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.runtime.seeds import named_stream
from mega_hf.training.trainer import Draws, draw, flip_and_crop


def slow(image: np.ndarray, mirrored: bool, top: int, left: int) -> np.ndarray:
    """Augment one image by hand: [channels, height, width]."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (height // 8, height // 8), (width // 8, width // 8)))
    crop = padded[:, top : top + height, left : left + width]
    return crop[:, :, ::-1] if mirrored else crop


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 16, 24), (3, 7, 9)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_batch_against_one_row_at_a_time(
    shape: tuple[int, int, int], layout: torch.memory_format
) -> None:
    stream = named_stream(3, "train", 1, 0, "augmentation")
    images = (
        torch.from_numpy(stream.normal(size=(40, *shape))).float().contiguous(memory_format=layout)
    )
    draws = draw(stream, 40, *shape[1:])
    expected = [
        slow(image.numpy(), bool(draws.mirrored[i]), int(draws.top[i]), int(draws.left[i]))
        for i, image in enumerate(images)
    ]
    np.testing.assert_array_equal(flip_and_crop(images, draws).numpy(), np.stack(expected))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 5), st.sampled_from([(8, 8), (9, 16), (32, 32), (3, 5)])
)
def test_every_row_is_some_crop(seed: int, rows: int, size: tuple[int, int]) -> None:
    height, width = size
    stream = named_stream(seed, "train", 1, 0, "augmentation")
    images = torch.arange(1, rows * 2 * height * width + 1).float().reshape(rows, 2, height, width)
    got = flip_and_crop(images, draw(stream, rows, height, width))
    assert got.shape == images.shape
    for before, after in zip(images.numpy(), got.numpy(), strict=True):
        crops = [
            slow(before, mirrored, top, left)
            for mirrored in (False, True)
            for top in range(2 * (height // 8) + 1)
            for left in range(2 * (width // 8) + 1)
        ]
        assert any(np.array_equal(after, crop) for crop in crops)


def test_a_row_has_its_draws_whatever_the_batches_are() -> None:
    draws = draw(named_stream(1, "train", 2, 0, "augmentation"), 50, 32, 32)
    images = torch.randn(50, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = flip_and_crop(images, draws)
    order = torch.from_numpy(np.random.default_rng(0).permutation(50))
    for rows in order.split(7):
        assert torch.equal(flip_and_crop(images[rows], draws.of(rows)), whole[rows])


def test_the_draws_are_even() -> None:
    draws = draw(named_stream(1, "train", 1, 0, "augmentation"), 90_000, 32, 32)
    assert abs(draws.mirrored.float().mean().item() - 0.5) < 0.01
    for offsets in (draws.top, draws.left):
        counts = torch.bincount(offsets)
        assert len(counts) == 9
        assert (counts - 10_000).abs().max() < 500


def test_nothing_drawn_is_nothing_done() -> None:
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    middle = Draws(torch.zeros(4, dtype=torch.bool), torch.full((4,), 2), torch.full((4,), 2))
    assert torch.equal(flip_and_crop(images, middle), images)
    mirrored = Draws(torch.ones(4, dtype=torch.bool), middle.top, middle.left)
    assert torch.equal(flip_and_crop(images, mirrored), images.flip(3))
