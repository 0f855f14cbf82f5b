"""What result.json and the card say of a run, held against what was made again and against each
other: no data."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mega_hf.errors import HubError, RunError, VerificationError
from mega_hf.evaluation.statistics import bootstrap_interval, sign_test
from mega_hf.models.compatibility import disagreements
from mega_hf.models.load import open_model
from mega_hf.models.loaded import LoadedModel, plain
from mega_hf.models.merge_inputs import is_recalibrated
from mega_hf.models.references import origin_of
from mega_hf.recipe.baselines import SECOND_LOOK, is_aligned
from mega_hf.recipe.merge import Node
from mega_hf.recipe.paths import is_local
from mega_hf.recipe.placeholders import LocalPlaceholder, is_placeholder, references
from mega_hf.recipe.tree import parent_name
from mega_hf.report.card import existing_card, render_card
from mega_hf.report.card_edits import has_own_words, split_card, tells_of
from mega_hf.report.record import PairedTest
from mega_hf.report.result import NAME as RESULT
from mega_hf.report.table import Report
from mega_hf.run.auto import choice_of
from mega_hf.run.candidates import paired_against, recalibrated, tolerance
from mega_hf.run.folder import CARD
from mega_hf.run.journal import NodeRecord
from mega_hf.run.parents import needs_calibration
from mega_hf.runtime.files import file_digest, folder_digest, merged_digest
from mega_hf.search.evolve import Outcome
from mega_hf.search.population import Fitness
from mega_hf.verification.claims import OTHERWISE, RunClaims, changed, is_loaded
from mega_hf.weights.space import StateDict


def compare_node(
    told: RunClaims,
    name: str,
    made: dict[str, Any],
    outcome: Outcome,
    known: NodeRecord,
    state: StateDict,
) -> None:
    """Compare a merge's digests, its best individual and its history with what the replay gave.

    Statistics that follow from pictures, and what holds them, are not in `made` where they aren't
    known.

    Raises:
        VerificationError: they differ.
    """
    claimed, line = told.nodes[name].digests.to_dict(), known.merged or {}
    for what in ("weights", "statistics", "state"):
        if made.get(what, claimed[what]) == claimed[what] == line.get(what):
            continue
        if what not in made:
            raise changed(RESULT, f"{what} of {name}", line.get(what), claimed[what])
        if made[what] == line.get(what):
            raise changed(RESULT, f"{what} of {name}", made[what], claimed[what])
        raise VerificationError(
            f"the replay gives other {what} than {name} had{told.differ(name, state)}",
            where="journal.jsonl",
            expected=claimed[what],
            got=made[what],
            hint=OTHERWISE,
        )
    parameters = told.result.record.parameters
    if parameters != made["parameters"]:
        raise changed(RESULT, "the number of parameters", made["parameters"], parameters)
    search, best = told.nodes[name].search.to_dict(), outcome.best
    found = {
        "correct": best.fitness.correct,
        "n": best.fitness.seen,
        "evaluations": len(known),
        "node": name,
    }
    node = told.recipe.all_nodes(told.ranking)[name]
    full = node.evaluations * told.shown(name, made["recomputes"])
    found |= {"pictures_evaluated": known.examples, "pictures_full": full}
    found |= {"generation": best.generation, "index": best.index}
    if any(search.get(key) != value for key, value in found.items()):
        raise changed(RESULT, f"the best individual of {name}", found, search)
    if [dict(g) for g in told.nodes[name].history] != [vars(g) for g in outcome.history]:
        raise changed(RESULT, f"the history of {name}", "what the journal gives", "another")
    if name == SECOND_LOOK:
        _compare_choice(told, known, best.index)
    else:
        _compare_validation(told, name, best.fitness.low, best.fitness.high)


def _compare_choice(told: RunClaims, known: NodeRecord, best: int) -> None:
    """Compare what is said of the second look with its lines in the journal."""
    said, names = told.result.record.second_look, told.nodes[SECOND_LOOK].parents
    assert said is not None
    recorded = [known.find(1, i, None) or Fitness(None, 0) for i in range(len(names))]
    counted = [(name, one.correct, one.seen) for name, one in zip(names, recorded, strict=True)]
    got = [(one.name, one.correct, one.n) for one in said.finalists]
    if counted != got or said.chosen != names[best]:
        raise changed(
            RESULT, "the second look", f"{names[best]}, of {counted}", f"{said.chosen}, of {got}"
        )


def _compare_validation(told: RunClaims, name: str, low: int, high: int) -> None:
    """Compare a merge's row of the table with the search's own count: the same weights on the same
    rows."""
    wanted = "merged" if name == told.root else name
    row = next((m for m in told.result.report.models if m.name == wanted), None)
    if row is None:
        raise changed(RESULT, "the table of models", f"a row of {name}", "none")
    counted, allowed = row.validation.correct, tolerance(told.rows)
    if not low - allowed <= counted <= high + allowed:
        expected = f"{low} of {told.rows}, as the search counted, up to {allowed} either way"
        raise changed(RESULT, f"{name} on validation", expected, counted)


def compare_intermediate(told: RunClaims, name: str, made: LoadedModel) -> None:
    """Compare an intermediate model, or its SHA-256 where it was not kept, with the one made again.

    Raises:
        VerificationError: they differ.
    """
    claimed, here = told.nodes[name].digests.file, merged_digest(_folder_of(made))
    if here != claimed:
        was = (told.record_of(name).merged or {}).get("file")
        raise (
            changed(RESULT, f"file of {name}", here, claimed)
            if was == here
            else _other_file(claimed, here)
        )
    folder = told.folder / "nodes" / name
    if folder.is_dir():
        stored = merged_digest(folder)
        if stored != here:
            raise changed(
                f"nodes/{name}", f"the weights{told.differ(name, made.state())}", here, stored
            )
        _compare_configuration(folder, made, f"nodes/{name}", os.listdir(folder))


def compare_model(told: RunClaims, made: LoadedModel) -> None:
    """Compare the final model, or its SHA-256 where it is not there, with the one made again.

    Raises:
        VerificationError: they differ.
    """
    claimed, here = told.digests.file, merged_digest(_folder_of(made))
    if told.model is None:
        if here != claimed:
            raise changed(RESULT, "the file's SHA-256", here, claimed)
        return
    stored = merged_digest(told.model)
    if stored != claimed:
        if stored == here:
            raise changed(RESULT, "the file's SHA-256", here, claimed)
        name = next(
            (path.name for path in sorted(told.model.glob("*.safetensors"))), "*.safetensors"
        )
        raise changed(name, f"the weights{told.differ(told.root, made.state())}", claimed, stored)
    if stored != here:
        raise _other_file(stored, here)
    _refuse_changed_files(told, told.model)
    _compare_configuration(told.model, made, "merged", told.beside_model)


def _refuse_changed_files(told: RunClaims, model: Path) -> None:
    """See that the files beside the model's weights are as the run left them."""
    files = told.result.record.files
    listed = {name: sha for name, sha in files.items() if "/" not in name}
    for name, expected in listed.items():
        got = file_digest(model / name) if (model / name).is_file() else "none"
        if got != expected:
            raise changed(name, "the model's files", expected, got)
    left = (told.record_of(told.root).merged or {}).get("folder")
    if not files and folder_digest(model) != left:
        raise changed("merged", "the model's files", left, folder_digest(model))


def _compare_configuration(
    stored: Path, made: LoadedModel, where: str, names: Iterable[str]
) -> None:
    """Compare what else decides a stored model's answers, and see that nothing lies there to be
    loaded with it."""
    differing, folder = disagreements(made, open_model(stored, "stored")), _folder_of(made)
    if differing:
        what, expected, got = differing[0]
        raise changed(where, f"the model's {what}", expected, got)
    foreign = [name for name in names if is_loaded(name) and not (folder / name).exists()]
    if foreign:
        expected = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise changed(
            where, "files that would be loaded with the model", expected, ", ".join(sorted(foreign))
        )


def _folder_of(made: LoadedModel) -> Path:
    assert made.folder is not None, "it was saved before it was opened"
    return made.folder


def _other_file(expected: str, got: str) -> VerificationError:
    return VerificationError(
        "the same weights give another file here",
        where="*.safetensors",
        expected=expected,
        got=got,
        hint=(
            "the releases of safetensors and transformers that made the run; the weights are the"
            " same"
        ),
    )


def compare_record(told: RunClaims, nodes: Mapping[str, Node], first: LoadedModel) -> list[str]:
    """See that nothing in result.json contradicts the recipe, the parents, or itself; nor the card
    result.json.

    Args:
        told: what the run says.
        nodes: the recipe's merges.
        first: the first parent's model.

    Returns:
        what could not be compared, in words.

    Raises:
        VerificationError: something does.
    """
    record, final, leaves = told.result.record, nodes[told.searched], told.recipe.leaves(None)
    level = dict.fromkeys(nodes, 1) | told.lineup.plan.levels
    searched, last = told.nodes[told.searched], told.nodes[told.root]
    header, environment = told.journal.header or {}, record.environment
    facts: dict[str, tuple[Any, Any]] = {
        "the name": (told.recipe.name, record.name),
        "the library": (first.library, record.library),
        "the architecture": (first.structure.get("architecture", ""), record.architecture),
        "the number of channels": (first.input_shape[0], record.channels),
        "the search": (searched.search.to_dict(), record.search.to_dict()),
        "the history": ([dict(g) for g in searched.history], [dict(g) for g in record.history]),
        "the device": (header["device_kind"], environment.device_kind),
        "the forward path": (header["forward_path"], environment.forward_path),
        "whether calibration rows were shown": (
            needs_calibration(nodes.values(), first.model),
            "calibration" in told.splits,
        ),
        "whether parents were recalibrated too": (
            is_recalibrated(final, first.model),
            told.is_recalibrated_run,
        ),
        "whether their aligned average stands there": (is_aligned(final, leaves), told.has_aligned),
        "whether rows were kept for a second look": (
            SECOND_LOOK in nodes,
            SECOND_LOOK in told.splits,
        ),
        "what was chosen for it": (
            choice_of(told.journal, told.recipe),
            record.chosen and record.chosen.to_dict(),
        ),
        "the digests": (
            {**told.digests.to_dict(), **last.digests.to_dict()},
            told.digests.to_dict(),
        ),
    }
    for name, node in nodes.items():
        said = told.nodes[name]
        facts[f"the parents of {name}"] = (node.parents, said.parents)
        facts[f"the level of {name}"] = (level[name], said.level)
        facts[f"the settings of {name}"] = (node.settings, said.merge)
    for what, (expected, got) in facts.items():
        if plain(expected) != plain(got):
            raise changed(RESULT, what, _short(expected), _short(got))
    compare_origins(told)
    compare_order(told)
    _compare_table(told)
    _compare_paired(told)
    return [*_compare_card(told), *_unchecked(told)]


def _compare_table(told: RunClaims) -> None:
    expected = told.lineup.rows()
    got = [(model.name, model.role, model.level) for model in told.result.report.models]
    if expected != got:
        raise changed(RESULT, "the table of models", expected, got)


def _compare_paired(told: RunClaims) -> None:
    """The paired tests tell of the same rows as the table, and what they conclude follows from
    their counts."""
    report, expected = told.result.report, paired_against(told.result.report.models)
    found = dict(
        zip(("paired", "paired_soup"), (one.against for one in report.comparisons), strict=False)
    )
    if found != expected:
        raise changed(RESULT, "whom the paired tests are against", expected, found)
    for paired in report.comparisons:
        _compare_pair(report, paired)


def _compare_pair(report: Report, paired: PairedTest) -> None:
    other = report.record.row(paired.against)
    gain = report.merged.test.correct - other.test.correct
    only_merged, only_other = paired.only_merged_right, paired.only_other_right
    if only_merged - only_other != gain:
        expected = f"{gain} right answers apart, as in the table"
        raise changed(RESULT, "the paired test", expected, only_merged - only_other)
    p = sign_test(only_merged, only_other)
    if not math.isclose(p, paired.p, rel_tol=1e-6):
        raise changed(RESULT, "the paired test's p", p, paired.p)
    n, ends = other.test.n, (paired.low, paired.high)
    interval = bootstrap_interval(only_merged, only_other, n)
    if not all(math.isclose(a, b, abs_tol=1.5 / n) for a, b in zip(interval, ends, strict=True)):
        raise changed(RESULT, "the interval of the difference", interval, ends)


def _compare_card(told: RunClaims) -> list[str]:
    """The generated part of a card, if one lies there, is what this result gives; return what it
    says beside that."""
    release, here = told.result.record.environment.versions.get("mega_hf"), version("mega_hf")
    try:
        there, new = existing_card(told.result), render_card(told.result)
        if there is None:
            return [f"the card: there is no {CARD}"]
        is_told, other_figures = tells_of(there.text, new)
    except (HubError, RunError) as error:
        where = CARD if isinstance(error, HubError) else RESULT
        raise VerificationError.from_error(where, error, "another copy of the run") from None
    if other_figures or (not is_told and release == here):
        raise changed(
            CARD, "the generated part of the card", "what result.json gives", "another text"
        )
    if not is_told:
        return [f"{CARD}, which mega_hf {release} wrote in other words than {here} has"]
    is_own = split_card(there.text)[0] != split_card(new)[0] or has_own_words(there.text)
    return [f"what was written into {CARD} by hand"] if is_own else []


def _unchecked(told: RunClaims) -> list[str]:
    """Return what a record says that nothing here depends on."""
    trained = [parent.name for parent in told.result.record.parents if parent.train]
    repository = told.result.record.repository
    unseen = (
        [f"how {', '.join(trained)} were trained: their weights are taken as they lie there"]
        if trained
        else []
    )
    if repository and not told.name.startswith(f"{repository}@"):
        unseen.append(f"{repository}, which the card says that it lies in")
    unseen += ["what else lies in the repository: it can't be asked"] if told.paths == [] else []
    return [*unseen, "plots, times, releases, and what is said of licenses and under Limits"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:98]} ... {text[-98:]}"


def compare_origins(told: RunClaims) -> None:
    """See that result.json gives parents and data the origin that recipe.yaml gives them.

    Raises:
        VerificationError: it gives another one.
    """
    parents = told.result.record.parents
    names, leaves = [parent.name for parent in parents], told.recipe.leaves(None)
    if sorted(names) != sorted(leaves):
        raise changed(RESULT, "its parents", ", ".join(leaves), ", ".join(names))
    for parent in parents:
        given = parent.origin
        expected = origin_of(parent.name, told.recipe.parents[parent_name(parent.name)])
        if given != expected:
            raise changed(RESULT, f"where the parent {parent.name} came from", expected, given)
    wanted, given = told.recipe.data, told.data.source.to_dict()
    source: dict[str, Any] = {"hub": wanted.path, "revision": wanted.revision}
    if isinstance(wanted.path, LocalPlaceholder) or is_local(wanted.path):
        source = origin_of("data", wanted.path)
    if given != source:
        raise changed(RESULT, "where the data came from", source, given)
    for split, info in told.splits.items():
        said = wanted.text_of(split, info.rows)
        if info.spec != said:
            raise changed(RESULT, f"what the {split} rows are", said, info.spec)
    _compare_placeholders(told)


def _compare_placeholders(told: RunClaims) -> None:
    """What stands in a recipe for something local names its content: that of the parents and rows
    of this run."""
    ours = told.recipe.to_dict()
    known: dict[str, Any] = {
        "data.path": {name: split.sha256 for name, split in told.splits.items()}
    }
    for name, sha256 in told.parents.items():
        known |= {f"parents.{name}": sha256, f"parents.{name}.weights": sha256}
    here = {key: inner[key[-1]] for key, inner in references(ours)}
    for where, tree in (("recipe.yaml", ours), (RESULT, told.result.record.recipe)):
        for key, value in _placeholders(tree):
            name, content = ".".join(key), value.get("sha256")
            if content is not None and content != known.get(name, content):
                raise changed(where, f"the content of {name}", known[name], content)
            written: Any = here.get(key)
            local = written["local"] if is_placeholder(written) else Path(str(written)).name
            if value["local"] != local:
                raise changed(where, f"what {name} was called", local, value["local"])


def _placeholders(tree: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    return (
        (key, inner[key[-1]]) for key, inner in references(tree) if is_placeholder(inner[key[-1]])
    )


def compare_order(told: RunClaims) -> None:
    """See that `order: accuracy` took the parents in the order of the accuracies that the run
    recorded.

    Raises:
        VerificationError: it did not.
    """
    if told.recipe.order != "accuracy":
        return
    names, order = list(told.recipe.parents), told.journal.order
    if (
        order is None
        or sorted(order["ranking"]) != sorted(names)
        or order["correct"].keys() != set(names)
    ):
        raise VerificationError(
            "it does not rank the parents",
            where="journal.jsonl",
            expected=", ".join(names),
            got=order and order["ranking"],
            hint="another copy of the run",
        )
    ranking = sorted(names, key=lambda name: -order["correct"][name])
    if ranking != order["ranking"]:
        raise changed("journal.jsonl", "the parents' order", ranking, order["ranking"])
    as_listed = (
        {recalibrated(name): name for name in names}
        if told.is_recalibrated_run
        else {name: name for name in names}
    )
    for model in told.result.report.models:
        counted = order["correct"].get(as_listed.get(model.name))
        if counted is not None and abs(max(counted, 0) - model.validation.correct) > tolerance(
            told.rows
        ):
            raise changed(RESULT, f"{model.name} on validation", counted, model.validation.correct)
