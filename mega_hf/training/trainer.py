"""The training of one parent, epoch by epoch: the same bytes from the same seed, stopped after any
epoch or not."""

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
from mega_hf.models.timm_models import LoadedModel
from mega_hf.recipe.parents import ParentTrain, Train
from mega_hf.runtime.seeds import named_stream
from mega_hf.tasks.rows import Split, load_examples

_TIMED_ROWS = 32


class TrainingRows:
    """Rows as a model takes them: held ready where memory allows it, else decoded again for each
    batch.

    Args:
        split: the rows.
        model: whose transform is applied.
        mapping: for each class of the data set the model's output.
        limit: bytes that the pictures may need in memory.
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
        """Return some rows' pictures: [batch] int64 -> [batch, channels, height, width] float32."""
        if self.is_held:
            return self._held[rows]
        # torch.stack would keep strides that a transform left
        images = torch.empty(len(rows), *self.shape)
        for image, row in zip(images, rows.tolist(), strict=True):
            image.copy_(self._transform(self._split.example(row)))
        return images


def affordable_bytes(processes: int) -> int:
    """Return how much one of some processes may hold: half of the memory that is free, shared among
    them."""
    return psutil.virtual_memory().available // 2 // processes


class Fit:
    """One training under way, some epochs done.

    Args:
        name: the parent's name, for errors.
        model: [rows, channels, height, width] to logits, or to a record of them; it is trained in
            place.
        train: how.
        rows: what it is trained on.
        device: where.
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
        self.losses: list[float] = []  # the mean of each epoch done

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.losses)

    def run_epoch(self, advance: Callable[[int, str], None]) -> None:
        """Train one epoch; `advance` is called after each batch with 1 and a text.

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
        self._refuse_divergence(epoch, total / self.updates)
        self.losses.append(total / self.updates)

    def state(self) -> bytes:
        """Return everything that the next epoch depends on, as `torch.save` writes it."""
        buffer = io.BytesIO()
        parts = {"model": self._model, "optimizer": self._optimizer, "schedule": self._schedule}
        torch.save(
            {name: part.state_dict() for name, part in parts.items()} | {"losses": self.losses},
            buffer,
        )
        return buffer.getvalue()

    def resume(self, content: bytes) -> None:
        """Go on from what `state` returned.

        Raises:
            RuntimeError, ValueError, KeyError, UnpicklingError: another version of a library wrote
                it.
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

    def _refuse_divergence(self, epoch: int, loss: float) -> None:
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
                hint="a smaller learning_rate",
            )


def updates_per_epoch(rows: int, batch_size: int) -> int:
    """Return how many batches an epoch has; a last one of one row is left out, since it has no
    spread."""
    return max(1, rows // batch_size + (rows % batch_size > 1))


def make_optimizer(model: nn.Module, train: Train) -> torch.optim.Optimizer:
    """Return timm's optimizer of that name; its `sgd` has Nesterov's momentum, which there is none
    of without any."""
    plain = train.optimizer == "sgd" and train.momentum == 0
    return create_optimizer_v2(
        model,
        opt="momentum" if plain else train.optimizer,
        lr=train.learning_rate,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
    )


def make_schedule(optimizer: torch.optim.Optimizer, train: Train, updates: int) -> Any:
    """Return the learning rate's schedule, stepped after each update; u is how many were done, n =
    epochs * updates.

    With w = warmup_epochs * updates, the rate is learning_rate * u / w while u < w. Then it is
    learning_rate where `constant`, and learning_rate / 2 * (1 + cos(pi * (u - w) / (n - w))) where
    `cosine`. `one-cycle` is torch's with its defaults, except that the momentum stays what the
    recipe says.
    """
    if train.schedule == "one-cycle":
        return OneCycleLR(
            optimizer, train.learning_rate, total_steps=train.epochs * updates, cycle_momentum=False
        )
    # Not every timm has a schedule named constant: one that multiplies by 1 is the same.
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
    """Make one step down the cross entropy of a batch and return it; a transformers model gives a
    record."""
    output = model(images.to(memory_format=torch.channels_last))
    loss = nn.functional.cross_entropy(
        getattr(output, "logits", output), labels, label_smoothing=smoothing
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


def time_training(model: LoadedModel, train: ParentTrain, device: torch.device) -> float:
    """Return seconds a picture of one training step: the faster of two after a warm-up, on zeros,
    by one thread.

    The model is left as it is.
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
            # its loss waits for a GPU to finish
            update(copied, optimizer, images, labels, train.label_smoothing)
            seconds.append(time.perf_counter() - began)
    return min(seconds[1:]) / rows


@contextmanager
def reproducible(threads: int, device: torch.device) -> Iterator[None]:
    """Make sums come out the same: so many threads, and on a GPU no algorithm that adds in the
    order of arrival."""
    cudnn, before = torch.backends.cudnn, torch.get_num_threads()
    flags = cudnn.deterministic, cudnn.benchmark, torch.get_deterministic_debug_mode()
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            if device.type == "cuda":
                cudnn.deterministic, cudnn.benchmark = True, False
                # What has no such algorithm warns, as does cuBLAS, which is reproducible on one
                # stream.
                warnings.filterwarnings("ignore", message=".*deterministic")
                torch.set_deterministic_debug_mode("warn")
            yield
    finally:
        torch.set_num_threads(before)
        cudnn.deterministic, cudnn.benchmark = flags[:2]
        torch.set_deterministic_debug_mode(flags[2])


@contextmanager
def _torch_draws(stream: np.random.Generator, device: torch.device) -> Iterator[None]:
    """Let torch's generators, which dropout draws from, start where a stream says; put them back
    afterwards."""
    is_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if is_gpu else []):
        seed = int(stream.integers(2**63))
        torch.default_generator.manual_seed(seed)
        if is_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


_PADDED = 8  # the padding on each side is this part of the picture's size: 4 pixels of 32


@dataclass(frozen=True)
class Draws:
    """What is drawn for each picture of an epoch; row i has the same draws whatever the batches
    are."""

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
