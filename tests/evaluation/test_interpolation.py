"""The line between two models, and the advice on merging them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm

from mega_hf import compare
from mega_hf.evaluation.interpolation import BOTH, PLAIN, RECALIBRATED, Line
from mega_hf.recipe.data import Data
from mega_hf.weights.symmetry import find_symmetry
from tests.tools import tiny
from tests.weights.permuted import shuffle


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, Path]:
    """A trained model, another one near it, and the latter with shuffled channels."""
    folder = tmp_path_factory.mktemp("line")
    pair = tiny.make_pair(folder / "near", tiny.timm_model(), strength=0.3, data=data)
    model = timm.create_model(f"local-dir:{pair.b}", pretrained=True).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(shuffle(state, find_symmetry(model, (3, 8, 8), "b").groups)[0])
    return {"a": pair.a, "b": pair.b, "scattered": tiny.save_timm(folder / "scattered", model)}


def test_the_ends_of_the_line_are_the_models_accuracies(
    models: dict[str, Path], data: Path
) -> None:
    (pair,) = compare(
        [str(models["a"]), str(models["b"])], Data(path=str(data)), "validation"
    ).pairs
    line = pair.line
    assert line is not None and line.rows == 60 and not line.skipped
    for point, name in ((0, "a"), (10, "b")):
        model = timm.create_model(f"local-dir:{models[name]}", pretrained=True).eval()
        assert abs(line.accuracy[PLAIN][point] - 100 * tiny.count(model, "validation") / 60) < 2
        recalibrated = 100 * tiny.count(tiny.recalibrate(model), "validation") / 60
        assert abs(line.accuracy[RECALIBRATED][point] - recalibrated) < 2
    assert all(len(found) == 11 for found in line.accuracy.values())


def test_models_that_differ_by_the_order_of_channels_need_alignment(
    models: dict[str, Path], data: Path, mega: Any
) -> None:
    words = (models["a"], models["scattered"], "--data", data, "--split", "validation")
    answer = mega("compare", *words, "--quiet", "--json")
    assert answer.code == 0, answer.err
    (pair,) = json.loads(answer.out)["pairs"]
    barriers = pair["line"]["barriers"]
    assert barriers[BOTH] + 5 < min(barriers[PLAIN], barriers[RECALIBRATED])
    shown = mega("compare", *words, "--quiet").out
    assert pair["line"]["advice"] in shown and "aligned and recalibrated" in shown
    assert (
        len(next(line for line in shown.splitlines() if line.startswith("  plain")).split()) == 12
    )


def test_a_sample_is_reproducible_and_disjoint_from_the_calibration_rows(
    models: dict[str, Path], data: Path
) -> None:
    from mega_hf.tasks.splits import load_sample

    rows, calibration, _, classes = load_sample(Data(path=str(data)), "train", 40)
    again = load_sample(Data(path=str(data)), "train", 40)[0]
    assert calibration is not None and classes == 3
    assert rows.indices.tolist() == again.indices.tolist() and len(rows) == 40
    assert len(calibration) == 80 and not set(rows.indices) & set(calibration.indices)


def test_a_line_without_calibration_rows_says_what_was_skipped(
    models: dict[str, Path], tmp_path: Path
) -> None:
    data = tiny.write_splits(tmp_path / "data", {"validation": tiny.split(60, 2)})
    (pair,) = compare(
        [str(models["a"]), str(models["b"])], Data(path=str(data)), "validation"
    ).pairs
    assert pair.line is not None
    assert "not recalibrated" in pair.line.skipped and set(pair.line.accuracy) == {
        "plain",
        "aligned",
    }
    assert pair.line.skipped in str(pair.line)


def test_a_model_without_batchnorm_has_two_kinds_of_lines(tmp_path: Path, data: Path) -> None:
    pair = tiny.make_pair(
        tmp_path, tiny.timm_model("test_vit", img_size=8, patch_size=4), strength=0.2, data=data
    )
    line = compare([str(pair.a), str(pair.b)], Data(path=str(data)), "validation").pairs[0].line
    assert line is not None and set(line.accuracy) == {"plain", "aligned"}


def _line(**middles: float) -> Line:
    kinds = {
        kind.replace("_", " "): [80.0] * 5 + [middle] + [80.0] * 5
        for kind, middle in middles.items()
    }
    return Line(1000, kinds, "")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (_line(plain=79.0), "The models interpolate well"),
        (
            _line(plain=10.0, recalibrated=79.5, aligned=10.0),
            "With merge.batchnorm: recalibrate the models interpolate well",
        ),
        (
            _line(plain=10.0, recalibrated=15.0, aligned=10.0, aligned_and_recalibrated=61.0),
            "Use merge.align: activations and merge.batchnorm: recalibrate",
        ),
        (_line(plain=10.0, aligned=75.0), "Use merge.align: activations ("),
        (_line(plain=10.0, recalibrated=15.0, aligned=11.0), "The models can't be averaged"),
    ],
)
def test_advice(line: Line, said: str) -> None:
    assert line.advice.startswith(said)


def test_a_barrier_is_below_the_straight_line_between_the_ends() -> None:
    line = Line(10, {"plain": [80.0, *[70.0] * 9, 60.0]}, "")
    assert line.barrier("plain") == pytest.approx(8.0)
    assert Line(10, {"plain": [60.0, *[90.0] * 9, 60.0]}, "").barrier("plain") == 0.0


@pytest.mark.parametrize(
    "words", [("--data", "./none"), ("--sample", "0", "--data", "x"), ("--split", "nowhere")]
)
def test_bad_input(
    words: tuple[str, ...], models: dict[str, Path], data: Path, mega: Any, capsys: Any
) -> None:
    where = () if "--data" in words else ("--data", data)
    try:
        answer = mega("compare", models["a"], models["b"], *where, *words, "--quiet")
    except SystemExit as ended:
        assert ended.code == 2
    else:
        assert answer.code == 2 and "expected" in answer.err
