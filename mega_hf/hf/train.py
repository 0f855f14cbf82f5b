"""Parents from scratch, as the paper trains them: on the training rows alone, from a seed, by one process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from mega_hf.errors import DataError
from mega_hf.genetic.seeds import named_stream
from mega_hf.hf.data import Splits
from mega_hf.hf.models import OpenModel, build_timm, describe_timm, timm_structure
from mega_hf.hf.rows import Split, fill_pictures, hash_rows
from mega_hf.hf.save import save_timm
from mega_hf.recipe import Train


def train_keys(train: Train, seeds: dict[str, int], threads: int, splits: Splits) -> dict[str, str]:
    """Return for each name the digest of everything that decides the parent: settings, seed, rows, threads."""
    if splits.train is None or not len(splits.train):
        raise DataError(
            "no rows to train on",
            expected=f"rows of {splits.data.train}",
            got="none beside validation and test",
            remedy="a smaller validation split, or data.train: another split",
        )
    rows = hashlib.sha256(b"".join(hash_rows(splits.train))).hexdigest()
    settings = train.model_dump(mode="json")
    return {
        name: hashlib.sha256(json.dumps([settings, seed, threads, rows]).encode()).hexdigest()
        for name, seed in seeds.items()
    }


def train_parent(
    folder: Path,
    train: Train,
    seed: int,
    threads: int,
    splits: Splits,
    device: torch.device,
    progress: Callable[[int, float], None],
) -> None:
    """Train one parent and write it into an existing folder in timm's layout.

    Args:
        folder: where config.json and model.safetensors go.
        train: architecture, epochs, batch size, optimizer.
        seed: decides the initial weights and the order of the rows.
        threads: how many threads sum; other numbers give other last bits.
        splits: the rows, and the classes' names.
        device: where to train.
        progress: called after each epoch with (epoch, mean loss).
    """
    assert splits.train is not None, "train_keys has refused this"
    model = initial_model(train, seed, splits.classes)
    opened = describe_timm(model, {}, {}, splits.class_names, None)
    images, labels = _tensors(splits.train, opened, splits.classes)
    model.to(device).train()
    optimizer = create_optimizer_v2(
        model, opt=train.optimizer, lr=train.learning_rate, weight_decay=train.weight_decay, momentum=0.9
    )
    with _threads(threads):
        for epoch in range(1, train.epochs + 1):
            order = torch.from_numpy(named_stream(seed, "train", epoch, 0, "order").random(len(images)).argsort())
            progress(epoch, _epoch(model, optimizer, images, labels, order.split(train.batch_size), device))
    save_timm(folder, model.eval().cpu(), model.state_dict(), splits.class_names)


def initial_model(train: Train, seed: int, classes: int) -> nn.Module:
    """Build the architecture with the weights of a seed; torch's own generator is put back as it was."""
    with torch.random.fork_rng(devices=[]):  # constructors know no other source of randomness
        torch.default_generator.manual_seed(seed)
        return build_timm(train.arch, classes, train.arch_args, train.data_config)


def unweighted(train: Train, splits: Splits) -> OpenModel:
    """Return what a trained parent will be, with the weights of seed 0."""
    structure = timm_structure(train.arch, train.arch_args)
    return describe_timm(initial_model(train, 0, splits.classes), structure, {}, splits.class_names, None)


def _tensors(split: Split, opened: OpenModel, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.zeros(len(split), *opened.picture_shape)
    labels = torch.zeros(len(split), dtype=torch.int64)
    fill_pictures(split, list(range(classes)), opened.transform, images, labels)
    return images, labels


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    batches: tuple[torch.Tensor, ...],
    device: torch.device,
) -> float:
    losses = []
    for batch in batches:
        if len(batch) == 1 and len(batches) > 1:
            continue  # BatchNorm has no spread over one row
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(images[batch].to(device)), labels[batch].to(device))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
