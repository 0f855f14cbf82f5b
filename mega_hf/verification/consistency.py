"""Rebuild a run's record from recipe, journal and parents, and compare it with result.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from itertools import zip_longest
from math import isclose
from typing import Any

from mega_hf.errors import HubError, RunError, VerificationError
from mega_hf.evaluation.statistics import bootstrap_interval, sign_test
from mega_hf.hub.bundle import RECIPE
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.merge_inputs import is_recalibrated
from mega_hf.models.references import origin_of
from mega_hf.recipe.baselines import SECOND_LOOK, is_aligned
from mega_hf.recipe.paths import is_local
from mega_hf.recipe.placeholders import Key, is_placeholder, references
from mega_hf.report.card import existing_card, render_card
from mega_hf.report.card_edits import has_own_words, split_card, tells_of
from mega_hf.report.record import (
    DataInfo,
    DataSource,
    ModelRow,
    PairedTest,
    ParentRow,
    RunRecord,
    SplitInfo,
)
from mega_hf.report.result import NAME as RESULT
from mega_hf.run.candidates import ReportRows, paired_against, recalibrated, tolerance
from mega_hf.run.folder import CARD
from mega_hf.run.journal import NAME as JOURNAL
from mega_hf.run.node import MergedNode
from mega_hf.run.parents import needs_calibration
from mega_hf.run.record import describe_merges, hide_paths
from mega_hf.verification.claims import COPY, RunClaims, changed


def compare_record(
    claims: RunClaims,
    merged: Mapping[str, MergedNode],
    parents: list[ParentRow],
    model: LoadedModel,
) -> list[str]:
    """Compare result.json with the record that recipe, journal and parents give, and the card.

    Args:
        claims: the run.
        merged: the replayed merges, by name.
        parents: the parents as they were opened.
        model: the first parent's.

    Returns:
        the parts of the run that were not compared, in words.

    Raises:
        VerificationError: they differ; the message names the entry.
    """
    _check_order(claims)
    _check_placeholders(claims)
    rebuilt = rebuild_record(claims, merged, parents, model)
    for path, expected, got in differences(rebuilt, claims.record.to_dict()):
        what = f"{path}: {expected}, not {got}"
        raise changed(RESULT, what, "the record that recipe, journal and parents give", "another")
    _check_counts(claims, merged)
    return [*_compare_card(claims), *_list_unchecked(claims)]


def rebuild_record(
    claims: RunClaims,
    merged: Mapping[str, MergedNode],
    parents: list[ParentRow],
    model: LoadedModel,
) -> dict[str, Any]:
    """Return the record that a run must have, as plain values. Args: see `compare_record`.

    Entries that only the data, the clock or the machine give are taken from result.json.
    """
    record, recipe, plan, header = claims.record, claims.recipe, claims.plan, claims.header
    merges = [merged[name] for name in plan.merges]
    added = [merged[name] for name in plan.added]
    digests = {row.name: row.sha256 for row in parents}
    said = {key: block[key[-1]] for key, block in references(record.recipe)}

    def digest_of(key: Key, _: str) -> str | None:
        """Return the digest of a local model; of one that was not merged, what the record says."""
        other = said[key].get("sha256") if is_placeholder(said.get(key)) else None
        return other if key[-1] == "from" else digests.get(key[1], other)

    models = _rebuild_models(claims, model)
    derived = describe_merges(recipe, model, claims.journal, merges, added) | {
        "recipe": hide_paths(recipe, header["data"], digest_of),
        "models": models,
        "parents": parents,
        "data": _rebuild_data(claims, model),
        "environment": record.environment.model_copy(
            update={key: header[key] for key in ("device_kind", "forward_path")}
        ),
    }
    tree = record.model_copy(update=derived).to_dict()
    return tree | _rebuild_paired(record, models)


def differences(expected: Any, got: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (path, expected, got) for each entry in which two trees of plain values differ.

    Entries of a list are named by their `name`, if they have one.
    """
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in expected | got:
            inner = f"{path}.{key}" if path else str(key)
            yield from differences(expected.get(key), got.get(key), inner)
    elif isinstance(expected, list) and isinstance(got, list):
        for index, (one, other) in enumerate(zip_longest(expected, got)):
            named = one if one is not None else other
            name = named.get("name", index) if isinstance(named, dict) else index
            yield from differences(one, other, f"{path}.{name}")
    elif isinstance(expected, float) and isinstance(got, float):
        if not isclose(expected, got, rel_tol=1e-6):
            yield path, str(expected), str(got)
    elif expected != got or isinstance(expected, bool) != isinstance(got, bool):
        yield path, _short(expected), _short(got)


def _rebuild_models(claims: RunClaims, model: LoadedModel) -> list[ModelRow]:
    """Return the rows of the table, with the counts of result.json."""
    record, plan = claims.record, claims.plan
    final = plan.merges[plan.final]
    is_shown_aligned = is_aligned(final, plan.leaves)
    report_rows = ReportRows(plan, is_recalibrated(final, model.model), is_shown_aligned)
    said = {row.name: row for row in record.models}
    rows = {"validation": claims.rows_of(plan.final), "test": record.data.test.rows}
    models = []
    for name, role, level in report_rows.rows():
        if name not in said:
            raise changed(RESULT, f"models.{name} is missing", "a row", "none")
        counts = {
            split: getattr(said[name], split).model_copy(update={"n": n})
            for split, n in rows.items()
        }
        models.append(ModelRow.model_construct(name=name, role=role, level=level, **counts))
    return models


def _rebuild_data(claims: RunClaims, model: LoadedModel) -> DataInfo:
    """Return the entry on the data: rows and their digests as journaled, words as in the recipe."""
    wanted, said = claims.recipe.data, claims.record.data
    is_here = isinstance(wanted.path, str) and not is_local(wanted.path)
    source = (
        {"hub": wanted.path, "revision": wanted.revision}
        if is_here
        else origin_of("data", wanted.path)
    )
    rows = {name: split.rows for name, split in said.splits.items()}
    rows["validation"] = claims.rows_of(claims.plan.final)
    if claims.plan.selection:
        rows[SECOND_LOOK] = claims.rows_of(SECOND_LOOK)
    expected = {
        "validation": True,
        "test": True,
        "calibration": needs_calibration(claims.plan.nodes.values(), model.model),
        SECOND_LOOK: claims.plan.selection is not None,
    }
    splits = {
        name: SplitInfo.model_construct(
            rows=rows.get(name, 0),
            spec=wanted.text_of(name, rows.get(name, 0)),
            sha256=claims.header["data"].get(name, "none"),
        )
        if is_expected
        else None
        for name, is_expected in expected.items()
    }
    return said.model_copy(update={"source": DataSource(**source), **splits})


def _rebuild_paired(record: RunRecord, models: list[ModelRow]) -> dict[str, dict[str, Any]]:
    """Return the paired tests that follow from the table and from one count each."""
    correct, n = {row.name: row.test.correct for row in models}, models[-1].test.n
    rebuilt = {}
    for entry, against in paired_against(models).items():
        said: PairedTest | None = getattr(record, entry)
        few = said.only_other_right if said else 0
        more = few + correct["merged"] - correct[against]
        ends = dict(zip(("low", "high"), bootstrap_interval(more, few, n), strict=True))
        # Another release of numpy may move an end of the interval by a row.
        ends |= {
            key: getattr(said, key)
            for key, end in ends.items()
            if said and abs(end - getattr(said, key)) <= 1.5 / n
        }
        counts = {"only_merged_right": more, "only_other_right": few}
        rebuilt[entry] = {"against": against, **counts, "p": sign_test(more, few), **ends}
    return rebuilt


def _check_counts(claims: RunClaims, merged: Mapping[str, MergedNode]) -> None:
    """Check the table's validation counts by those of the search and of the ranking.

    Both evaluated the same weights on the same rows; rounding may move a few predictions.
    """
    rows, plan = claims.rows_of(claims.plan.final), claims.plan
    counted = {}
    for name, node in merged.items():
        if name != SECOND_LOOK:
            low = node.record["correct"]
            row = "merged" if name == plan.merged else name
            counted[row] = (low, low + rows - node.record["n"])
    order = (claims.journal.order or {}).get("correct", {}) if claims.ranking else {}
    for name, correct in order.items():
        row = recalibrated(name) if claims.record.is_recalibrated else name
        counted[row] = (max(correct, 0), max(correct, 0))
    for model in claims.record.models:
        low, high = counted.get(model.name, (0, rows))
        allowed, got = tolerance(rows), model.validation.correct
        if not low - allowed <= got <= high + allowed:
            what = f"models.{model.name}.validation.correct: {low}, not {got}"
            raise changed(RESULT, what, f"the search's count, up to {allowed} either way", got)


def _check_order(claims: RunClaims) -> None:
    """Check that `order: accuracy` took the parents in the order of the journaled accuracies."""
    if claims.recipe.order != "accuracy":
        return
    names, order = list(claims.recipe.parents), claims.journal.order
    if (
        order is None
        or sorted(order["ranking"]) != sorted(names)
        or order["correct"].keys() != set(names)
    ):
        raise VerificationError(
            "it does not rank the parents",
            where=JOURNAL,
            expected=", ".join(names),
            got=order and order["ranking"],
            hint=COPY,
        )
    ranking = sorted(names, key=lambda name: -order["correct"][name])
    if ranking != order["ranking"]:
        raise changed(JOURNAL, "the parents' order", ranking, order["ranking"])


def _check_placeholders(claims: RunClaims) -> None:
    """Check that the placeholders in recipe.yaml name the parents and rows of this run."""
    known: dict[str, Any] = {"data.path": claims.header["data"]}
    for name, sha256 in claims.parents.items():
        known |= {f"parents.{name}": sha256, f"parents.{name}.weights": sha256}
    for key, block in references(claims.recipe.to_dict()):
        name, value = ".".join(key), block[key[-1]]
        content = value.get("sha256") if is_placeholder(value) else None
        if content is not None and content != known.get(name, content):
            raise changed(RECIPE, f"the content of {name}", known[name], content)


def _compare_card(claims: RunClaims) -> list[str]:
    """Compare the generated part of the card; return what else the card says, in words."""
    release, here = claims.record.environment.versions.get("mega_hf"), version("mega_hf")
    try:
        card, rendered = existing_card(claims.result), render_card(claims.result)
        if card is None:
            return [f"the card: there is no {CARD}"]
        is_same, other_figures = tells_of(card.text, rendered)
    except (HubError, RunError) as error:
        where = CARD if isinstance(error, HubError) else RESULT
        raise VerificationError.from_error(where, error, COPY) from None
    if other_figures or (not is_same and release == here):
        raise changed(
            CARD, "the generated part of the card", "the text of result.json", "another text"
        )
    if not is_same:
        return [f"{CARD}, which mega_hf {release} worded differently from {here}"]
    has_own = split_card(card.text)[0] != split_card(rendered)[0] or has_own_words(card.text)
    return [f"text in {CARD} that was written by hand"] if has_own else []


def _list_unchecked(claims: RunClaims) -> list[str]:
    """Return the parts of a run that nothing here depends on, in words."""
    trained = [parent.name for parent in claims.record.parents if parent.train]
    repository = claims.record.repository
    unchecked = []
    if trained:
        unchecked.append(f"the training of {', '.join(trained)}: their weights are taken as given")
    if repository and not claims.name.startswith(f"{repository}@"):
        unchecked.append(f"{repository}, the repository that the card names")
    if claims.paths == []:
        unchecked.append("other files of the repository: the Hub can't be reached")
    return [*unchecked, "plots, times, versions, licenses of local parents, and limits"]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 120 else f"{text[:58]} ... {text[-58:]}"
