"""The training loop: learning rates, optimizers and losses against formulas, rows held or decoded
again."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mega_hf.recipe.parents import ParentTrain
from mega_hf.runtime.seeds import named_stream
from mega_hf.tasks.splits import Splits
from mega_hf.training import trainer as fitting
from mega_hf.training.plan import check_training, open_start
from mega_hf.training.trainer import (
    Fit,
    TrainingRows,
    make_optimizer,
    make_schedule,
    time_training,
    updates_per_epoch,
)
from tests.tools import tiny, trainings

CPU = torch.device("cpu")


def settings(**changes: Any) -> ParentTrain:
    return ParentTrain.model_validate(
        {"arch": "cifar_resnet8", "seed": 1, "learning_rate": 0.1} | changes
    )


def rates(updates: int, train: ParentTrain) -> list[float]:
    """Return the learning rate of every update of a training."""
    optimizer = make_optimizer(nn.Linear(2, 2), train)
    schedule = make_schedule(optimizer, train, updates)
    used = []
    for done in range(1, train.epochs * updates + 1):
        used += [group["lr"] for group in optimizer.param_groups[:1]]
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        optimizer.step()
        if train.schedule == "one-cycle":
            schedule.step()
        else:
            schedule.step_update(done)
    return used


# --- Learning rates


@pytest.mark.parametrize("rate", [0.1, 0.003, 1 / 3])
def test_constant_without_warm_up_is_the_learning_rate_itself(rate: float) -> None:
    assert set(rates(7, settings(epochs=100, learning_rate=rate))) == {rate}


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_cosine_and_constant_against_their_formulas(optimizer: str, warmup: int) -> None:
    n, w = 5 * 4, warmup * 4
    rise = [0.1 * u / w for u in range(w)]
    flat = rise + [0.1] * (n - w)
    fall = rise + [0.05 * (1 + math.cos(math.pi * (u - w) / (n - w))) for u in range(w, n)]
    changes = {"epochs": 5, "warmup_epochs": warmup, "optimizer": optimizer, "weight_decay": 0.1}
    assert rates(4, settings(schedule="constant", **changes)) == pytest.approx(flat, rel=1e-12)
    assert rates(4, settings(schedule="cosine", **changes)) == pytest.approx(fall, rel=1e-12)


def test_one_cycle_against_its_formula() -> None:
    """From rate / 25 up to the rate in the first 30 % of the updates, then down to rate / 250 000;
    both by cosines."""
    n, top = 20, 0.3 * 20 - 1

    def between(start: float, end: float, part: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * part))

    expected = [
        (
            between(0.1 / 25, 0.1, u / top)
            if u <= top
            else between(0.1, 0.1 / 250_000, (u - top) / (n - 1 - top))
        )
        for u in range(n)
    ]
    assert rates(4, settings(schedule="one-cycle", epochs=5)) == pytest.approx(expected, rel=1e-9)
    assert max(rates(4, settings(schedule="one-cycle", epochs=5))) == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_one_update_is_possible(schedule: str) -> None:
    assert len(rates(1, settings(schedule=schedule, epochs=1))) == 1


# --- Optimizers and losses


def test_the_optimizers_are_those_named() -> None:
    model = nn.Linear(2, 2)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    for name, kind in kinds.items():
        optimizer = make_optimizer(model, settings(optimizer=name, weight_decay=0.2))
        assert type(optimizer) is kind
        decays = {
            tuple(p.shape): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]
        }
        assert decays == {(2, 2): 0.2, (2,): 0.0}, "biases are not decayed"
    nesterov = make_optimizer(model, settings(optimizer="sgd", momentum=0.8)).param_groups[0]
    assert (nesterov["momentum"], nesterov["nesterov"]) == (0.8, True)
    plain = make_optimizer(model, settings(optimizer="sgd", momentum=0.0)).param_groups[0]
    assert (plain["momentum"], plain["nesterov"]) == (0.0, False)


def test_one_cycle_leaves_the_momentum_alone() -> None:
    train = settings(optimizer="sgd", momentum=0.8, schedule="one-cycle", epochs=2)
    optimizer = make_optimizer(nn.Linear(2, 2), train)
    schedule = make_schedule(optimizer, train, 3)
    for _ in range(6):
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[0]["momentum"] == 0.8


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("as_record", [False, True])
def test_the_loss_against_its_formula(smoothing: float, as_record: bool) -> None:
    """The target has 1 - s on its class, and s spread evenly over all of them."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    images = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 5
    logits = model(images).detach().double()
    chances = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    target = torch.full((6, 5), smoothing / 5, dtype=torch.float64)
    target[torch.arange(6), labels] += 1 - smoothing
    expected = -(target * chances.log()).sum(dim=1).mean().item()
    called = (lambda x: SimpleNamespace(logits=model(x))) if as_record else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model[1].weight.detach().clone()
    assert fitting.update(called, optimizer, images, labels, smoothing) == pytest.approx(
        expected, rel=1e-5
    )
    assert not torch.equal(before, model[1].weight)


def test_a_last_batch_of_one_row_is_left_out() -> None:
    assert [updates_per_epoch(n, 30) for n in (1, 29, 30, 31, 32, 60, 61, 62)] == [
        1,
        1,
        1,
        1,
        2,
        2,
        2,
        3,
    ]
    assert [updates_per_epoch(n, 1) for n in (1, 2, 5)] == [1, 2, 5]


# --- Rows, and the whole loop


def begin(data: Path, splits: Splits, tmp_path: Path, limit: int = 2**30, **changes: Any) -> Fit:
    made = trainings.recipe(data, **changes)
    start = open_start(made, "a", tmp_path, splits)
    assert splits.train is not None
    rows = TrainingRows(splits.train, start.opened, start.mapping, limit)
    return Fit("a", start.opened.model, made.trained["a"].train, rows, CPU)


def test_rows_held_and_rows_decoded_again_are_the_same(
    data: Path, splits: Splits, tmp_path: Path
) -> None:
    needed = 120 * 3 * 8 * 8 * 4
    assert splits.train is not None
    model = check_training(trainings.recipe(data), ["a"], splits)["a"]
    held, again = (
        TrainingRows(splits.train, model, [0, 1, 2], limit) for limit in (needed, needed - 1)
    )
    assert (held.is_held, again.is_held) == (True, False)
    some = torch.tensor([3, 119, 0, 3])
    assert torch.equal(held.examples(some), again.examples(some))
    assert held.examples(some).stride() == again.examples(some).stride()
    assert held.labels.tolist() == again.labels.tolist()
    images, labels = tiny.as_tensors(120, 1)
    torch.testing.assert_close(held.examples(some), images[some])
    assert held.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd", "augmentation": "flip-and-crop"}])
def test_the_memory_changes_no_byte(
    changes: dict[str, Any], data: Path, splits: Splits, tmp_path: Path
) -> None:
    fits = [begin(data, splits, tmp_path, limit, **changes) for limit in (2**30, 0)]
    for fit in fits:
        fit.run_epoch(lambda *_: None)
    assert fits[0].losses == fits[1].losses
    assert fits[0].state() == fits[1].state()


def test_half_of_the_free_memory_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting.psutil, "virtual_memory", lambda: SimpleNamespace(available=1200))
    assert [fitting.affordable_bytes(n) for n in (1, 2, 5)] == [600, 300, 120]


def test_an_epoch_against_a_loop_of_its_own(data: Path, splits: Splits, tmp_path: Path) -> None:
    """Two epochs of Adam in plain torch, the rows in the order that the seed's streams give."""
    fit = begin(data, splits, tmp_path)
    model = open_start(trainings.recipe(data), "a", tmp_path, splits).opened.model.train()
    images, labels = tiny.as_tensors(120, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for epoch in (1, 2):
        losses = []
        order = np.argsort(named_stream(1, "train", epoch, 0, "order").random(120))
        for rows in order.reshape(4, 30):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        fit.run_epoch(lambda *_: None)
        assert fit.losses[-1] == pytest.approx(np.mean(losses), rel=1e-3)
    assert fit.epoch == 2


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_every_update_has_its_learning_rate(
    schedule: str, data: Path, splits: Splits, tmp_path, monkeypatch
) -> None:
    used: list[float] = []
    monkeypatch.setattr(
        fitting,
        "update",
        lambda m, optimizer, *_: used.append(optimizer.param_groups[0]["lr"]) or 0.0,
    )
    changes = {"schedule": schedule, "epochs": 3, "warmup_epochs": int(schedule == "cosine")}
    fit = begin(data, splits, tmp_path, **changes)
    # nothing calls the optimizer
    with pytest.warns(UserWarning) if schedule == "one-cycle" else nullcontext():
        for _ in range(3):
            fit.run_epoch(lambda *_: None)
    assert used == rates(4, settings(learning_rate=0.003, **changes))


def test_dropout_is_drawn_by_name(data: Path, splits: Splits, tmp_path: Path) -> None:
    """Whatever was drawn before, and without a trace in torch's own generator."""
    losses = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        fit = begin(data, splits, tmp_path, epochs=1, **trainings.DROPPING)
        fit.run_epoch(lambda *_: None)
        assert torch.equal(torch.get_rng_state(), before)
        losses += fit.losses
    without = begin(data, splits, tmp_path, epochs=1, arch="test_resnet")
    without.run_epoch(lambda *_: None)
    assert losses[0] == losses[1] != without.losses[0]


def test_augmented_epochs_differ(data: Path, splits: Splits, tmp_path: Path) -> None:
    plain, augmented = (
        begin(data, splits, tmp_path, augmentation=kind) for kind in ("none", "flip-and-crop")
    )
    for fit in (plain, augmented):
        fit.run_epoch(lambda *_: None)
    assert plain.losses != augmented.losses


def test_a_step_is_timed_and_nothing_is_changed(data: Path, splits: Splits) -> None:
    made = trainings.recipe(data, **trainings.DROPPING)
    model = check_training(made, ["a"], splits)["a"]
    before, draws, threads = model.state(), torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seconds = time_training(model, made.trained["a"].train, CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert 0 < seconds < 10
    assert torch.equal(torch.get_rng_state(), draws)
    assert not model.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state().items())
