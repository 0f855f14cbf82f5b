"""`verify --evaluate K`: with the data, what a run claims to have measured is measured again."""

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
from mega_hf.verification.rebuild import _COPY, RebuiltNode, SampledIndividual
from mega_hf.weights.batchnorm import statistics_names
from mega_hf.weights.space import digest


@dataclass(frozen=True)
class CountCheck:
    """Right answers, as claimed and as found here."""

    what: str
    claimed: int | None
    found: int | None
    rows: int
    unseen: int = 0  # rows that the claim says nothing of

    @property
    def difference(self) -> int:
        """In rows; all of them where one of the two was not finite and the other was."""
        if self.claimed is None or self.found is None:
            return 0 if self.claimed == self.found else self.rows
        return max(self.claimed - self.found, self.found - self.claimed - self.unseen, 0)


@dataclass(frozen=True)
class RemeasureResult:
    """What was measured again, all of it within rounding of what was claimed; `str` is some
    lines."""

    model: list[CountCheck]  # the merged model's, on test and validation
    others: list[CountCheck]  # of parents, baselines and intermediates, likewise
    paired: list[CountCheck]  # test rows that only one of the two gets right
    lines: list[CountCheck]
    second_look: list[CountCheck]  # rows on which a model is right, or wrong, as the journal says
    # BatchNorm's, as they were stored and as computed again; None if nothing was
    statistics_apart: float | None
    device_kind: str
    claimed_on: str

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        said = [
            f"accuracy on {one.what.split()[-1]:<11} {_percent(one)} measured again, "
            f"{_percent(one, claimed=True)} claimed"
            for one in self.model
        ]
        said += [
            f"other models' counts    {_alike(self.others)}",
            f"the paired test's       {_alike(self.paired)}",
            f"lines of the journal    {_alike(self.lines)}",
        ]
        said += [f"the second look's rows  {_alike(self.second_look)}"] if self.second_look else []
        if self.statistics_apart is not None:
            same = (
                "the same bits"
                if self.statistics_apart == 0
                else f"up to {self.statistics_apart:.2g} of a number apart"
            )
            said.append(f"BatchNorm's statistics  computed again: {same}")
        if self.device_kind != self.claimed_on:
            said.append(
                f"the run was made on {self.claimed_on}; this is {self.device_kind}, which may"
                " round otherwise"
            )
        return "\n".join(said)


@dataclass(frozen=True)
class Rebuilt:
    """What the replay made, for measuring again."""

    first: LoadedModel  # the first parent's, into which weights are written
    parents: list[ModelSource]
    merges: list[ModelSource]  # and baselines; what gave the merged model is last
    chosen: list[SampledIndividual]  # of the journal
    recomputed: list[RebuiltNode]  # merges whose statistics were computed anew
    # puts the parents in one order, if the final merge did that
    aligned: Callable[[MergeInputs], MergeInputs] | None
    scratch: Path  # where baselines may be written


@keep_freed_memory()
def remeasure(
    claims: RunClaims, made: Rebuilt, data: str | None, progress: Progress
) -> RemeasureResult:
    """Measure some individuals again, and every model that the report tells of.

    Args:
        claims: what the run says.
        made: what the replay made.
        data: where the data set lies, if it was local where the run was made.
        progress: shows how far it is.

    Raises:
        VerificationError: the rows are others, or a count is further off than rounding may move it.
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
        _as_it_lies(one, completed[one.name]) if one.name in completed else one
        for one in made.merges
    ]
    made = replace(made, merges=merges)
    shown = {SECOND_LOOK: load(splits.second_look)} if splits.second_look else {}
    lines, looked = _count_lines(
        made.chosen, forward, lambda node: shown.get(node, validation), calibration, progress
    )
    treatment = calibration if claims.report_rows.is_recalibrated_run else None
    models, paired = _count_models(claims, made, (validation, test, treatment), processes, progress)
    merged, others = models[-2:], models[:-2]
    here, there = processes.device_kind, str(header.get("device_kind"))
    return RemeasureResult(merged, others, paired, lines, looked, apart, here, there)


def _as_it_lies(source: ModelSource, folder: Path) -> ModelSource:
    return replace(source, sha256=digest(open_model(folder, source.name).view()))


def _count_lines(
    chosen: list[SampledIndividual],
    forward: ResidentModel,
    pictures_of: Callable[[str], Examples],
    calibration: Calibration | None,
    progress: Progress,
) -> tuple[list[CountCheck], list[CountCheck]]:
    """Return what individuals count, and for those of which that is claimed, on how many rows they
    are as claimed."""
    lines, looked = [], []
    with progress.bar("journal", len(chosen), "evaluations") as advance:
        for one in chosen:
            shown = pictures_of(one.node)
            forward.write(one.state.items(), part=bool(one.recomputed))
            if calibration and one.recomputed:
                calibration.recalibrate(forward, one.recomputed)
            found = forward.predict(shown)
            what = f"individual {one.index} of generation {one.generation} of {one.node}"
            known, rows = one.fitness, one.fitness.seen + one.fitness.unseen
            lines.append(CountCheck(what, known.correct, found.num_correct, rows, known.unseen))
            _refuse(lines[-1], "journal.jsonl")
            if one.right is not None:
                alike = int((one.right == (found.correct.numpy() & found.finite)).sum())
                looked.append(CountCheck(f"{what}, row by row,", rows, alike, rows))
                _refuse(looked[-1], "journal.jsonl", "rows as they are, of")
            advance(1, "")
    return lines, looked


def _count_models(
    claims: RunClaims,
    made: Rebuilt,
    shown: tuple[Examples, Examples, Calibration | None],
    processes: Processes,
    progress: Progress,
) -> tuple[list[CountCheck], list[CountCheck]]:
    """Return each model's counts on test and validation, the merged one's last, and the paired
    test's."""
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
            _refuse(counts[-1], "result.json")
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
        _refuse(one, "result.json")
    return counts, paired


def place_of(given: str) -> str:
    """Return the absolute path of what is there, or a reference as it is given."""
    path = Path(given).expanduser()
    return str(path.resolve()) if path.exists() else absolute(given)


def _load(claims: RunClaims, data: str | None) -> Splits:
    wanted = claims.recipe.data
    if data is not None:
        wanted = wanted.model_copy(update={"path": place_of(data)})
    if isinstance(wanted.path, LocalPlaceholder):
        raise RecipeError(
            "the data set was local where the run was made",
            expected="a place for it",
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
                hint="the data set as it was: --data PATH, or its pinned revision",
            )
    return splits


def _refuse(one: CountCheck, where: str, what: str = "right of") -> None:
    if one.difference > tolerance(one.rows):
        raise VerificationError(
            f"{one.what} is not what was claimed",
            where=where,
            expected=f"{one.claimed} {what} {one.rows}",
            got=one.found,
            hint="it was changed, or this device rounds otherwise than the one that made the run",
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
    return f"{same} of {len(counts)} measured again alike{more}"


def _percent(count: CountCheck, claimed: bool = False) -> str:
    correct = (count.claimed if claimed else count.found) or 0
    return f"{100 * correct / count.rows:.2f} % ({correct:,} of {count.rows:,})"


# of a number, or of its tensor's root mean square: what another processor's rounding may come to
_APART = 1e-3


def recompute(
    merges: Sequence[RebuiltNode], calibration: Calibration, forward: ResidentModel
) -> float:
    """Compute the statistics of merges from the calibration pictures; compare them with the run's,
    or store them.

    Args:
        merges: those that were recalibrated.
        calibration: the run's pictures and threads.
        forward: a model of this architecture.

    Returns:
        the largest difference from statistics that were known, relative to the size of the numbers.

    Raises:
        VerificationError: it is larger than rounding can make it.
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
                    expected=f"the calibration pictures' own, up to {_APART:g} of each number",
                    got=f"up to {apart:.3g} of a number apart",
                    hint=_COPY,
                )
        else:
            write_folder(merge.folder, partial(save_model, like=opened, state=state | made))
    return largest


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference of two tensors' numbers, relative to b's number plus b's root
    mean square."""
    a, b = a.double(), b.double()
    scale = b.abs() + b.square().mean().sqrt()
    apart = (a - b).abs()
    return float((apart / scale.clamp_min(1e-30)).max()) if apart.numel() else 0.0
