"""Evaluate one model on one split."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mega_hf.errors import RunError
from mega_hf.evaluation.batch_size import even_batches
from mega_hf.evaluation.forward import PLAIN, ResidentModel, place_examples
from mega_hf.evaluation.statistics import wilson_interval
from mega_hf.models.load import open_model, try_model
from mega_hf.models.references import resolve
from mega_hf.recipe.data import Data
from mega_hf.recipe.paths import absolute, is_local
from mega_hf.runtime.environment import keep_freed_memory
from mega_hf.runtime.processes import Processes
from mega_hf.tasks.image_classification import match_classes
from mega_hf.tasks.rows import load_examples
from mega_hf.tasks.splits import load_split


@dataclass(frozen=True)
class Measurement:
    """Correct predictions of a model on a split; `str` gives one sentence."""

    model: str
    split: str
    correct: int
    n: int
    seconds: float
    matched: str  # how classes were matched: by name, or by position and why

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy."""
        return wilson_interval(self.correct, self.n)

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as plain values, with accuracy and interval."""
        return asdict(self) | {"accuracy": self.correct / self.n, "interval": list(self.interval)}

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.model} on {self.split}: {100 * self.correct / self.n:.2f} % ({self.correct} of"
            f" {self.n} correct; 95 % interval {100 * low:.2f} to {100 * high:.2f}), classes"
            f" matched {self.matched}, {self.seconds:.1f} s"
        )


@keep_freed_memory()
def evaluate(model: str, data: Data, split: str, batch_size: int = 128) -> Measurement:
    """Evaluate a model as its user would run it.

    The model is loaded by its own library and runs in float32, in plain eager mode.

    Args:
        model: a model reference, or a run folder, whose merged model is evaluated.
        data: the data set and its columns.
        split: a `datasets` slice.
        batch_size: the largest number of examples in a forward pass.

    Raises:
        MegaError: the model, the data or the split can't be read, or the model lacks a class.
    """
    reference = absolute(model)
    if is_local(model) and (Path(reference) / "recipe.yaml").exists():
        reference = str(_merged_model(Path(reference)))
    loaded = open_model(resolve(reference, model)[0], model)
    try_model(loaded, model)
    rows, names, classes = load_split(data, split)
    mapping, matched = match_classes(loaded.labels, loaded.num_classes, names, classes)
    device, size = Processes().device, even_batches(len(rows), batch_size)
    examples = place_examples(len(rows), loaded.input_shape, size, device, 0.5)
    load_examples(rows, mapping, loaded.transform, examples.images, examples.labels)
    began = time.perf_counter()
    correct = int(ResidentModel(loaded.model, device, PLAIN).predict(examples).correct.sum())
    return Measurement(model, split, correct, len(rows), time.perf_counter() - began, matched)


def _merged_model(run: Path) -> Path:
    """Return the folder of a run's merged model; raise RunError if not finished."""
    if not (run / "result.json").is_file():
        raise RunError(
            "no finished run",
            where=str(run),
            expected="result.json",
            got="no such file",
            hint="run the same mega-hf merge command again to resume it",
        )
    return run / "merged"
