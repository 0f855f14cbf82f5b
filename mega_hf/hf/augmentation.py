"""Pictures changed a little in each epoch, so that a model sees more of them: draws by name, and what is done."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

_PADDED = 8  # the padding on each side is this part of the picture's size: 4 pixels of 32


@dataclass(frozen=True)
class Draws:
    """What is drawn for each picture of an epoch; row i has the same draws whatever the batches are."""

    mirrored: torch.Tensor  # [rows] bool
    top: torch.Tensor  # [rows] int64, where in the padded picture the crop begins
    left: torch.Tensor  # [rows] int64

    def of(self, rows: torch.Tensor) -> Draws:
        """Return the draws of some rows: [batch] int64 -> draws of [batch]."""
        return Draws(self.mirrored[rows], self.top[rows], self.left[rows])


def draw(stream: np.random.Generator, rows: int, height: int, width: int) -> Draws:
    """Draw for one epoch: mirrored with probability 1/2, every crop with the same probability."""
    mirrored = stream.random(rows) < 0.5
    top = stream.integers(0, 2 * (height // _PADDED) + 1, rows)
    left = stream.integers(0, 2 * (width // _PADDED) + 1, rows)
    return Draws(*map(torch.from_numpy, (mirrored, top, left)))


def flip_and_crop(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Pad each picture with zeros, which are its mean colour, crop it to its size, mirror some.

    Args:
        images: [rows, channels, height, width], normalised.
        draws: of these rows.

    Returns:
        [rows, channels, height, width], channels last in memory, on the images' device.
    """
    height, width = images.shape[2:]
    down, across = height // _PADDED, width // _PADDED
    padded = nn.functional.pad(images, (across, across, down, down)).permute(0, 2, 3, 1)
    y = draws.top[:, None] + torch.arange(height)
    x = draws.left[:, None] + torch.arange(width)
    x = torch.where(draws.mirrored[:, None], x.flip(1), x)
    device = images.device
    row = torch.arange(len(images), device=device)[:, None, None]
    return padded[row, y.to(device)[:, :, None], x.to(device)[:, None, :]].permute(0, 3, 1, 2)
