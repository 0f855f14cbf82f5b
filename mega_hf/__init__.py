"""Merge independently trained models of one architecture into a single better one, by evolution.

    from mega_hf import Recipe, merge

    result = merge(Recipe.from_yaml("recipes/quickstart.yaml"))
    print(result.report)

Names are loaded when they are first used, so that `import mega_hf` needs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mega_hf.benchmark import Benchmark, bench
    from mega_hf.comparison import Comparison, compare
    from mega_hf.errors import (
        DataError,
        HubError,
        LaunchError,
        MegaError,
        ParentError,
        RecipeError,
        RunError,
        VerificationError,
    )
    from mega_hf.measurement import Measurement, evaluate
    from mega_hf.pipeline import merge, merge_only, train
    from mega_hf.publishing import pull, push
    from mega_hf.recipe import Recipe
    from mega_hf.result import MergeResult
    from mega_hf.verdict import Report
    from mega_hf.verification import Verification, verify

__version__: str

_HOME = {
    "Recipe": "recipe",
    "merge": "pipeline",
    "merge_only": "pipeline",
    "train": "pipeline",
    "MergeResult": "result",
    "Report": "verdict",
    "evaluate": "measurement",
    "Measurement": "measurement",
    "compare": "comparison",
    "Comparison": "comparison",
    "MegaError": "errors",
    "RecipeError": "errors",
    "ParentError": "errors",
    "DataError": "errors",
    "RunError": "errors",
    "LaunchError": "errors",
    "HubError": "errors",
    "VerificationError": "errors",
    "verify": "verification",
    "Verification": "verification",
    "bench": "benchmark",
    "Benchmark": "benchmark",
    "push": "publishing",
    "pull": "publishing",
}

__all__ = [
    "Benchmark",
    "Comparison",
    "DataError",
    "HubError",
    "LaunchError",
    "Measurement",
    "MegaError",
    "MergeResult",
    "ParentError",
    "Recipe",
    "RecipeError",
    "Report",
    "RunError",
    "Verification",
    "VerificationError",
    "bench",
    "compare",
    "evaluate",
    "merge",
    "merge_only",
    "pull",
    "push",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("mega_hf")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
