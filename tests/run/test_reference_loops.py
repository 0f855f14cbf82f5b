"""Bare loops run in a process of their own, which ends with what asked for them."""

import sys

import psutil
import pytest
import torch

from mega_hf import RunError
from mega_hf.evaluation.forward import ResidentModel, place_examples
from mega_hf.run.reference_loops import LoopProcess, _write
from tests.tools import tiny

CPU = torch.device("cpu")


@pytest.fixture
def forward(pair: tiny.Pair) -> ResidentModel:
    from mega_hf.models.load import open_model

    return ResidentModel(open_model(pair.a).model, CPU)


def _pictures(forward, rows):
    return place_examples(rows, (3, 32, 32), 10, CPU, 0.5)


@pytest.mark.parametrize(("name", "shown"), [("eager", 30), ("naive", 35)])
def test_a_loop_shows_whole_batches_or_every_picture(forward, name, shown):
    with LoopProcess(name, forward, _pictures(forward, 60), 35) as bare:
        assert bare.shown == shown
        assert bare.run() > 0
        assert bare.run() > 0
        child = psutil.Process(bare._process.pid)
        assert child.is_running()
    assert not child.is_running()


def test_a_few_pictures_of_many_are_sent_without_the_others(forward, tmp_path):
    _write(tmp_path / "some", forward, _pictures(forward, 5000), 10)
    _write(tmp_path / "all", forward, _pictures(forward, 10), 10)
    assert (tmp_path / "some").stat().st_size < 1.1 * (tmp_path / "all").stat().st_size


def test_fewer_pictures_than_a_batch(forward):
    with LoopProcess("eager", forward, _pictures(forward, 7), 35) as bare:
        assert bare.shown == 7


def test_a_process_that_ends_is_said(forward, monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(RunError, match=r"bare loop ended[\s\S]*exit code 3[\s\S]*memory"):
        LoopProcess("eager", forward, _pictures(forward, 7), 35)


def test_a_process_that_is_killed_later_is_said(forward):
    with LoopProcess("eager", forward, _pictures(forward, 20), 35) as bare:
        bare._process.kill()
        with pytest.raises(RunError, match="exit code -9"):
            bare.run()
