"""Can these models be merged? Structure alone: no data is needed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import torch

from mega_hf.evaluation.interpolation import Line, draw_lines
from mega_hf.models.compatibility import disagreements
from mega_hf.models.load import open_model
from mega_hf.models.references import resolve
from mega_hf.models.timm_models import LoadedModel
from mega_hf.recipe.data import Data
from mega_hf.recipe.paths import absolute
from mega_hf.runtime.untrusted import printable
from mega_hf.weights.space import build_space, digest


@dataclass(frozen=True)
class Pair:
    """Two models: what keeps them from being merged, else how far apart they are."""

    first: str
    second: str
    problems: list[str]
    distance: float | None  # |a - b| / mean of |a| and |b|, over the learned weights
    cosine: float | None
    line: Line | None = None  # between them, where there was a data set


@dataclass(frozen=True)
class Comparison:
    """What models are, and what stands between each two of them; `str` is a table and an answer."""

    models: list[dict[str, Any]]
    pairs: list[Pair]

    @property
    def mergeable(self) -> bool:
        """Whether all of them can be merged with each other."""
        return not any(pair.problems for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return {
            "models": self.models,
            "pairs": [_record(pair) for pair in self.pairs],
            "mergeable": self.mergeable,
        }

    def __str__(self) -> str:
        lines = []
        for model in self.models:
            lines.append(model["model"])
            lines += [f"  {key:<14}{value}" for key, value in model.items() if key != "model"]
        for pair in self.pairs:
            lines.append(f"{pair.first} and {pair.second}")
            lines += [f"  differ in {problem}" for problem in pair.problems]
            if pair.distance is not None:
                lines.append(f"  relative distance {pair.distance:.4f}, cosine {pair.cosine:.4f}")
            if pair.line is not None:
                lines += [
                    f"  accuracy in % on {pair.line.rows:,} rows, from the first to the second",
                    str(pair.line),
                ]
        if not self.mergeable:
            return "\n".join([*lines, "These models can't be merged."])
        is_measured = any(pair.line for pair in self.pairs)
        gives = (
            "What a merge may give is said above"
            if is_measured
            else "What a merge may give, --data measures"
        )
        return "\n".join([*lines, f"These models can be merged: they fit together. {gives}."])


def compare(
    models: list[str],
    data: Data | None = None,
    split: str | None = None,
    sample: int = 1000,
    progress: bool = False,
) -> Comparison:
    """Compare two or more models pair by pair.

    Args:
        models: parents' references.
        data: a data set, for the accuracy along the line between each two.
        split: what of it to measure on: a slice; its validation split by default.
        sample: so many rows of that, drawn at random.
        progress: show bars on standard error.

    Raises:
        ParentError: one of them can't be read.
        DataError: the data set can't be.
    """
    opened = {}
    for reference in models:
        opened[reference] = open_model(resolve(absolute(reference), reference)[0], reference)
    pairs = [_pair(a, b, opened[a], opened[b]) for a, b in combinations(opened, 2)]
    fitting = [pair for pair in pairs if not pair.problems]
    if data is not None and fitting:
        lines = draw_lines(
            [(pair.first, pair.second) for pair in fitting], opened, data, split, sample, progress
        )
        pairs = [replace(pair, line=lines.get((pair.first, pair.second))) for pair in pairs]
    return Comparison([_describe(name, model) for name, model in opened.items()], pairs)


def _record(pair: Pair) -> dict[str, Any]:
    line = pair.line
    told = (
        {
            **asdict(line),
            "advice": line.advice,
            "barriers": {k: line.barrier(k) for k in line.accuracy},
        }
        if line
        else None
    )
    return asdict(pair) | {"line": told}


def _describe(name: str, model: LoadedModel) -> dict[str, Any]:
    weights = sum(p.numel() for p in model.model.parameters())
    shown = (
        ", ".join(model.labels[:12]) + (" ..." if len(model.labels) > 12 else "")
        if model.labels
        else "no names"
    )
    shown = printable(shown)  # a label with an end of line would add lines of its own to the answer
    kinds = sorted({str(dtype).removeprefix("torch.") for dtype in model.dtypes.values()})
    return {
        "model": name,
        "library": model.library,
        "architecture": model.structure.get("architecture"),
        "weights": f"{weights:,}",
        "dtype": ", ".join(kinds),
        "classes": f"{model.num_classes}: {shown}",
        "preprocessing": model.preprocessing,
        "sha256": digest(model.view()),
    }


def _pair(first: str, second: str, a: LoadedModel, b: LoadedModel) -> Pair:
    problems = [f"{what}: {left} / {right}" for what, left, right in disagreements(a, b)]
    if problems:
        return Pair(first, second, problems, None, None)
    space = build_space({first: a.view(), second: b.view()}, a.learned(), a.tied())
    left, right = (space.pack(m.view())[: space.learned_size].double() for m in (a, b))
    scale = (left.norm() + right.norm()) / 2
    cosine = torch.nn.functional.cosine_similarity(left, right, dim=0)
    return Pair(first, second, [], float((left - right).norm() / scale), float(cosine))
