"""The report, made once after the search: the test split is read here and nowhere else."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mega_hf.baselines import BASELINES
from mega_hf.errors import RunError
from mega_hf.evaluation.forward import Forward, Pictures
from mega_hf.evaluation.processes import Processes
from mega_hf.genetic.evolve import Outcome
from mega_hf.hf.card import render_card
from mega_hf.hf.data import Splits
from mega_hf.hf.models import OpenModel, open_model, open_weights
from mega_hf.hf.parents import Parent
from mega_hf.hf.rows import Split
from mega_hf.hf.save import save_model
from mega_hf.journal import Journal
from mega_hf.plots import plot_fitness
from mega_hf.recipe import Recipe, WeightsParent
from mega_hf.result import NAME, VERSION, MergeResult
from mega_hf.run_folder import RunFolder, merged_digest, remove, write_folder, write_whole
from mega_hf.statistics import mcnemar
from mega_hf.weights.space import WeightSpace

_TOLERANCE = 1 / 1000  # of the rows: how far plain eager mode may count from the search's own forward path
_LIBRARIES = ("mega_hf", "torch", "timm", "transformers", "datasets", "accelerate", "huggingface_hub", "numpy")


@dataclass(frozen=True)
class Finding:
    """What the search leaves to the report."""

    recipe: Recipe
    parents: list[Parent]
    model: OpenModel  # the first parent's, whose layout the merged model has
    splits: Splits
    space: WeightSpace
    vectors: torch.Tensor  # [parents, size]
    outcome: Outcome
    journal: Journal
    load: Callable[[Split], Pictures]
    validation: Pictures
    matched: str
    notices: list[str]


@dataclass(frozen=True)
class _Candidate:
    name: str
    role: str
    open: Callable[[], OpenModel]


def header(
    recipe: Recipe, parents: list[Parent], splits: Splits, device_kind: str, forward_path: str, batch_size: int
) -> dict[str, Any]:
    """Return the journal's header: all that decides the numbers below it."""
    return {
        "recipe": recipe.sha256,
        "parents": {p.name: p.sha256 for p in parents},
        "data": splits.digests,
        "device_kind": device_kind,
        "forward_path": forward_path,
        "batch_size": batch_size,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the releases of Python and of the libraries that numbers may depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}


def write_report(
    finding: Finding, folder: RunFolder, processes: Processes, seconds: dict[str, float], forward_path: str
) -> MergeResult:
    """Measure parents, baselines and the merged model from their folders, and write result, card and plot.

    Raises:
        RunError: the saved model counts otherwise than the search did.
    """
    began = time.perf_counter()
    scratch = folder.path / ".mega-baselines"
    if processes.is_main:
        _save_baselines(finding, scratch)
    processes.wait()
    candidates = _candidates(finding, folder, scratch)
    test = finding.load(finding.splits.test)
    right = _measure(candidates, finding.validation, test, processes)
    processes.wait()
    if processes.is_main:
        remove(scratch)
    models, paired = _compare(candidates, right, len(finding.splits.validation))
    _refuse_drift(finding, models)
    seconds = seconds | {"report": round(time.perf_counter() - began, 3)}
    if processes.is_main:
        record = _record(finding, folder, models, paired, processes, seconds, forward_path)
        write_run_files(folder.path, record)
    processes.wait()
    return MergeResult.load(folder.path)


def write_run_files(folder: Path, record: dict[str, Any]) -> None:
    """Write plot and card, and last result.json: where it is, the run is finished."""
    write_whole(folder / "fitness.png", plot_fitness(record))
    write_whole(folder / "README.md", render_card(MergeResult(record, folder)).encode())
    write_whole(folder / NAME, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


def _save_baselines(finding: Finding, scratch: Path) -> None:
    remove(scratch)
    for name, baseline in BASELINES.items():
        state = finding.space.unpack(baseline(finding.vectors))
        write_folder(scratch / name, lambda path, state=state: save_model(path, finding.model, state))  # type: ignore[misc]


def _candidates(finding: Finding, folder: RunFolder, scratch: Path) -> list[_Candidate]:
    candidates = []
    for parent in finding.parents:
        source = parent.folder
        if source is None:  # bare weights: their user's way is to load them into the architecture
            reference = finding.recipe.parents[parent.name]
            assert isinstance(reference, WeightsParent)
            candidates.append(_Candidate(parent.name, "parent", _opener_of_weights(reference, parent.name)))
        else:
            candidates.append(_Candidate(parent.name, "parent", _opener(source)))
    candidates += [_Candidate(name, "baseline", _opener(scratch / name)) for name in BASELINES]
    return [*candidates, _Candidate("merged", "merged", _opener(folder.path / "merged"))]


def _opener(folder: Path) -> Callable[[], OpenModel]:
    return lambda: open_model(folder)


def _opener_of_weights(reference: WeightsParent, name: str) -> Callable[[], OpenModel]:
    file, known = Path(reference.weights), reference
    return lambda: open_weights(known.arch, file, known.num_classes, known.arch_args, name, known.data_config)


def _measure(candidates: list[_Candidate], validation: Pictures, test: Pictures, processes: Processes) -> np.ndarray:
    """Return right (1) or wrong (0) for each model and row, validation rows first: [models, rows] int64."""

    def answers(i: int) -> list[int]:
        forward = Forward(candidates[i].open().model, processes.device, plain=True)
        return torch.cat([forward.answers(pictures)[0] for pictures in (validation, test)]).int().tolist()

    return processes.share(len(candidates), validation.count + test.count, answers)


def _compare(
    candidates: list[_Candidate], right: np.ndarray, rows: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Count, and test the merged model against the parent that is best on validation (ties: first listed)."""
    models = []
    for candidate, bits in zip(candidates, right, strict=True):
        counted = {"name": candidate.name, "role": candidate.role}
        for split, part in (("validation", bits[:rows]), ("test", bits[rows:])):
            counted[split] = {"correct": int(part.sum()), "n": len(part)}  # type: ignore[assignment]
        models.append(counted)
    parents = [i for i, c in enumerate(candidates) if c.role == "parent"]
    best = max(parents, key=lambda i: int(right[i, :rows].sum()))
    test = right[:, rows:].astype(bool)
    return models, mcnemar(candidates[best].name, test[-1], test[best]).to_dict()


def _refuse_drift(finding: Finding, models: list[dict[str, Any]]) -> None:
    searched, saved = finding.outcome.best.fitness.correct, models[-1]["validation"]
    # One row may always differ: rounding can turn a near-tie between two classes.
    if searched is None or abs(saved["correct"] - searched) > max(1, _TOLERANCE * saved["n"]):
        raise RunError(
            "the saved model answers otherwise than the one that was searched",
            expected=f"{searched} right of {saved['n']} validation rows", got=saved["correct"],
            remedy="this is a fault of mega_hf or of the model's own save and load: please report it",
        )  # fmt: skip


def _record(
    finding: Finding,
    folder: RunFolder,
    models: list[dict[str, Any]],
    paired: dict[str, Any],
    processes: Processes,
    seconds: dict[str, float],
    forward_path: str,
) -> dict[str, Any]:
    """Everything that card and plot are made from; no path of this machine among it."""
    best, splits, recipe = finding.outcome.best, finding.splits, finding.recipe
    rows = {
        "validation": (splits.validation.spec, len(splits.validation)),
        "test": (splits.test.spec, len(splits.test)),
    }
    return {
        "version": VERSION,
        "name": recipe.name,
        "library": finding.model.library,
        "architecture": finding.model.structure.get("architecture", ""),
        "parameters": finding.space.learned_size,
        "recipe": portable(finding),
        "models": models,
        "paired": paired,
        "search": {
            "correct": best.fitness.correct, "n": best.fitness.seen, "generation": best.generation,
            "index": best.index, "evaluations": len(finding.journal), "node": finding.journal.node,
        },
        "history": [asdict(generation) for generation in finding.outcome.history],
        "parents": [{"name": p.name, **p.source, "sha256": p.sha256} for p in finding.parents],
        "data": {
            "source": splits.source, "classes": splits.classes, "matched": finding.matched,
            "shared_pictures": splits.shared_pictures,
            **{name: {"rows": n, "spec": spec, "sha256": splits.digests[name]} for name, (spec, n) in rows.items()},
        },
        "digests": {
            "weights": finding.space.learned_digest(best.genome),
            "statistics": finding.space.statistics_digest(best.genome),
            "file": merged_digest(folder.path / "merged"),
            "recipe": recipe.sha256,
            "journal": _file_digest(finding.journal.path),
        },
        "environment": {
            "versions": versions(), "machine": platform.machine(), "system": platform.system(),
            "device_kind": processes.device_kind, "forward_path": forward_path,
            "processes": processes.count, "threads": torch.get_num_threads(),
        },
        "seconds": {"evaluating": round(finding.journal.seconds, 1), **seconds},
        "notices": finding.notices,
    }  # fmt: skip


def portable(finding: Finding) -> dict[str, Any]:
    """Return the recipe with local folders replaced by {local: NAME, sha256}."""
    tree = finding.recipe.to_dict()
    if "local" in finding.splits.source:
        tree["data"]["path"] = {**finding.splits.source, "sha256": finding.splits.digests}
    for parent in finding.parents:
        if "local" in parent.source:
            tree["parents"][parent.name] = {"local": parent.source["local"], "sha256": parent.sha256}
        elif "weights" in parent.source:
            tree["parents"][parent.name]["weights"] = {"local": parent.source["weights"], "sha256": parent.sha256}
    return tree


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
