"""Merge trained models of one architecture into a single model, by evolution.

    from mega_hf import Recipe, merge

    result = merge(Recipe.from_yaml("recipes/quickstart.yaml"))
    print(result.report)

Names are imported when they are first used: `import mega_hf` loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from mega_hf.evaluation.compare import Comparison, compare
    from mega_hf.evaluation.evaluate import Measurement, evaluate
    from mega_hf.hub.pull import pull
    from mega_hf.hub.push import push
    from mega_hf.recipe.schema import Recipe
    from mega_hf.report.result import MergeResult
    from mega_hf.report.table import Report
    from mega_hf.run.benchmark import Benchmark, bench
    from mega_hf.run.pipeline import merge, merge_only, train
    from mega_hf.verification.verify import Verification, verify

__version__: str

_MODULES = {
    "Recipe": "recipe.schema",
    "merge": "run.pipeline",
    "merge_only": "run.pipeline",
    "train": "run.pipeline",
    "MergeResult": "report.result",
    "Report": "report.table",
    "evaluate": "evaluation.evaluate",
    "Measurement": "evaluation.evaluate",
    "compare": "evaluation.compare",
    "Comparison": "evaluation.compare",
    "MegaError": "errors",
    "RecipeError": "errors",
    "ParentError": "errors",
    "DataError": "errors",
    "RunError": "errors",
    "LaunchError": "errors",
    "HubError": "errors",
    "VerificationError": "errors",
    "verify": "verification.verify",
    "Verification": "verification.verify",
    "bench": "run.benchmark",
    "Benchmark": "run.benchmark",
    "push": "hub.push",
    "pull": "hub.pull",
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
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
