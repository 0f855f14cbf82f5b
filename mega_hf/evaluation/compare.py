"""Compare models: whether they can be merged, and how well they interpolate."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import torch

from mega_hf.evaluation.interpolation import Line, evaluate_lines
from mega_hf.models.compatibility import disagreements
from mega_hf.models.load import open_model
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.references import resolve
from mega_hf.recipe.data import Data
from mega_hf.recipe.paths import absolute
from mega_hf.runtime.untrusted import printable
from mega_hf.weights.space import build_space, digest


@dataclass(frozen=True)
class Pair:
    """Two models: why they can't be merged, or else how far apart they are."""

    first: str
    second: str
    problems: list[str]
    distance: float | None  # |a - b| / mean of |a| and |b|, over the learned weights
    cosine: float | None
    line: Line | None = None  # accuracy between the two, where a data set was given


@dataclass(frozen=True)
class Comparison:
    """Descriptions of models and pairs; `str` gives a table and an answer."""

    models: list[dict[str, Any]]
    pairs: list[Pair]

    @property
    def mergeable(self) -> bool:
        """Whether all models can be merged with each other."""
        return not any(pair.problems for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values, for JSON."""
        pairs = []
        for pair in self.pairs:
            entry, line = asdict(pair), pair.line
            if line is not None:
                barriers = {kind: line.barrier(kind) for kind in line.accuracy}
                entry["line"] |= {"advice": line.advice, "barriers": barriers}
            pairs.append(entry)
        return {"models": self.models, "pairs": pairs, "mergeable": self.mergeable}

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
                lines.append(f"  accuracy in % on {pair.line.rows:,} rows, from first to second")
                lines.append(str(pair.line))
        if not self.mergeable:
            return "\n".join([*lines, "These models can't be merged."])
        answer = "These models can be merged."
        if not any(pair.line for pair in self.pairs):
            answer += " Use --data to evaluate mixtures of them."
        return "\n".join([*lines, answer])


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
        data: a data set, to evaluate accuracy along the line between the models of each pair.
        split: the split to evaluate on (a `datasets` slice); the validation split by default.
        sample: the largest number of rows to draw from it.
        progress: show bars on standard error.

    Raises:
        ParentError: a model can't be read.
        DataError: the data set can't be read.
    """
    loaded = {}
    for reference in models:
        loaded[reference] = open_model(resolve(absolute(reference), reference)[0], reference)
    pairs = [_compare_pair(a, b, loaded[a], loaded[b]) for a, b in combinations(loaded, 2)]
    mergeable = [(pair.first, pair.second) for pair in pairs if not pair.problems]
    if data is not None and mergeable:
        lines = evaluate_lines(mergeable, loaded, data, split, sample, progress)
        pairs = [replace(pair, line=lines.get((pair.first, pair.second))) for pair in pairs]
    return Comparison([_describe(name, model) for name, model in loaded.items()], pairs)


def _describe(name: str, model: LoadedModel) -> dict[str, Any]:
    weights = sum(p.numel() for p in model.model.parameters())
    shown = "no names"
    if model.labels:
        shown = ", ".join(model.labels[:12]) + (" ..." if len(model.labels) > 12 else "")
        shown = printable(shown)  # a label may hold line breaks
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


def _compare_pair(first: str, second: str, a: LoadedModel, b: LoadedModel) -> Pair:
    problems = [f"{what}: {left} / {right}" for what, left, right in disagreements(a, b)]
    if problems:
        return Pair(first, second, problems, None, None)
    space = build_space({first: a.view(), second: b.view()}, a.learned(), a.tied())
    left, right = (space.pack(m.view())[: space.learned_size].double() for m in (a, b))
    scale = (left.norm() + right.norm()) / 2
    cosine = torch.nn.functional.cosine_similarity(left, right, dim=0)
    return Pair(first, second, [], float((left - right).norm() / scale), float(cosine))
