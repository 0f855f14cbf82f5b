"""Train one parent, epoch by epoch; the same seed gives the same bytes, resumed or not."""

from __future__ import annotations

import io
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from mega_hf.errors import RunError
from mega_hf.models.loaded import LoadedModel
from mega_hf.recipe.parents import ParentTrain, Train
from mega_hf.runtime.seeds import named_stream
from mega_hf.tasks.image_classification import logits
from mega_hf.tasks.rows import Split, load_examples

_TIMED_ROWS = 32


class TrainingRows:
    """Training rows, preprocessed: held in memory if they fit, else decoded for each batch.

    Args:
        split: the rows.
        model: the model, whose transform is applied.
        mapping: for each class of the data set the model's output.
        limit: bytes of memory that the images may take.
    """

    def __init__(self, split: Split, model: LoadedModel, mapping: list[int], limit: int) -> None:
        self.shape = model.input_shape  # (channels, height, width)
        self.labels = torch.tensor([mapping[label] for label in split.labels()], dtype=torch.int64)
        self._split, self._transform, self._held = split, model.transform, torch.empty(0)
        self.is_held = 4 * len(split) * math.prod(self.shape) <= limit
        if self.is_held:
            self._held = torch.empty(len(split), *self.shape)
            load_examples(split, mapping, model.transform, self._held, self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def examples(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the images of some rows.

        Args:
            rows: [batch] int64.

        Returns:
            [batch, channels, height, width] float32.
        """
        if self.is_held:
            return self._held[rows]
        # torch.stack would keep the strides of the transform's results
        images = torch.empty(len(rows), *self.shape)
        for image, row in zip(images, rows.tolist(), strict=True):
            image.copy_(self._transform(self._split.example(row)))
        return images


def affordable_bytes(processes: int) -> int:
    """Return a process' share of half of the free memory, in bytes."""
    return psutil.virtual_memory().available // 2 // processes


class Fit:
    """A training and its state after some epochs.

    Args:
        name: the parent's name, for errors.
        model: trained in place; [rows, channels, height, width] to logits, or to a record of them.
        train: the settings.
        rows: the training rows.
        device: where the model is trained.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        train: ParentTrain,
        rows: TrainingRows,
        device: torch.device,
    ) -> None:
        self._name, self._train, self._rows, self._device = name, train, rows, device
        self._model = model.to(device).to(memory_format=torch.channels_last)
        self.updates = updates_per_epoch(len(rows), train.batch_size)
        self._optimizer = make_optimizer(self._model, train)
        self._schedule = make_schedule(self._optimizer, train, self.updates)
        self.losses: list[float] = []  # the mean loss of each finished epoch

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.losses)

    def run_epoch(self, advance: Callable[[int, str], None]) -> None:
        """Train one epoch; `advance` is called with 1 and a text after each batch.

        Raises:
            RunError: the loss or the weights are not finite.
        """
        train, epoch = self._train, self.epoch + 1

        def stream(purpose: str) -> np.random.Generator:
            return named_stream(train.seed, "train", epoch, 0, purpose)

        order = torch.from_numpy(stream("order").random(len(self._rows)).argsort())
        draws = None
        if train.augmentation == "flip-and-crop":
            draws = draw(stream("augmentation"), len(self._rows), *self._rows.shape[1:])
        total = 0.0
        self._model.train()
        with _torch_draws(stream("torch"), self._device):
            for i, rows in enumerate(order.split(train.batch_size)[: self.updates], 1):
                total += self._update(rows, draws)
                self._step_schedule((epoch - 1) * self.updates + i)
                advance(1, f"epoch {epoch}/{train.epochs} loss {total / i:.3f}")
        self._check_divergence(epoch, total / self.updates)
        self.losses.append(total / self.updates)

    def state(self) -> bytes:
        """Return everything that the next epoch depends on, in the format of `torch.save`."""
        buffer = io.BytesIO()
        parts = {"model": self._model, "optimizer": self._optimizer, "schedule": self._schedule}
        torch.save(
            {name: part.state_dict() for name, part in parts.items()} | {"losses": self.losses},
            buffer,
        )
        return buffer.getvalue()

    def resume(self, content: bytes) -> None:
        """Resume from what `state` returned.

        Raises:
            RuntimeError, ValueError, KeyError, UnpicklingError: the state was written by another
                version of a library.
        """
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.losses = state["losses"]

    def _update(self, rows: torch.Tensor, draws: Draws | None) -> float:
        images = self._rows.examples(rows).to(self._device)
        images = images if draws is None else flip_and_crop(images, draws.of(rows))
        labels = self._rows.labels[rows].to(self._device)
        return update(self._model, self._optimizer, images, labels, self._train.label_smoothing)

    def _step_schedule(self, updates: int) -> None:
        if isinstance(self._schedule, OneCycleLR):
            self._schedule.step()
        else:
            self._schedule.step_update(updates)

    def _check_divergence(self, epoch: int, loss: float) -> None:
        finite = all(
            bool(t.isfinite().all())
            for t in self._model.state_dict().values()
            if t.is_floating_point()
        )
        if not math.isfinite(loss) or not finite:
            got = "weights that are not finite" if math.isfinite(loss) else loss
            raise RunError(
                f"the training of {self._name} diverged",
                expected="a finite loss",
                got=f"{got} in epoch {epoch} of {self._name}",
                hint="use a smaller learning_rate",
            )


def updates_per_epoch(rows: int, batch_size: int) -> int:
    """Return the number of batches per epoch; a last batch of one row is left out.

    BatchNorm can't compute a variance of one row.
    """
    return max(1, rows // batch_size + (rows % batch_size > 1))


def make_optimizer(model: nn.Module, train: Train) -> torch.optim.Optimizer:
    """Return timm's optimizer of that name."""
    # timm's sgd has Nesterov momentum, for which torch wants a momentum above 0
    plain = train.optimizer == "sgd" and train.momentum == 0
    return create_optimizer_v2(
        model,
        opt="momentum" if plain else train.optimizer,
        lr=train.learning_rate,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
    )


def make_schedule(optimizer: torch.optim.Optimizer, train: Train, updates: int) -> Any:
    """Return the learning rate's schedule, which is stepped after each update.

    After u of n = epochs * updates updates, with w = warmup_epochs * updates, the rate is
    learning_rate * u / w while u < w. Then `constant` is learning_rate, and `cosine` is
    learning_rate / 2 * (1 + cos(pi * (u - w) / (n - w))). `one-cycle` is torch's OneCycleLR with
    its defaults, but the momentum is not cycled.
    """
    if train.schedule == "one-cycle":
        return OneCycleLR(
            optimizer, train.learning_rate, total_steps=train.epochs * updates, cycle_momentum=False
        )
    # Not every version of timm has a constant schedule: a step schedule with factor 1 is the same.
    shape = (
        {"sched": "cosine"} if train.schedule == "cosine" else {"sched": "step", "decay_rate": 1.0}
    )
    schedule, _ = create_scheduler_v2(
        optimizer,
        num_epochs=train.epochs - train.warmup_epochs,
        warmup_epochs=train.warmup_epochs,
        warmup_prefix=True,
        warmup_lr=0.0,
        min_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=updates,
        **shape,
    )
    return schedule


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    smoothing: float,
) -> float:
    """Make one optimizer step on the cross-entropy of a batch, and return it."""
    scores = logits(model, images.to(memory_format=torch.channels_last))
    loss = nn.functional.cross_entropy(scores, labels, label_smoothing=smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


def time_training(model: LoadedModel, train: ParentTrain, device: torch.device) -> float:
    """Return the seconds per image of a training step: the faster of two after a warm-up.

    The step is made by one thread, on zeros, with a copy of the model.
    """
    rows = min(train.batch_size, _TIMED_ROWS)
    images = torch.zeros(rows, *model.input_shape, device=device)
    labels = torch.zeros(rows, dtype=torch.int64, device=device)
    copied = deepcopy(model.model).to(device).to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(copied, train)
    seconds = []
    with reproducible(1, device), _torch_draws(named_stream(0, "time", 1, 0, "torch"), device):
        for _ in range(3):
            began = time.perf_counter()
            # returning the loss waits for a GPU to finish
            update(copied, optimizer, images, labels, train.label_smoothing)
            seconds.append(time.perf_counter() - began)
    return min(seconds[1:]) / rows


@contextmanager
def reproducible(threads: int, device: torch.device) -> Iterator[None]:
    """Make training reproducible: a fixed number of threads, deterministic algorithms on a GPU."""
    cudnn, before = torch.backends.cudnn, torch.get_num_threads()
    flags = cudnn.deterministic, cudnn.benchmark, torch.get_deterministic_debug_mode()
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            if device.type == "cuda":
                cudnn.deterministic, cudnn.benchmark = True, False
                # Operations without such an algorithm warn, as does cuBLAS, which is reproducible
                # on one stream.
                warnings.filterwarnings("ignore", message=".*deterministic")
                torch.set_deterministic_debug_mode("warn")
            yield
    finally:
        torch.set_num_threads(before)
        cudnn.deterministic, cudnn.benchmark = flags[:2]
        torch.set_deterministic_debug_mode(flags[2])


@contextmanager
def _torch_draws(stream: np.random.Generator, device: torch.device) -> Iterator[None]:
    """Seed torch's generators, which dropout draws from, by a stream; restore them afterwards."""
    is_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if is_gpu else []):
        seed = int(stream.integers(2**63))
        torch.default_generator.manual_seed(seed)
        if is_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


_PADDED = 8  # the padding on each side is 1 / 8 of the image's size: 4 pixels of 32


@dataclass(frozen=True)
class Draws:
    """The random augmentation of each row of an epoch, whatever the batches are."""

    mirrored: torch.Tensor  # [rows] bool
    top: torch.Tensor  # [rows] int64, where in the padded image the crop begins
    left: torch.Tensor  # [rows] int64

    def of(self, rows: torch.Tensor) -> Draws:
        """Return the draws of some rows: [batch] int64."""
        return Draws(self.mirrored[rows], self.top[rows], self.left[rows])


def draw(stream: np.random.Generator, rows: int, height: int, width: int) -> Draws:
    """Draw an epoch's augmentation: mirror with probability 1/2, crop uniformly."""
    mirrored = stream.random(rows) < 0.5
    top = stream.integers(0, 2 * (height // _PADDED) + 1, rows)
    left = stream.integers(0, 2 * (width // _PADDED) + 1, rows)
    return Draws(*map(torch.from_numpy, (mirrored, top, left)))


def flip_and_crop(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Pad each image with zeros, which are the mean color, crop it to its size, mirror some.

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
