"""Compare the memory of a large merge with its bound: `python -m tests.tools.memory FOLDER`.

Two parents with random weights and images of noise are made in FOLDER, and merged. The bound for
`encoding: mixing` is the memory-mapped parents, two models, the activations of one batch (measured
in a process of its own) and 0.2 GB, beyond the memory that is resident after the imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import torch
from PIL import Image

from tests.tools import tiny

_ALLOWANCE = 2e8
_ROWS = {"train": 3}


def prepare(words: argparse.Namespace) -> dict[str, Any]:
    """Write parents and data, and return the recipe."""
    folder = Path(words.folder).absolute()
    rows = _ROWS | {"validation": words.rows, "test": words.rows}
    import timm

    for seed in (1, 2):
        if not (folder / str(seed)).exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                tiny.save_timm(
                    folder / str(seed), timm.create_model(words.arch, num_classes=3).eval()
                )
    if not (folder / "data").exists():
        tiny.write_splits(
            folder / "data",
            {name: _noise(count, seed) for seed, (name, count) in enumerate(rows.items())},
        )
    merge = {
        "population_size": words.individuals,
        "generations": 2,
        "tournament_size": 2,
        "encoding": words.encoding,
    }
    return {
        "name": "memory",
        "data": {"path": str(folder / "data"), "validation": "validation", "test": "test"},
        "parents": {"a": str(folder / "1"), "b": str(folder / "2")},
        "merge": merge,
        "evaluation": {"batch_size": words.batch},
    }


def _noise(count: int, seed: int) -> datasets.Dataset:
    draw = np.random.default_rng(seed)
    images = [
        Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(count)
    ]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(tiny.NAMES))}
    )
    return datasets.Dataset.from_dict(
        {"image": images, "label": [i % 3 for i in range(count)]}, features=features
    )


def measure_merge(recipe: dict[str, Any], out: Path, forward: Any) -> dict[str, int]:
    """Merge in this process; return resident memory after the imports and at its peak, in bytes."""
    import timm  # noqa: F401
    import transformers.models.auto  # noqa: F401

    import mega_hf.report.plots
    import mega_hf.run.pipeline
    from mega_hf import Recipe
    from mega_hf.runtime.environment import relax_gc

    before = psutil.Process().memory_info().rss
    relax_gc()  # as the command does
    mega_hf.run.pipeline.merge(Recipe.from_dict(recipe), out, forward=forward, overwrite=True)
    return {"imports": before, "peak": _peak()}


def measure_batch(recipe: dict[str, Any]) -> dict[str, int]:
    """Run one batch in this process; return the memory of its activations, in bytes."""
    from mega_hf.models.load import open_model

    model = open_model(Path(recipe["parents"]["a"]))
    examples = torch.randn(recipe["evaluation"]["batch_size"], *model.input_shape)
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    with torch.inference_mode():
        model.model(examples)
    return {"activations": _peak() - before}


def _peak() -> int:
    """Return the peak of resident memory, in bytes.

    In a child of a larger process, getrusage would return the parent's peak.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(
        next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    )


def _run_apart(what: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, *sys.argv, "--measure", what], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, and print a table; the exit code is 1 beyond the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--arch", default="vit_base_patch16_224")
    parser.add_argument("--encoding", choices=["mixing", "direct"], default="mixing")
    parser.add_argument("--individuals", type=int, default=20)
    parser.add_argument("--rows", type=int, default=32, help="of validation, and of test")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--forward", choices=["auto", "eager", "compiled"], default="auto")
    parser.add_argument("--measure", choices=["merge", "batch"], help=argparse.SUPPRESS)
    words = parser.parse_args()
    sys.argv[:1] = ["-m", "tests.tools.memory"]
    recipe = prepare(words)
    if words.measure == "merge":
        print(
            json.dumps(measure_merge(recipe, Path(words.folder).absolute() / "run", words.forward))
        )
    elif words.measure == "batch":
        print(json.dumps(measure_batch(recipe)))
    else:
        _show(words, _run_apart("batch") | _run_apart("merge"))


def _show(words: argparse.Namespace, found: dict[str, int]) -> None:
    model = (Path(words.folder) / "1" / "model.safetensors").stat().st_size
    genomes = 0 if words.encoding == "mixing" else model * (2 + words.individuals + 4 + 2)
    examples = 4 * 2 * words.rows * 3 * 224 * 224
    bound = 2 * model + 2 * model + genomes + found["activations"] + int(_ALLOWANCE)
    above = found["peak"] - found["imports"]
    print(
        f"{words.arch}, 2 parents, {words.individuals} individuals, {words.encoding},"
        f" {words.forward}; MB:"
    )
    parts = {
        "resident after the imports": found["imports"],
        "peak, beyond that": above,
        "bound": bound,
        "  parents, mapped": 2 * model,
        "  two models": 2 * model,
        "  genomes": genomes,
        "  a batch's activations": found["activations"],
        "  allowance": int(_ALLOWANCE),
        "images (part of the peak)": examples,
    }
    for name, size in parts.items():
        print(f"{name:36} {size / 1e6:8,.0f}")
    raise SystemExit(above > bound)


if __name__ == "__main__":
    main()
