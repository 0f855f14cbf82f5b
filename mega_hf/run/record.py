"""Evaluate the models of a finished run and write its record, card and plots.

The test split is read here and nowhere else.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mega_hf.errors import HubError, MegaError, RunError
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Examples
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.merge_inputs import is_recalibrated
from mega_hf.models.references import open_parent
from mega_hf.recipe.baselines import SECOND_LOOK
from mega_hf.recipe.paths import is_local
from mega_hf.recipe.placeholders import Key, references
from mega_hf.recipe.plan import MergePlan
from mega_hf.recipe.schema import Recipe
from mega_hf.report.card import write_card
from mega_hf.report.record import (
    VERSION,
    AutoSettings,
    DataInfo,
    DataSource,
    Environment,
    Finalist,
    HeldOutSelection,
    ModelRow,
    PairedTest,
    ParentRow,
    RunDigests,
    RunRecord,
    SplitInfo,
)
from mega_hf.report.result import NAME, MergeResult
from mega_hf.run.align import alignment
from mega_hf.run.auto import choice_of
from mega_hf.run.candidates import (
    ReportRows,
    evaluate_candidates,
    list_candidates,
    model_rows,
    paired_against,
    paired_test,
    save_baselines,
    tolerance,
)
from mega_hf.run.folder import RunFolder
from mega_hf.run.journal import Journal
from mega_hf.run.node import MergedNode
from mega_hf.run.parents import ParentSet
from mega_hf.runtime.files import file_digest, remove, write_whole
from mega_hf.runtime.processes import Processes
from mega_hf.tasks.rows import Split
from mega_hf.tasks.splits import Splits

logger = logging.getLogger(__name__)

_LIBRARIES = (
    "mega_hf",
    "torch",
    "timm",
    "transformers",
    "datasets",
    "accelerate",
    "huggingface_hub",
    "numpy",
)


@dataclass(frozen=True)
class RunOutcome:
    """What a run's report needs beside its merges."""

    recipe: Recipe
    plan: MergePlan
    parents: ParentSet
    splits: Splits
    journal: Journal
    load: Callable[[Split], Examples]
    validation: Examples
    calibration: Calibration | None  # None if no merge was recalibrated
    forward_path: str
    notices: list[str]


def header(
    recipe: Recipe,
    parents: ParentSet,
    splits: Splits,
    device_kind: str,
    forward_path: str,
    batch_size: int,
) -> dict[str, Any]:
    """Return the journal's header: all that its later lines depend on."""
    return {
        "recipe": recipe.sha256,
        "parents": {p.name: p.sha256 for p in parents.identities.values()},
        "data": splits.digests,
        "device_kind": device_kind,
        "forward_path": forward_path,
        "batch_size": batch_size,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results may depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}


def write_report(
    outcome: RunOutcome,
    merged: list[MergedNode],
    baselines: list[MergedNode],
    folder: RunFolder,
    processes: Processes,
    seconds: dict[str, float],
) -> MergeResult:
    """Evaluate parents, baselines and merges from their folders; write result, card and plots.

    Args:
        outcome: parents, data and journal of the run.
        merged: the merges of the tree, the final one last.
        baselines: the searched baselines, and the held-out selection last, if there is one.
        folder: where the report goes.
        processes: share the models among them.
        seconds: the time of each earlier stage.

    Raises:
        RunError: a saved model gives different predictions from the one evaluated in the search.
    """
    began = time.perf_counter()
    scratch = folder.path / ".mega-baselines"
    final, sources = merged[-1], outcome.parents.sources
    nodes = {node.name: node for node in (*merged, *baselines)}
    aligned = alignment(final.node, sources, outcome.journal.nodes[final.name])
    recalibrates = is_recalibrated(final.node, outcome.parents.model.model)
    calibration = outcome.calibration if recalibrates else None
    if processes.is_main:
        save_baselines(sources, scratch, calibration, aligned, processes.device, nodes)
    processes.wait()
    rows = ReportRows(outcome.plan, calibration is not None, aligned is not None)
    opened = sources | {name: node.source for name, node in nodes.items()}
    candidates = list_candidates(rows, opened, outcome.plan.merged, scratch)
    test = outcome.load(outcome.splits.test)
    correct = evaluate_candidates(candidates, outcome.validation, test, processes)
    processes.wait()
    if processes.is_main:
        remove(scratch)
    models = model_rows(candidates, correct, outcome.validation.count)
    _check_counts([node for name, node in nodes.items() if name != SECOND_LOOK], models)
    seconds = seconds | {"report": round(time.perf_counter() - began, 3)}
    if processes.is_main:
        tests = {
            entry: PairedTest(
                **asdict(paired_test(candidates, correct, outcome.validation.count, other))
            )
            for entry, other in paired_against(models).items()
        }
        record = make_record(outcome, merged, baselines, models, tests, processes, seconds)
        write_run_files(folder.path, record)
    processes.wait()
    return MergeResult.load(folder.path)


def write_run_files(folder: Path, record: RunRecord) -> None:
    """Write plots, card and result.json, which marks the run as finished and so comes last."""
    result = MergeResult(record, folder)
    try:
        write_card(result)
    except HubError as error:  # An edited card must not end a run after hours of work.
        kept = folder / "README-before.md"
        (folder / "README.md").replace(kept)
        logger.warning("%s; the previous card is now %s", error.what, kept)
        write_card(result)
    write_whole(folder / NAME, record.encode())


def _check_counts(nodes: list[MergedNode], models: list[ModelRow]) -> None:
    """Check that the saved merges have the validation counts of the search."""
    evaluated = {model.name: model.validation for model in models}
    for node in nodes:
        # Without a held-out selection, the final merge has no row but that of the merged model.
        count = evaluated.get(node.name, evaluated["merged"])
        low = node.record["correct"]
        high = low + count.n - node.record["n"]
        # Plain eager mode rounds differently from the forward path of the search.
        if max(low - count.correct, count.correct - high) > tolerance(count.n):
            raise RunError(
                f"the saved model {node.name} gives different predictions from the one evaluated"
                " during the search",
                expected=f"{low} of {count.n} validation rows correct",
                got=count.correct,
                hint=(
                    "this is a bug in mega_hf or in the model's save/load code; please report it"
                ),
            )


def make_record(
    outcome: RunOutcome,
    merged: list[MergedNode],
    baselines: list[MergedNode],
    models: list[ModelRow],
    paired: Mapping[str, PairedTest],
    processes: Processes,
    seconds: dict[str, float],
) -> RunRecord:
    """Return the record of a run, without any path of this machine."""
    splits, parents = outcome.splits, outcome.parents
    return RunRecord(
        **describe_merges(outcome.recipe, parents.model, outcome.journal, merged, baselines),
        recipe=hide_paths(outcome.recipe, splits.digests, partial(_digest, outcome)),
        models=models,
        parents=[
            ParentRow.model_validate(
                {"name": p.name, **p.source, **(p.license or {}), "sha256": p.sha256}
            )
            for p in parents.identities.values()
        ],
        data=DataInfo(
            source=DataSource(**splits.source),
            classes=splits.classes,
            matched=parents.matched,
            shared_pictures=splits.shared_images,
            **{
                name: SplitInfo(rows=len(rows), spec=rows.spec, sha256=sha)
                for name, rows, sha in splits.named
            },
        ),
        environment=Environment(
            versions=versions(),
            machine=platform.machine(),
            system=platform.system(),
            device_kind=processes.device_kind,
            forward_path=outcome.forward_path,
            processes=processes.count,
            threads=torch.get_num_threads(),
        ),
        seconds={
            "evaluating": round(sum(node.seconds for node in (*merged, *baselines)), 1),
            **seconds,
        },
        notices=outcome.notices,
        paired=paired["paired"],
        paired_soup=paired.get("paired_soup"),
    )


def describe_merges(
    recipe: Recipe,
    model: LoadedModel,
    journal: Journal,
    merged: list[MergedNode],
    baselines: list[MergedNode],
) -> dict[str, Any]:
    """Return the entries of a record that follow from recipe, journal and merges.

    Args:
        recipe: the run's recipe.
        model: the first parent's.
        journal: the run's journal.
        merged: the merges, the final one last.
        baselines: the searched baselines, and the held-out selection last, if there is one.
    """
    nodes = [node.describe() for node in merged]
    last = baselines[-1] if baselines and baselines[-1].name == SECOND_LOOK else None
    chosen = choice_of(journal, recipe)
    return {
        "version": VERSION,
        "name": recipe.name,
        "library": model.library,
        "architecture": model.structure.get("architecture", ""),
        "parameters": merged[-1].record["parameters"],
        "channels": model.input_shape[0],
        "search": nodes[-1].search,
        "history": nodes[-1].history,
        "nodes": nodes,
        "baselines": [node.describe() for node in baselines if node is not last],
        "chosen": AutoSettings(**chosen) if chosen else None,
        "second_look": _held_out_selection(last, journal) if last else None,
        "digests": RunDigests(
            **(last or merged[-1]).describe().digests.to_dict(),
            recipe=recipe.sha256,
            journal=file_digest(journal.path),
        ),
    }


def _held_out_selection(node: MergedNode, journal: Journal) -> HeldOutSelection:
    known, names = journal.nodes[node.name], node.node.parents
    fitness = [known.find(1, i, None) for i in range(len(names))]
    finalists = [
        Finalist(name=name, correct=one.correct, n=one.seen)
        for name, one in zip(names, fitness, strict=True)
        if one
    ]
    chosen = names[node.record["index"]]
    return HeldOutSelection(**dict(node.describe()), finalists=finalists, chosen=chosen)


def hide_paths(
    recipe: Recipe, rows: Mapping[str, str], digest_of: Callable[[Key, str], str | None]
) -> dict[str, Any]:
    """Return a recipe's tree with {local: NAME, sha256} in place of each local folder and file.

    Args:
        recipe: the recipe.
        rows: the SHA-256 of each split.
        digest_of: gives the SHA-256 of a local model, by its key in the recipe and its path.
    """
    tree = recipe.to_dict()
    for key, block in references(tree):
        path = block[key[-1]]
        if isinstance(path, str) and is_local(path):
            sha256 = rows if key == ("data", "path") else digest_of(key, path)
            block[key[-1]] = {"local": Path(path).name} | ({"sha256": sha256} if sha256 else {})
    return tree


def _digest(outcome: RunOutcome, key: Key, path: str) -> str | None:
    """Return the digest of a local model; None if it can't be read any more."""
    name = "" if key[-1] == "from" else key[1]
    if name in outcome.parents.identities:
        return outcome.parents.identities[name].sha256
    try:
        return open_parent(name, outcome.recipe.parents.get(name, path)).parent.sha256
    except MegaError:
        return None
