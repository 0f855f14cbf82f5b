"""The reference loops of a benchmark run in a process of their own."""

import sys

import pytest
import torch

from mega_hf import RunError
from mega_hf.evaluation.forward import ResidentModel, place_examples
from mega_hf.run.reference_loops import REPEATS, _write_work, time_loops
from tests.tools import tiny

CPU = torch.device("cpu")


@pytest.fixture
def forward(pair: tiny.Pair) -> ResidentModel:
    from mega_hf.models.load import open_model

    return ResidentModel(open_model(pair.a).model, CPU)


def _pictures(forward, rows):
    return place_examples(rows, (3, 32, 32), 10, CPU, 0.5)


def test_the_eager_loop_forwards_whole_batches_and_the_naive_one_every_image(forward):
    timings = time_loops(forward, _pictures(forward, 35))
    assert {name: timing.images for name, timing in timings.items()} == {
        "eager": 30 * REPEATS,
        "naive": 35 * REPEATS,
    }
    assert all(timing.seconds > 0 for timing in timings.values())


def test_a_few_images_of_many_are_sent_without_the_others(forward, tmp_path):
    _write_work(tmp_path / "some", forward, _pictures(forward, 5000), 10)
    _write_work(tmp_path / "all", forward, _pictures(forward, 10), 10)
    assert (tmp_path / "some").stat().st_size < 1.1 * (tmp_path / "all").stat().st_size


def test_fewer_images_than_a_batch(forward):
    assert time_loops(forward, _pictures(forward, 7))["eager"].images == 7 * REPEATS


def test_a_process_that_fails_is_an_error(forward, monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(RunError, match=r"reference loops failed[\s\S]*exit code 3[\s\S]*memory"):
        time_loops(forward, _pictures(forward, 7))
