"""Verify a run: rebuild the merged weights from recipe, journal and parents, and compare."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from secrets import SystemRandom
from typing import Any

from mega_hf.errors import ParentError, RecipeError, VerificationError
from mega_hf.models.load import open_model
from mega_hf.models.merge_inputs import ModelSource
from mega_hf.models.references import open_parent, origin_of
from mega_hf.recipe.parents import ParentRef, TrainedParent, WeightsParent
from mega_hf.recipe.placeholders import LocalPlaceholder
from mega_hf.recipe.tree import parent_name
from mega_hf.report.record import ParentRow
from mega_hf.run.align import alignment
from mega_hf.run.parents import source_of
from mega_hf.runtime.files import merged_digest
from mega_hf.runtime.progress import Progress
from mega_hf.verification.claims import RunClaims, load_claims
from mega_hf.verification.consistency import compare_record
from mega_hf.verification.rebuild import COPY, RebuildContext, rebuild_node
from mega_hf.verification.remeasure import Rebuilt, RemeasureResult, remeasure, resolve_path

_OPEN = (
    "not rebuilt: there is no model beside it, and BatchNorm's statistics take the data,"
    " --evaluate K"
)


@dataclass(frozen=True)
class Verification:
    """A run that was reproduced; `str` gives a few lines.

    Attributes:
        run: the run folder, or ORG/NAME@COMMIT.
        parents: the number of parents.
        evaluations: the number of individuals in the journal.
        seconds: the time that the replay took.
        digests: of the rebuilt `weights` and `file`, and `claimed_file`; no `file` where statistics
            were not rebuilt.
        has_model: whether the run has a model, and not its digests alone.
        unchecked: the parts of the run that were not checked, in words.
        remeasured: the outcome of evaluating again.
    """

    run: str
    parents: int
    evaluations: int
    seconds: float
    digests: dict[str, str]
    has_model: bool
    unchecked: list[str]
    remeasured: RemeasureResult | None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        more = {"remeasured": self.remeasured.to_dict() if self.remeasured else None}
        return {name: value for name, value in vars(self).items() if name != "remeasured"} | more

    def __str__(self) -> str:
        compared = (
            "the model's own" if self.has_model else "result.json's; there is no model beside it"
        )
        if self.digests.get("file") != self.digests["claimed_file"]:
            compared = (
                f"not {self.digests['claimed_file'][:12]}..., result.json's: BatchNorm's sums round"
                " differently on this machine"
            )
        lines = [
            (
                f"reproduced bit for bit from {self.parents} parents and {self.evaluations:,}"
                f" recorded evaluations in {self.seconds:.1f} seconds"
            ),
            f"digest of the weights   {self.digests['weights']}",
        ]
        file = f"{self.digests['file']} ({compared})" if "file" in self.digests else _OPEN
        lines.insert(1, f"SHA-256 of the file     {file}")
        lines += [str(self.remeasured)] if self.remeasured else []
        return "\n".join([*lines, *(f"not checked: {what}" for what in self.unchecked)])


def verify(
    run: str | Path,
    *,
    parents: Mapping[str, str] | None = None,
    trained: str | Path | None = None,
    evaluate: int | None = None,
    data: str | None = None,
    progress: bool = False,
) -> Verification:
    """Rebuild a merge from recipe, journal and parents, and compare it with the run.

    Args:
        run: a run folder, a copy of one (with or without the model), or a repository
            ORG/NAME[@REVISION].
        parents: name -> folder or reference of the parents that were local in the run.
        trained: the folder of the parents that were trained for the run, each under its name.
        evaluate: evaluate so many random lines of the journal again, all lines of the held-out
            selection, and every accuracy of the report. Only this needs the data set.
        data: the data set, if it was local in the run.
        progress: show progress bars while evaluating.

    Raises:
        VerificationError: something was changed, or was not as claimed; `where` names it.
        MegaError: something can't be read, or the path of a parent is unknown.
    """
    began = time.perf_counter()
    claims = load_claims(run)
    folder = Path(trained) if trained is not None else None
    opened = {
        name: _open_parent(claims, name, *reference)
        for name, reference in _references(claims, dict(parents or {}), folder).items()
    }
    sources = {name: source for name, (source, _) in opened.items()}
    plan, leaves = claims.plan, list(sources.values())
    lines = [(name, *at) for name in plan.nodes for at in claims.record_of(name)]
    # No seed: a forger must not know which lines will be evaluated again.
    sampled = SystemRandom().sample(lines, min(evaluate or 0, len(lines)))
    if evaluate is not None:  # the few lines that decide which model is the merged one
        sampled += [line for line in lines if plan.nodes[line[0]].prefer and line not in sampled]
    first = leaves[0].open()
    with tempfile.TemporaryDirectory(prefix="mega_hf-verify-") as scratch:
        context = RebuildContext(claims, Path(scratch), sampled, first)
        for name, node in plan.nodes.items():
            inputs = {parent: sources[parent] for parent in node.parents}
            sources[name] = rebuild_node(context, name, node, inputs)
        root = Path(scratch) / plan.merged
        if claims.model is not None:
            load = partial(open_model, claims.model, "merged")
            sources[root.name] = replace(sources[root.name], load=load)
        rows = [row for _, row in opened.values()]
        unchecked = compare_record(claims, context.merged, rows, first)
        seconds, remeasured = time.perf_counter() - began, None
        if evaluate is None:
            if context.recomputed:
                unchecked.append("BatchNorm's statistics: this takes the data, --evaluate K")
            unchecked.append(
                "accuracies, and the counts in the journal: this takes the data, --evaluate K"
            )
        else:
            names = [source.name for source in leaves]
            aligned = alignment(plan.merges[plan.final], names, claims.record_of(plan.final))
            merges, baselines = [sources[name] for name in plan.nodes], Path(scratch) / ".baselines"
            rebuilt = Rebuilt(
                first, leaves, merges, context.chosen, context.recomputed, aligned, baselines
            )
            remeasured = remeasure(claims, rebuilt, data, Progress(progress))
        claimed = claims.record.digests
        digests = {"weights": claimed.weights, "claimed_file": claimed.file}
        is_open = any(not one.is_known for one in context.recomputed if one.name == root.name)
        if remeasured is not None or not is_open:
            digests["file"] = merged_digest(root)
    return Verification(
        claims.name,
        len(leaves),
        len(lines),
        seconds,
        digests,
        claims.model is not None,
        unchecked,
        remeasured,
    )


def _references(
    claims: RunClaims, given: dict[str, str], trained: Path | None
) -> dict[str, tuple[ParentRef, Path | None]]:
    """Return each parent's reference, and its folder if it was trained for the run."""
    leaves = claims.recipe.leaves(None)
    unknown = [name for name in given if name not in leaves]
    if unknown:
        raise RecipeError(
            f"there is no parent {unknown[0]}",
            where="--parent",
            expected=f"one of {', '.join(leaves)}",
            got=unknown[0],
            hint="fix the name",
        )
    found: dict[str, tuple[ParentRef, Path | None]] = {}
    for name in leaves:
        reference, place = claims.recipe.parents[parent_name(name)], None
        if name in given:
            path = resolve_path(given[name])
            is_file = isinstance(reference, WeightsParent) and Path(path).is_file()
            reference = reference.model_copy(update={"weights": path}) if is_file else path  # type: ignore[union-attr]
        elif isinstance(reference, TrainedParent):
            folders = [folder / name for folder in (trained, claims.folder / "parents") if folder]
            place = next((folder for folder in folders if folder.is_dir()), None)
        found[name] = (reference, place)
    missing = [name for name, (reference, place) in found.items() if _is_missing(reference, place)]
    if missing:
        shown = " ".join(f"--parent {name}=PATH" for name in missing)
        made = [isinstance(found[name][0], TrainedParent) for name in missing]
        were = (
            "trained for the run, and are not in its folder"
            if all(made)
            else "local where the run was made"
        )
        more = "; or --parents DIR, where mega-hf train made them again" if any(made) else ""
        raise ParentError(
            f"these parents were {were}",
            where=claims.name,
            expected="a path for each",
            got=f"none for {', '.join(missing)}",
            hint=f"add {shown}{more}",
        )
    return found


def _is_missing(reference: ParentRef, place: Path | None) -> bool:
    if isinstance(reference, TrainedParent):
        return place is None
    path = reference.weights if isinstance(reference, WeightsParent) else reference
    return isinstance(path, LocalPlaceholder)


def _open_parent(
    claims: RunClaims, name: str, reference: ParentRef, place: Path | None
) -> tuple[ModelSource, ParentRow]:
    """Open a parent, and return it with its entry in the record.

    Raises:
        VerificationError: the parent is not the one that was merged.
    """
    try:
        opened = open_parent(name, reference, place)
    except ParentError as error:
        if place is None:
            raise
        raise VerificationError.from_error(f"parent {name}", error, COPY) from None
    expected, got = claims.parents.get(name, "none"), opened.parent.sha256
    if got != expected:
        raise VerificationError(
            "not the parent that was merged: another one, or changed since",
            where=f"parent {name}",
            expected=f"weights {expected}",
            got=got,
            hint="give the original parent with --parent NAME=PATH, or its pinned revision",
        )
    origin = origin_of(name, claims.recipe.parents[parent_name(name)])
    said = next((row for row in claims.record.parents if row.name == name), None)
    license = said.license_fields if said else {}
    if "hub" in opened.parent.source:  # a local folder may have another card by now
        license = opened.parent.license or {}
    row = ParentRow.model_validate({"name": name, **origin, **license, "sha256": got})
    return source_of(name, reference, opened), row
