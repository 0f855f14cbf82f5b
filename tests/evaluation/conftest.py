"""Fixtures: an evaluator, its examples and its encoding."""

import pytest
import torch

from mega_hf.evaluation.forward import ResidentModel, place_examples
from mega_hf.evaluation.racing import RacingEvaluator
from mega_hf.evaluation.row_difficulty import CountCache, RowDifficulty
from mega_hf.runtime.processes import Processes
from mega_hf.weights.encoding import Direct
from mega_hf.weights.space import build_space
from tests.evaluation.stubs import ROWS, Record, make_model


@pytest.fixture
def processes():
    return Processes()


@pytest.fixture
def examples(processes):
    room = place_examples(ROWS, (3, 2, 2), 8, processes.device, 0.5)
    generator = torch.Generator().manual_seed(3)
    room.images[:ROWS] = torch.randn(ROWS, 3, 2, 2, generator=generator)
    room.labels[:ROWS] = torch.randint(0, 3, (ROWS,), generator=generator)
    return room


@pytest.fixture(scope="module")
def encoding():
    states = {str(seed): dict(make_model(seed).state_dict()) for seed in (0, 1)}
    space = build_space(states, list(states["0"]), {})
    return Direct(space, torch.stack([space.pack(state) for state in states.values()]))


@pytest.fixture
def make(processes, examples, encoding):
    """Return a function that makes an evaluator, its record, and the list of progress calls."""

    def build(known=(), full=True, counts=None):
        record, reports = Record(known), []
        forward = ResidentModel(make_model(), processes.device)
        evaluation = RacingEvaluator(
            forward,
            examples,
            encoding,
            processes,
            record,
            lambda *report: reports.append(report),
            RowDifficulty(ROWS),
            counts or CountCache(ROWS),
            8,
            full,
        )
        return evaluation, record, reports

    return build
