"""Fixtures, and a hermetic environment: no user caches, and no network."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile

# Hugging Face libraries read these when they are imported, so they are set first.
_HOME = tempfile.mkdtemp(prefix="mega-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
_FOREIGN = ("HF_", "HUGGING", "TRANSFORMERS_", "ACCELERATE_", "OMP_", "MEGA_HF_", "TORCHELASTIC")
_LAUNCHED = (
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
)
for _name in list(os.environ):
    if (
        _name.startswith(_FOREIGN) and not _name.startswith("MEGA_HF_SOAK")
    ) or _name.upper() in _LAUNCHED:
        del os.environ[_name]
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A suite in the background of a script ignores Ctrl-C, and its commands would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
CLOSED = "http://127.0.0.1:9"  # no server: a request to the Hub by mistake fails at once
os.environ |= {
    "HF_HOME": _HOME,
    "HF_ENDPOINT": CLOSED,
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MPLCONFIGDIR": f"{_HOME}/matplotlib",
    "NO_PROXY": "127.0.0.1,localhost",
    "GLOO_SOCKET_IFNAME": "lo",
    # For models this small a second thread gains nothing.
    "OMP_NUM_THREADS": "1",
}

from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import pytest  # noqa: E402

from tests.tools import tiny  # noqa: E402
from tests.tools.started import started  # noqa: E402, F401


class Answer(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Reset Accelerate's process-wide state after each test."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(True)
        GradientState._reset_state()


@pytest.fixture
def mega(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run a command in this process: `mega("merge", "recipe.yaml")` returns (code, out, err)."""
    from mega_hf.cli.main import main

    def run(*words: object) -> Answer:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err, err
        return Answer(code, out, err)

    return run


@pytest.fixture
def order_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop early on any processor.

    With AVX-512, predictions of tiny models depend on the position of a row in its batch.
    """
    monkeypatch.setattr("mega_hf.evaluation.forward.ResidentModel.is_order_free", lambda *_: True)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set, read only."""
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def splits(data: Path) -> Any:
    """The splits of the tiny data set, for recipes of tests.tools.trainings."""
    from mega_hf.tasks.splits import load_splits
    from tests.tools import trainings

    return load_splits(trainings.recipe(data).data)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tiny.Pair:
    """Two timm parents on both sides of a trained model with BatchNorm, and their data set."""
    return tiny.make_pair(tmp_path_factory.mktemp("pair"), tiny.timm_model())


@pytest.fixture(scope="session")
def finished(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished merge of that pair, read only."""
    from mega_hf import Recipe, merge

    return merge(Recipe.from_dict(pair.recipe()), tmp_path_factory.mktemp("run") / "pair")


@pytest.fixture
def copied(finished: Any, tmp_path: Path) -> Path:
    """A copy of the finished run folder, for changes."""
    return Path(shutil.copytree(finished.folder, tmp_path / "copied"))


@pytest.fixture(scope="session")
def four(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe, as a dict, that merges four parents in pairs."""
    other = tiny.make_pair(
        tmp_path_factory.mktemp("other"), tiny.timm_model(seed=4), data=pair.data
    )
    parents = {"a": str(pair.a), "b": str(pair.b), "c": str(other.a), "d": str(other.b)}
    return pair.recipe(parents=parents, merges="pairwise")


@pytest.fixture(scope="session")
def treed(four: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished merge of those four, read only."""
    from mega_hf import Recipe, merge

    return merge(Recipe.from_dict(four), tmp_path_factory.mktemp("tree") / "out")


@pytest.fixture
def treed_copy(treed: Any, tmp_path: Path) -> Path:
    """A copy of the run folder of the finished tree, for changes."""
    return Path(shutil.copytree(treed.folder, tmp_path / "copied"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list of the nodes whose individuals were evaluated, one entry per evaluation."""
    from mega_hf.evaluation.racing import RacingEvaluator

    seen: list[str] = []
    evaluate = RacingEvaluator._evaluate

    def spy(self: RacingEvaluator, population: Any, index: int, rows: Any) -> Any:
        seen.append(self.record.node)  # type: ignore[attr-defined]
        return evaluate(self, population, index, rows)

    monkeypatch.setattr(RacingEvaluator, "_evaluate", spy)
    return seen


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Iterator[int]]:
    """Interrupt the evaluation of a given number, from 0; returns the counter of evaluations."""
    from mega_hf.evaluation.racing import RacingEvaluator

    def at(stop: int) -> Iterator[int]:
        evaluate, calls = RacingEvaluator._evaluate, iter(range(1000))

        def interrupted(self: RacingEvaluator, population: Any, index: int, rows: Any) -> Any:
            if next(calls) == stop:
                raise KeyboardInterrupt
            return evaluate(self, population, index, rows)

        monkeypatch.setattr(RacingEvaluator, "_evaluate", interrupted)
        return calls

    return at
