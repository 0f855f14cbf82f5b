"""The report, made once after the search: the test split is read here and nowhere else."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mega_hf.errors import HubError, MegaError, RunError
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Examples
from mega_hf.models.merge_inputs import is_recalibrated
from mega_hf.models.references import open_parent
from mega_hf.recipe.baselines import SECOND_LOOK
from mega_hf.recipe.paths import is_local
from mega_hf.recipe.placeholders import references
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
    Candidate,
    ReportRows,
    count,
    list_candidates,
    measure,
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
    """What a run leaves to the report beside its merges."""

    recipe: Recipe
    plan: MergePlan
    parents: ParentSet
    splits: Splits
    journal: Journal
    load: Callable[[Split], Examples]
    validation: Examples
    calibration: Calibration | None  # of the merges that were recalibrated, if any was
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
    """Return the journal's header: all that decides the numbers below it."""
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
    """Return the releases of Python and of the libraries that numbers may depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}


def write_report(
    finding: RunOutcome,
    merged: list[MergedNode],
    beside: list[MergedNode],
    folder: RunFolder,
    processes: Processes,
    seconds: dict[str, float],
) -> MergeResult:
    """Measure parents, baselines and merged models from their folders, and write result, card and
    plots.

    Args:
        finding: what the run found.
        merged: the merges, the root last.
        beside: baselines that were searched for, and the second look, if there was one, last.
        folder: where the report goes.
        processes: who takes part in measuring.
        seconds: by stage, so far.

    Raises:
        RunError: a saved model counts otherwise than the search did.
    """
    began = time.perf_counter()
    scratch = folder.path / ".mega-baselines"
    root = merged[-1]
    sources = finding.parents.sources
    all_made = {one.name: one for one in (*merged, *beside)}
    aligned = alignment(root.node, sources, finding.journal.nodes[root.name])
    treatment = (
        finding.calibration if is_recalibrated(root.node, finding.parents.model.model) else None
    )
    if processes.is_main:
        save_baselines(sources, scratch, treatment, aligned, processes.device, all_made)
    processes.wait()
    lineup = ReportRows(finding.plan, treatment is not None, aligned is not None)
    opened = sources | {name: one.source for name, one in all_made.items()}
    candidates = list_candidates(lineup, opened, finding.plan.merged, scratch)
    test = finding.load(finding.splits.test)
    right = measure(candidates, finding.validation, test, processes)
    processes.wait()
    if processes.is_main:
        remove(scratch)
    rows = len(finding.splits.validation)
    models = count(candidates, right, rows)
    _refuse_drift([one for name, one in all_made.items() if name != SECOND_LOOK], models)
    seconds = seconds | {"report": round(time.perf_counter() - began, 3)}
    if processes.is_main:
        tests = _paired(candidates, right, rows, models)
        record = make_record(finding, merged, beside, models, tests, processes, seconds)
        write_run_files(folder.path, record)
    processes.wait()
    return MergeResult.load(folder.path)


def write_run_files(folder: Path, record: RunRecord) -> None:
    """Write plots and card, and last result.json: where it is, the run is finished."""
    result = MergeResult(record, folder)
    try:
        write_card(result)
    # of a card that was changed by hand; after hours of work the run must not end here
    except HubError as error:
        kept = folder / "README-before.md"
        (folder / "README.md").replace(kept)
        logger.warning("%s; the card that was there is now %s", error.what, kept)
        write_card(result)
    write_whole(folder / NAME, record.encode())


def _paired(
    candidates: list[Candidate], right: np.ndarray, rows: int, models: list[ModelRow]
) -> dict[str, PairedTest]:
    """Return the paired tests of the merged model, by their entry in the record."""
    return {
        entry: PairedTest(**asdict(paired_test(candidates, right, rows, other)))
        for entry, other in paired_against(models).items()
    }


def _refuse_drift(made: list[MergedNode], models: list[ModelRow]) -> None:
    """See that the models that were searched for count as the search did, as they were saved."""
    measured = {model.name: model.validation for model in models}
    for one in made:
        # the final merge, where no second look stands above it
        counted = measured.get(one.name, measured["merged"])
        saved, rows = counted.correct, counted.n
        low, high = one.record["correct"], one.record["correct"] + rows - one.record["n"]
        # plain eager mode rounds otherwise than the search did
        if max(low - saved, saved - high) > tolerance(rows):
            raise RunError(
                f"the saved model {one.name} answers otherwise than the one that was searched",
                expected=f"{low} right of {rows} validation rows",
                got=saved,
                hint=(
                    "this is a fault of mega_hf or of the model's own save and load: please"
                    " report it"
                ),
            )


def make_record(
    finding: RunOutcome,
    merged: list[MergedNode],
    beside: list[MergedNode],
    models: list[ModelRow],
    paired: Mapping[str, PairedTest],
    processes: Processes,
    seconds: dict[str, float],
) -> RunRecord:
    """Return everything that card and plots are made from; no path of this machine among it."""
    splits, recipe, parents, root = finding.splits, finding.recipe, finding.parents, merged[-1]
    nodes = [one.describe() for one in merged]
    last = beside[-1] if beside and beside[-1].name == SECOND_LOOK else None
    chosen = choice_of(finding.journal, recipe)
    return RunRecord(
        version=VERSION,
        name=recipe.name,
        library=parents.model.library,
        architecture=parents.model.structure.get("architecture", ""),
        parameters=root.record["parameters"],
        channels=parents.model.input_shape[0],
        recipe=_portable(finding),
        models=models,
        search=nodes[-1].search,
        history=nodes[-1].history,
        nodes=nodes,
        baselines=[one.describe() for one in beside if one is not last],
        chosen=AutoSettings(**chosen) if chosen else None,
        second_look=_describe_second_look(last, finding.journal) if last else None,
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
        digests=RunDigests(
            **(last or root).describe().digests.to_dict(),
            recipe=recipe.sha256,
            journal=file_digest(finding.journal.path),
        ),
        environment=Environment(
            versions=versions(),
            machine=platform.machine(),
            system=platform.system(),
            device_kind=processes.device_kind,
            forward_path=finding.forward_path,
            processes=processes.count,
            threads=torch.get_num_threads(),
        ),
        seconds={
            "evaluating": round(sum(one.seconds for one in (*merged, *beside)), 1),
            **seconds,
        },
        notices=finding.notices,
        paired=paired["paired"],
        paired_soup=paired.get("paired_soup"),
    )


def _describe_second_look(last: MergedNode, journal: Journal) -> HeldOutSelection:
    known, names = journal.nodes[last.name], last.node.parents
    counted = [known.find(1, i, None) for i in range(len(names))]
    finalists = [
        Finalist(name=name, correct=one.correct, n=one.seen)
        for name, one in zip(names, counted, strict=True)
        if one
    ]
    chosen = names[last.record["index"]]
    return HeldOutSelection(**dict(last.describe()), finalists=finalists, chosen=chosen)


def _portable(finding: RunOutcome) -> dict[str, Any]:
    """Return the recipe with {local: NAME, sha256} in the place of each local folder and file."""
    tree, identities = finding.recipe.to_dict(), finding.parents.identities
    if "local" in finding.splits.source:
        tree["data"]["path"] = {**finding.splits.source, "sha256": finding.splits.digests}

    for key, block in references(tree):
        path = block[key[-1]]
        if isinstance(path, str) and is_local(path):
            name = "" if key[-1] == "from" else key[1]
            known = (
                identities[name].sha256
                if name in identities
                else _digest(finding.recipe, name, path)
            )
            block[key[-1]] = {"local": Path(path).name} | ({"sha256": known} if known else {})
    return tree


def _digest(recipe: Recipe, name: str, place: str) -> str | None:
    """Return the digest of a model that others were only trained from; None if it can't be read any
    more."""
    try:
        return open_parent(name, recipe.parents.get(name, place)).parent.sha256
    except MegaError:
        return None
