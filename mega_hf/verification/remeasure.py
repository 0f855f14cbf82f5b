"""Evaluate again, with the data, what a run claims: `verify --evaluate K`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mega_hf.errors import RecipeError, VerificationError
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Examples, ResidentModel
from mega_hf.evaluation.loader import Loader
from mega_hf.models.load import open_model
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.merge_inputs import MergeInputs, ModelSource
from mega_hf.models.save import save_model
from mega_hf.recipe.baselines import SECOND_LOOK
from mega_hf.recipe.paths import absolute
from mega_hf.recipe.placeholders import LocalPlaceholder
from mega_hf.report.result import NAME as RESULT
from mega_hf.run.candidates import (
    evaluate_candidates,
    list_candidates,
    model_rows,
    paired_test,
    save_baselines,
    tolerance,
)
from mega_hf.run.parents import check_mergeable
from mega_hf.runtime.environment import keep_freed_memory
from mega_hf.runtime.files import write_folder
from mega_hf.runtime.processes import Processes
from mega_hf.runtime.progress import Progress
from mega_hf.tasks.splits import Splits, add_calibration, load_splits
from mega_hf.verification.claims import RunClaims, changed
from mega_hf.verification.rebuild import COPY, RebuiltNode, SampledIndividual
from mega_hf.weights.batchnorm import statistics_names
from mega_hf.weights.space import digest


@dataclass(frozen=True)
class CountCheck:
    """A count of correct predictions, as claimed and as found on this machine."""

    what: str
    claimed: int | None
    found: int | None
    rows: int
    unseen: int = 0  # rows that the claim does not cover

    @property
    def difference(self) -> int:
        """The difference in rows; all rows if only one of the two counts was finite."""
        if self.claimed is None or self.found is None:
            return 0 if self.claimed == self.found else self.rows
        return max(self.claimed - self.found, self.found - self.claimed - self.unseen, 0)


@dataclass(frozen=True)
class RemeasureResult:
    """Counts that were evaluated again, all within rounding of the claims; `str` gives a few lines.

    Attributes:
        model: of the merged model, on test and validation.
        others: of parents, baselines and intermediate models.
        paired: test rows that only one of two models predicts correctly.
        lines: of individuals in the journal.
        second_look: rows that a finalist predicts as journaled.
        statistics_apart: the largest relative difference of BatchNorm's statistics from
            recomputed ones; None if none were recomputed.
        device_kind: of this machine.
        claimed_on: the device kind of the run.
    """

    model: list[CountCheck]
    others: list[CountCheck]
    paired: list[CountCheck]
    lines: list[CountCheck]
    second_look: list[CountCheck]
    statistics_apart: float | None
    device_kind: str
    claimed_on: str

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"accuracy on {one.what.split()[-1]:<11} {_percent(one)} evaluated again, "
            f"{_percent(one, claimed=True)} claimed"
            for one in self.model
        ]
        lines += [
            f"other models' counts    {_alike(self.others)}",
            f"the paired test's       {_alike(self.paired)}",
            f"lines of the journal    {_alike(self.lines)}",
        ]
        if self.second_look:
            lines.append(f"held-out selection      {_alike(self.second_look)}")
        if self.statistics_apart is not None:
            same = (
                "the same bits"
                if self.statistics_apart == 0
                else f"relative difference up to {self.statistics_apart:.2g}"
            )
            lines.append(f"BatchNorm's statistics  recomputed: {same}")
        if self.device_kind != self.claimed_on:
            lines.append(
                f"the run was made on {self.claimed_on}; this is {self.device_kind}, which may"
                " round differently"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Rebuilt:
    """The outcome of a replay.

    Attributes:
        first: the first parent's model, into which weights are written.
        parents: the parents.
        merges: the merges and baselines; the last one gave the merged model.
        chosen: sampled individuals of the journal.
        recomputed: the merges whose statistics follow from images.
        aligned: aligns the parents, if the final merge did.
        scratch: a folder for baselines.
    """

    first: LoadedModel
    parents: list[ModelSource]
    merges: list[ModelSource]
    chosen: list[SampledIndividual]
    recomputed: list[RebuiltNode]
    aligned: Callable[[MergeInputs], MergeInputs] | None
    scratch: Path


@keep_freed_memory()
def remeasure(
    claims: RunClaims, made: Rebuilt, data: str | None, progress: Progress
) -> RemeasureResult:
    """Evaluate the sampled individuals and every model of the report again.

    Args:
        claims: the run.
        made: the replay.
        data: the data set, if it was local in the run.
        progress: shows the progress.

    Raises:
        VerificationError: the rows differ, or a count differs by more than rounding.
        MegaError: the data set can't be read.
    """
    splits = _load(claims, data)
    first, processes, header = made.first, Processes(), claims.journal.header or {}
    if header["batch_size"] > len(splits.validation):
        raise changed(
            "journal.jsonl",
            "the batch size",
            f"at most {len(splits.validation)}",
            header["batch_size"],
        )
    mapping, matched = check_mergeable({"the first parent": first}, splits)
    _compare_data(claims, splits, matched)
    share = claims.recipe.evaluation.memory_share
    load = Loader(first, mapping, header["batch_size"], processes.device, share)
    validation, test = load(splits.validation), load(splits.test)
    calibration = load.calibration(splits, claims.recipe.threads)
    forward = ResidentModel(first.model, processes.device)
    apart = recompute(made.recomputed, calibration, forward) if calibration else None
    completed = {one.name: one.folder for one in made.recomputed if not one.is_known}
    merges = [
        _with_stored_digest(one, completed[one.name]) if one.name in completed else one
        for one in made.merges
    ]
    made = replace(made, merges=merges)
    shown = {SECOND_LOOK: load(splits.second_look)} if splits.second_look else {}
    lines, finalists = _count_lines(
        made.chosen, forward, lambda node: shown.get(node, validation), calibration, progress
    )
    treatment = calibration if claims.report_rows.is_recalibrated else None
    models, paired = _count_models(claims, made, (validation, test, treatment), processes, progress)
    merged, others = models[-2:], models[:-2]
    here, there = processes.device_kind, str(header.get("device_kind"))
    return RemeasureResult(merged, others, paired, lines, finalists, apart, here, there)


def _with_stored_digest(source: ModelSource, folder: Path) -> ModelSource:
    return replace(source, sha256=digest(open_model(folder, source.name).view()))


def _count_lines(
    chosen: list[SampledIndividual],
    forward: ResidentModel,
    examples_of: Callable[[str], Examples],
    calibration: Calibration | None,
    progress: Progress,
) -> tuple[list[CountCheck], list[CountCheck]]:
    """Return the counts of individuals, and the rows of finalists that are as journaled."""
    lines, finalists = [], []
    with progress.bar("journal", len(chosen), "evaluations") as advance:
        for one in chosen:
            shown = examples_of(one.node)
            forward.write(one.state.items(), part=bool(one.recomputed))
            if calibration and one.recomputed:
                calibration.recalibrate(forward, one.recomputed)
            found = forward.predict(shown)
            what = f"individual {one.index} of generation {one.generation} of {one.node}"
            known, rows = one.fitness, one.fitness.seen + one.fitness.unseen
            lines.append(CountCheck(what, known.correct, found.num_correct, rows, known.unseen))
            _check(lines[-1], "journal.jsonl")
            if one.right is not None:
                alike = int((one.right == (found.correct.numpy() & found.finite)).sum())
                finalists.append(CountCheck(f"{what}, row by row,", rows, alike, rows))
                _check(finalists[-1], "journal.jsonl", "rows as they are, of")
            advance(1, "")
    return lines, finalists


def _count_models(
    claims: RunClaims,
    made: Rebuilt,
    shown: tuple[Examples, Examples, Calibration | None],
    processes: Processes,
    progress: Progress,
) -> tuple[list[CountCheck], list[CountCheck]]:
    """Return the counts of all models, the merged model last, and those of paired tests."""
    validation, test, treatment = shown
    parents = {source.name: source for source in made.parents}
    names = {source.name for source in made.merges}
    save_baselines(parents, made.scratch, treatment, made.aligned, processes.device, names)
    sources = parents | {source.name: source for source in made.merges}
    candidates = list_candidates(claims.report_rows, sources, claims.plan.merged, made.scratch)
    report = claims.result.report
    different = len({one.content for one in candidates})
    with progress.bar("models", different, "models") as advance:
        right = evaluate_candidates(candidates, validation, test, processes, lambda: advance(1, ""))
    counts = []
    for claimed, found in zip(
        report.models, model_rows(candidates, right, validation.count), strict=True
    ):
        name = "the merged model" if claimed.role == "merged" else claimed.name
        for split, said, measured in (
            ("test", claimed.test, found.test),
            ("validation", claimed.validation, found.validation),
        ):
            counts.append(CountCheck(f"{name} on {split}", said.correct, measured.correct, said.n))
            _check(counts[-1], "result.json")
    paired = []
    for test_said in report.comparisons:
        pairing = paired_test(candidates, right, validation.count, test_said.against)
        for who, claim, got in (
            ("the merged model", test_said.only_merged_right, pairing.only_merged_right),
            (pairing.against, test_said.only_other_right, pairing.only_other_right),
        ):
            what = f"test rows that only {who} gets right, of it and {pairing.against}"
            paired.append(CountCheck(what, claim, got, test.count))
    for one in paired:
        _check(one, "result.json")
    return counts, paired


def resolve_path(given: str) -> str:
    """Return the absolute path of an existing file or folder, or the reference as given."""
    path = Path(given).expanduser()
    return str(path.resolve()) if path.exists() else absolute(given)


def _load(claims: RunClaims, data: str | None) -> Splits:
    wanted = claims.recipe.data
    if data is not None:
        wanted = wanted.model_copy(update={"path": resolve_path(data)})
    if isinstance(wanted.path, LocalPlaceholder):
        raise RecipeError(
            "the data set was local where the run was made",
            expected="a path for it",
            got="none",
            hint="add --data PATH",
        )
    splits = load_splits(wanted, claims.recipe.trains_all)
    if "calibration" in claims.record.data.splits:
        splits = add_calibration(splits)
    for split, info in claims.record.data.splits.items():
        claimed = info.sha256
        if splits.digests[split] != claimed:
            raise VerificationError(
                f"these are not the {split} rows of the run",
                where="data",
                expected=claimed,
                got=splits.digests[split],
                hint="give the original data set with --data PATH, or its pinned revision",
            )
    return splits


def _check(one: CountCheck, where: str, what: str = "correct of") -> None:
    if one.difference > tolerance(one.rows):
        raise VerificationError(
            f"{one.what} is not what was claimed",
            where=where,
            expected=f"{one.claimed} {what} {one.rows}",
            got=one.found,
            hint="the file was changed, or this device rounds differently from the run's device",
        )


def _compare_data(claims: RunClaims, splits: Splits, matched: str) -> None:
    """Compare the record's entry on the data with the data, beside the digests."""
    said = claims.record.data
    facts: dict[str, tuple[object, object]] = {
        "classes": (splits.classes, said.classes),
        "shared_pictures": (splits.shared_images, said.shared_pictures),
        "matched": (matched, said.matched),
    }
    facts |= {
        f"{name}.rows": (len(getattr(splits, name)), split.rows)
        for name, split in said.splits.items()
    }
    for what, (found, claimed) in facts.items():
        if claimed != found:
            raise changed(RESULT, f"data.{what}: {found}, not {claimed}", found, claimed)


def _alike(counts: list[CountCheck]) -> str:
    same = sum(one.difference == 0 for one in counts)
    largest = max((one.difference for one in counts), default=0)
    more = f", largest difference {largest:,} of {counts[0].rows:,} rows" if largest else ""
    return f"{same} of {len(counts)} the same{more}"


def _percent(count: CountCheck, claimed: bool = False) -> str:
    correct = (count.claimed if claimed else count.found) or 0
    return f"{100 * correct / count.rows:.2f} % ({correct:,} of {count.rows:,})"


# Relative to a number plus its tensor's root mean square: rounding of another processor.
_APART = 1e-3


def recompute(
    merges: Sequence[RebuiltNode], calibration: Calibration, forward: ResidentModel
) -> float:
    """Compute BatchNorm's statistics of merges; compare them with the run's, or store them.

    Args:
        merges: the recalibrated merges.
        calibration: the run's images and threads.
        forward: a model of this architecture.

    Returns:
        the largest relative difference from known statistics.

    Raises:
        VerificationError: the difference is larger than rounding.
    """
    largest = 0.0
    for merge in merges:
        opened = open_model(merge.folder, merge.name)
        state = opened.state()
        dtypes = {name: state[name].dtype for name in statistics_names(opened.model)}
        forward.write(state.items())
        made = calibration.recalibrate(forward, dtypes)
        if merge.is_known:
            apart = max(relative_difference(made[name], state[name]) for name in made)
            largest = max(largest, apart)
            if not apart <= _APART:
                raise VerificationError(
                    f"BatchNorm's statistics of {merge.name} do not follow from its weights",
                    where="*.safetensors",
                    expected=f"those of the calibration images, up to a difference of {_APART:g}",
                    got=f"a relative difference of {apart:.3g}",
                    hint=COPY,
                )
        else:
            write_folder(merge.folder, partial(save_model, like=opened, state=state | made))
    return largest


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference of two tensors, relative to |b| plus b's root mean square."""
    a, b = a.double(), b.double()
    scale = b.abs() + b.square().mean().sqrt()
    apart = (a - b).abs()
    return float((apart / scale.clamp_min(1e-30)).max()) if apart.numel() else 0.0
