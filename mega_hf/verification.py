"""`verify`: recipe, journal and parents give the merged weights again, bit for bit, or an error names what lies."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from secrets import SystemRandom
from typing import Any

from mega_hf.absent import is_absent
from mega_hf.claims import compare_intermediate, compare_model, compare_node, compare_record
from mega_hf.errors import ParentError, RecipeError, RunError, VerificationError
from mega_hf.evaluation.individuals import Genomes, Interval
from mega_hf.evaluation.replay import Replay, Unrecorded
from mega_hf.files import merged_digest
from mega_hf.genetic.selection import Undecided
from mega_hf.hf.models import open_model
from mega_hf.hf.parents import open_parent
from mega_hf.hf.save import layout_digest, save_model
from mega_hf.inputs import Source, encode, open_inputs
from mega_hf.journal import NodeRecord
from mega_hf.nodes import search_node
from mega_hf.progress import Progress
from mega_hf.recomputing import Replayed, known_statistics
from mega_hf.remeasuring import Chosen, Makings, Remeasured, place_of, remeasure
from mega_hf.settings import Node, ParentRef, TrainedParent, WeightsParent
from mega_hf.testimony import OTHERWISE, Testimony, changed, read_testimony
from mega_hf.tree import base
from mega_hf.weights.encoding import Encoding
from mega_hf.weights.space import digest

_OPEN = "not made again: there is no model beside it, and BatchNorm's statistics take the data, --evaluate K"
_COPY = "another copy of the run, or another machine"


@dataclass(frozen=True)
class Verification:
    """A run that was reproduced; `str` says so in a few lines."""

    run: str
    parents: int
    evaluations: int
    seconds: float
    digests: dict[str, str]  # weights, file: of what was made again; no file where statistics are open
    has_model: bool  # whether there was a model to compare with, and not its digests alone
    unchecked: list[str]  # what of the run's claims was not, in words
    remeasured: Remeasured | None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        more = {"remeasured": self.remeasured.to_dict() if self.remeasured else None}
        return {name: value for name, value in vars(self).items() if name != "remeasured"} | more

    def __str__(self) -> str:
        compared = "the model's own" if self.has_model else "result.json's; there is no model beside it"
        lines = [
            f"reproduced bit for bit from {self.parents} parents and {self.evaluations:,} recorded evaluations "
            f"in {self.seconds:.1f} seconds",
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
    """Make a merge again from its recipe, its journal and its parents, and compare.

    Args:
        run: a run folder, a copy of one (with or without the model), or a repository ORG/NAME[@REVISION].
        parents: where parents lie that were local where the run was made: name -> folder or reference.
        trained: a folder with parents that were trained for the run, each under its name.
        evaluate: so many random lines of the journal are measured again, and every accuracy that is claimed, those
            of parents and baselines too; this alone needs the data set.
        data: the data set, where it was local.
        progress: show bars while measuring.

    Raises:
        VerificationError: something was changed, or is not what it claims to be; `where` names it.
        MegaError: something can't be read, or a parent's place is not known.
    """
    began = time.perf_counter()
    told = read_testimony(run)
    references = _references(told, dict(parents or {}), Path(trained) if trained is not None else None)
    sources = {name: _open_source(told, name, *reference) for name, reference in references.items()}
    nodes = told.recipe.nodes(told.ranking)
    lines = [(name, *at) for name in nodes for at in told.record_of(name)]
    # By no seed: a forger must not know which lines will be measured again.
    wanted = SystemRandom().sample(lines, min(evaluate, len(lines))) if evaluate is not None else []
    chosen: list[Chosen] = []
    recomputed: list[Replayed] = []
    leaves = list(sources.values())
    first = leaves[0].open()
    with tempfile.TemporaryDirectory(prefix="mega_hf-verify-") as scratch:
        for name, node in nodes.items():
            inputs = {parent: sources[parent] for parent in node.parents}
            kept = {(generation, index) for at, generation, index in wanted if at == name}
            sources[name] = _replay(told, name, node, inputs, Path(scratch) / name, kept, chosen, recomputed)
        root = Path(scratch) / next(reversed(nodes))
        if told.model is not None:
            load = partial(open_model, told.model, "merged")
            sources[root.name] = replace(sources[root.name], load=load)
        unseen = compare_record(told, nodes, first)
        seconds = time.perf_counter() - began
        if evaluate is None:
            again = None
            unseen += ["BatchNorm's statistics: they take the data, --evaluate K"] if recomputed else []
            unseen.append("accuracies, and the counts in the journal: that takes the data, --evaluate K")
        else:
            merges, baselines = [sources[name] for name in nodes], Path(scratch) / ".baselines"
            made = Makings(first, leaves, merges, chosen, recomputed, baselines)
            again = remeasure(told, made, data, Progress(progress))
        digests = {"weights": told.nodes[root.name]["digests"]["weights"]}
        if again is not None or all(one.is_known for one in recomputed if one.name == root.name):
            digests["file"] = merged_digest(root)
    return Verification(told.name, len(leaves), len(lines), seconds, digests, told.model is not None, unseen, again)


def _references(
    told: Testimony, given: dict[str, str], trained: Path | None
) -> dict[str, tuple[ParentRef, Path | None]]:
    """Return where each parent is: its reference, and its folder if it was trained for the run."""
    leaves = told.recipe.leaves(None)
    unknown = [name for name in given if name not in leaves]
    if unknown:
        raise RecipeError(
            f"there is no parent {unknown[0]}", where="--parent", expected=f"one of {', '.join(leaves)}",
            got=unknown[0], remedy="mend it",
        )  # fmt: skip
    found: dict[str, tuple[ParentRef, Path | None]] = {}
    for name in leaves:
        reference, place = told.recipe.parents[base(name)], None
        if name in given:
            path = place_of(given[name])
            is_file = isinstance(reference, WeightsParent) and Path(path).is_file()
            reference = reference.model_copy(update={"weights": path}) if is_file else path  # type: ignore[union-attr]
        elif isinstance(reference, TrainedParent):
            folders = [folder / name for folder in (trained, told.folder / "parents") if folder is not None]
            place = next((folder for folder in folders if folder.is_dir()), None)
        found[name] = (reference, place)
    missing = [name for name, (reference, place) in found.items() if _is_missing(reference, place)]
    if missing:
        shown = " ".join(f"--parent {name}=PATH" for name in missing)
        made = [isinstance(found[name][0], TrainedParent) for name in missing]
        were = "trained for the run, and don't lie beside it" if all(made) else "local where the run was made"
        more = "; or --parents DIR, where mega-hf train made them again" if any(made) else ""
        raise ParentError(
            f"these parents were {were}", where=told.name, expected="a place for each",
            got=f"none for {', '.join(missing)}", remedy=f"add {shown}{more}",
        )  # fmt: skip
    return found


def _is_missing(reference: ParentRef, place: Path | None) -> bool:
    if isinstance(reference, TrainedParent):
        return place is None
    text = reference.weights if isinstance(reference, WeightsParent) else reference
    return is_absent(text)


def _open_source(told: Testimony, name: str, reference: ParentRef, place: Path | None) -> Source:
    try:
        opened = open_parent(name, reference, place)
    except ParentError as error:
        if place is None:
            raise
        raise VerificationError.blaming(f"parent {name}", error, _COPY) from None
    claimed = told.parents.get(name, "none")
    if opened.parent.sha256 != claimed:
        raise VerificationError(
            "not the parent that was merged: it is another one, or was changed since", where=f"parent {name}",
            expected=f"weights {claimed}", got=opened.parent.sha256,
            remedy="the parent as it was then: --parent NAME=PATH, or its pinned revision",
        )  # fmt: skip
    licence, said = opened.parent.licence or {}, told.licence_of(name)
    if "hub" in opened.parent.source and said != licence:  # of another folder's card nothing follows
        raise changed("result.json", f"the licence of the parent {name}", licence, said)
    folder = opened.model.folder
    load = partial(open_model, folder, name) if folder else lambda: open_parent(name, reference, place).model
    return Source(name, claimed, layout_digest(opened.model), load, opened.model.files)


@dataclass(frozen=True)
class _Keeping:
    """A replay that keeps the weights of some individuals, to be measured again."""

    node: str
    replay: Replay
    encoding: Encoding
    kept: set[tuple[int, int]]
    chosen: list[Chosen]

    def __call__(self, population: Genomes, tournaments: list[list[int]], elite: Interval | None) -> list[Interval]:
        known = self.replay(population, tournaments, elite)
        for index, (correct, seen, unseen) in enumerate(known):
            if (population.generation, index) in self.kept:
                state = dict(self.encoding.entries(population.genomes[index].clone()))
                at = (self.node, population.generation, index)
                lacking = self.encoding.space.recomputed
                self.chosen.append(Chosen(*at, correct, seen + unseen, unseen, state, lacking))
        return known


def _replay(
    told: Testimony, name: str, node: Node, inputs: dict[str, Source], target: Path, kept: set[tuple[int, int]],
    chosen: list[Chosen], made_again: list[Replayed],
) -> Source:  # fmt: skip
    """Make one merge again at `target`, and compare it with what journal and result say of it."""
    opened = open_inputs(inputs, node.recalibrates)
    first, space, encoding = opened.first, opened.space, encode(opened, node)
    known = told.record_of(name)
    replay = Replay(known, told.rows, encoding.digest)
    with _blaming(name, known):
        _refuse_few(node, known)
        try:
            outcome = search_node(name, node, encoding, _Keeping(name, replay, encoding, kept, chosen))
        except RunError as error:  # bred otherwise: by how much, in the end?
            loosely = search_node(name, node, encoding, Replay(known, told.rows, None))
            error.what += told.differ(name, dict(encoding.entries(loosely.best.genome)))
            raise
    _refuse_more(name, known, replay.asked)
    best = outcome.best
    state = dict(encoding.entries(best.genome))
    made = {"weights": space.learned_digest(state), "parameters": space.learned_size}
    stored = known_statistics(told, name, space)
    is_known = stored is not None
    state |= stored if stored is not None else {n: next(iter(opened.states.values()))[n] for n in space.recomputed}
    if is_known:
        made |= {"statistics": space.statistics_digest(state), "state": digest(state)}
    compare_node(told, name, made, outcome, known, state)
    save_model(target, first, state)
    model = open_model(target, name)
    if not is_known:
        made_again.append(Replayed(name, target, False))
    elif name == told.root:
        compare_model(told, model)
    else:
        compare_intermediate(told, name, model)
    if is_known and space.recomputed:
        made_again.append(Replayed(name, target, True))
    return Source(name, digest(model.view()), layout_digest(model), partial(open_model, target, name), model.files)


def _refuse_few(node: Node, known: NodeRecord) -> None:
    """See that the founders were recorded, before room is made for as many as the recipe asks for."""
    founders = {index for generation, index in known if generation == 1}
    if len(founders) < node.population_size:
        raise Unrecorded(f"the {node.population_size - len(founders)} other founders")


def _refuse_more(name: str, known: NodeRecord, asked: set[tuple[int, int]]) -> None:
    """See that the search had to do with every line: others tell of nothing, and would be counted all the same."""
    more = [at for at in known if at not in asked]
    if more:
        generation, index = more[0]
        raise VerificationError(
            f"lines that no search of {name} asks for", where="journal.jsonl", expected=f"{len(asked)} at most",
            got=f"{len(more)} more, the first on individual {index} of generation {generation}", remedy=_COPY,
        )  # fmt: skip


@contextmanager
def _blaming(name: str, known: NodeRecord) -> Iterator[None]:
    """Turn what keeps a journal from being replayed into a VerificationError that names the place."""
    try:
        yield
    except (Unrecorded, Undecided) as error:
        lacks = f"its lines don't tell of {error} of {name}" if isinstance(error, Unrecorded) else f"{name}: {error}"
        raise VerificationError(
            lacks, where="journal.jsonl", expected="lines that decide every tournament", got=f"{len(known)} lines",
            remedy=_COPY,
        ) from None  # fmt: skip
    except RunError as error:
        raise VerificationError.blaming("journal.jsonl", error, OTHERWISE) from None
