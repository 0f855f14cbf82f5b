"""What a run's files say of it, read from a folder or a repository, and whether they agree with
each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from mega_hf.errors import HubError, MegaError, ParentError, RunError, VerificationError
from mega_hf.hub import repository as hub
from mega_hf.hub.bundle import OURS, RECIPE, copied_models
from mega_hf.models.load import open_model
from mega_hf.recipe.baselines import SECOND_LOOK, names_merged
from mega_hf.recipe.paths import is_local
from mega_hf.recipe.placeholders import same_but_placeholders
from mega_hf.recipe.plan import plan_merges
from mega_hf.recipe.schema import Recipe
from mega_hf.report.record import DataInfo, NodeResult, RunDigests, SplitInfo
from mega_hf.report.result import NAME as RESULT
from mega_hf.report.result import MergeResult
from mega_hf.run.candidates import ALIGNED, ReportRows
from mega_hf.run.folder import read_stored
from mega_hf.run.journal import NAME as JOURNAL
from mega_hf.run.journal import Journal, NodeRecord
from mega_hf.runtime.files import file_digest
from mega_hf.weights.space import StateDict, largest_difference

_COPY = "another copy of the run"
_LOADED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "adapter_config.json",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.pkl",
    "*.py",
)
# Why a replay gives something else.
OTHERWISE = (
    "journal.jsonl was changed, or this machine breeds otherwise: another copy, or another machine"
)


@dataclass(frozen=True)
class RunClaims:
    """A finished run's recipe, journal and result, which agree with each other; and its model, if
    it is there."""

    name: str  # what it is called: a folder, or ORG/NAME@COMMIT
    folder: Path
    result: MergeResult
    recipe: Recipe
    journal: Journal
    # of all files in a repository, none where it can't be asked; None for a folder
    paths: list[str] | None = None

    @property
    def digests(self) -> RunDigests:
        """What result.json says of the model, the recipe and the journal."""
        return self.result.record.digests

    @cached_property
    def nodes(self) -> dict[str, NodeResult]:
        """What result.json says of each merge, of each searched baseline, and of the second
        look."""
        return {node.name: node for node in self.result.record.merges}

    @property
    def root(self) -> str:
        """The name of what gave the merged model: the final merge, or the second look."""
        return names_merged(self.nodes)

    @property
    def searched(self) -> str:
        """The name of the final merge."""
        return self.result.record.final.name

    @property
    def lineup(self) -> ReportRows:
        """The models that result.json must tell of."""
        plan = plan_merges(self.recipe, self.ranking)
        return ReportRows(plan, self.is_recalibrated_run, self.has_aligned)

    @property
    def parents(self) -> dict[str, str]:
        """Each parent's digest."""
        return {parent.name: parent.sha256 for parent in self.result.record.parents}

    def license_of(self, name: str) -> dict[str, Any]:
        """Return the license that result.json gives a parent, as its card's front matter has it."""
        parents = self.result.record.parents
        return next((p.license_fields for p in parents if p.name == name), {})

    @property
    def rows(self) -> int:
        """How many validation rows the searches saw."""
        return self.result.record.data.validation.rows

    def rows_of(self, name: str) -> int:
        """Return on how many rows a merge's individuals were measured."""
        return self.data.splits[SECOND_LOOK].rows if name == SECOND_LOOK else self.rows

    @property
    def data(self) -> DataInfo:
        """What result.json says of the data."""
        return self.result.record.data

    @property
    def splits(self) -> dict[str, SplitInfo]:
        """What the run took of the data set: validation and test, and what else a recipe may ask
        for."""
        return self.data.splits

    @property
    def is_recalibrated_run(self) -> bool:
        """Whether the final merge was recalibrated, and so were the parents and baselines that it
        is shown beside."""
        return self.result.report.is_recalibrated_run

    @property
    def has_aligned(self) -> bool:
        """Whether the average of the aligned parents is among the baselines."""
        return any(
            model.role == "baseline" and model.name == ALIGNED
            for model in self.result.report.models
        )

    def shown(self, name: str, recomputes: bool) -> int:
        """Return how many pictures full evaluation would show each individual of a merge, for its
        statistics too."""
        calibration = self.data.calibration
        return self.rows_of(name) + (calibration.rows if calibration and recomputes else 0)

    @property
    def ranking(self) -> list[str] | None:
        """The parents from best to worst, where the recipe orders them by accuracy."""
        return (
            self.journal.order["ranking"]
            if self.journal.order and self.recipe.order == "accuracy"
            else None
        )

    @property
    def beside_model(self) -> list[str]:
        """The names of all files in the merged model's folder, or at the root of its repository."""
        assert self.model is not None
        here = [path.name for path in self.model.iterdir() if path.is_file()]
        return [path for path in self.paths if "/" not in path] if self.paths else here

    @property
    def model(self) -> Path | None:
        """The folder of the merged model; None if there is none beside the record."""
        return next(iter(self.models), None)

    @property
    def models(self) -> list[Path]:
        """Every folder that may be the merged model's: a run's, a copy's."""
        return [
            folder
            for folder in (self.folder / "merged", self.folder)
            if any(folder.glob("*.safetensors"))
        ]

    def record_of(self, name: str) -> NodeRecord:
        """Return what the journal holds of a merge.

        Raises:
            VerificationError: nothing.
        """
        if name not in self.journal.nodes:
            raise VerificationError(
                f"it tells nothing of {name}",
                where=JOURNAL,
                expected="a merge's lines",
                got="none",
                hint=_COPY,
            )
        return self.journal.nodes[name]

    def differ(self, name: str, made: StateDict) -> str:
        """Say how far a merge's stored weights are from those made again; an empty text if they
        aren't here."""
        folder = self.model if name == self.root else self.folder / "nodes" / name
        try:
            stored = open_model(folder).state() if folder is not None and folder.is_dir() else {}
        except ParentError:
            return ": they can't be read"
        if not stored:
            return ""
        stored = {entry: tensor for entry, tensor in stored.items() if entry in made}
        largest, differing, total = largest_difference(stored, made)
        if largest == 0:
            return ": the same numbers, in a file that is another one"
        return f": largest difference {largest:.3g}, in {differing:,} of {total:,} numbers"


def load_claims(run: str | Path) -> RunClaims:
    """Read a run's files and see that they belong together.

    Args:
        run: a run folder, a copy of one, or a repository ORG/NAME[@REVISION].

    Raises:
        VerificationError: one was changed; `where` names it.
        MegaError: there is no finished run, or it can't be fetched.
    """
    name, folder, paths = _find(str(run))
    missing = [file for file in (RESULT, RECIPE, JOURNAL) if not (folder / file).is_file()]
    if missing:
        raise RunError(
            "nothing that can be verified",
            where=name,
            expected=f"{RESULT}, {RECIPE} and {JOURNAL}",
            got=f"no {missing[0]}",
            hint="a finished run folder, or what mega-hf push made of one",
        )
    with _reading(RESULT):
        result = MergeResult.load(folder)
        str(result.report)
    with _reading(RECIPE):
        recipe, is_whole = read_stored(folder / RECIPE)
    with _reading(JOURNAL):
        journal = Journal(folder / JOURNAL)
    told = RunClaims(name, folder, result, recipe, journal, paths)
    _refuse_models(told)
    _compare(told, is_whole)
    return told


def is_loaded(name: str) -> bool:
    """Say whether a library would load a file of this name with a model."""
    return any(fnmatchcase(name, pattern) for pattern in _LOADED)


def _refuse_models(told: RunClaims) -> None:
    """See that it is clear which model is meant: one, and none that was not fetched."""
    if len(told.models) > 1:
        raise changed(
            "*.safetensors", "where the model lies", "in merged, or beside result.json", "both"
        )
    weights = [
        path for path in told.paths or () if fnmatchcase(path, "*.safetensors") and "/" not in path
    ]
    unknown = [path for path in weights if path not in told.result.record.files]
    if unknown:
        raise changed(
            RESULT,
            "the model's files",
            "every file with its SHA-256",
            f"none of {', '.join(unknown)}",
        )


def _find(run: str) -> tuple[str, Path, list[str] | None]:
    """Return a run's name, its folder, which is downloaded if it is a repository's, and what that
    one holds."""
    path = Path(run).expanduser()
    if path.is_dir():
        return run, path, None
    if is_local(run) or path.exists() or run.count("/") != 1:
        raise RunError(
            "no such run",
            where=run,
            expected="a run folder, or ORG/NAME[@REVISION]",
            got="a file" if path.exists() else "nothing",
            hint="check the path",
        )
    name, _, revision = run.partition("@")
    hub.check_name(name)
    try:
        source, commit = hub.fetch(name, revision or None, OURS)
    except HubError as error:  # or it was meant as a folder
        raise error.with_hint("if a folder was meant, there is none of this name") from None
    whole = f"{name}@{commit[:12]}"
    try:
        models = copied_models(source, whole)
    except HubError as error:
        if not (source / RESULT).is_file():
            raise
        raise VerificationError.from_error(whole, error, error.hint) from None
    return whole, hub.fetch(name, commit, [*OURS, *models])[0], hub.list_files(name, commit)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Name the file that can't be read, whatever a stranger wrote into it."""
    try:
        yield
    except VerificationError:
        raise
    except MegaError as error:
        raise VerificationError.from_error(error.where or name, error, _COPY) from None
    except Exception as error:
        got = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise VerificationError(
            "it can't be read", where=name, expected="what mega-hf wrote", got=got, hint=_COPY
        ) from None


def _compare(told: RunClaims, is_whole: bool) -> None:
    """See that recipe, journal and result tell of one run."""
    if not is_whole or told.recipe.sha256 != told.digests.recipe:
        got = told.recipe.sha256 if is_whole else "other content than its first line says"
        raise changed(RECIPE, "the recipe", told.digests.recipe, got)
    if not same_but_placeholders(told.recipe.to_dict(), told.result.record.recipe):
        raise changed(RESULT, "the recipe in it", "recipe.yaml's", "another")
    journal = file_digest(told.folder / JOURNAL)
    if journal != told.digests.journal:
        raise changed(JOURNAL, "the journal", told.digests.journal, journal)
    header = told.journal.header or {}
    rows = {name: split.sha256 for name, split in told.splits.items()}
    said = {
        "recipe": (header.get("recipe"), told.digests.recipe),
        "data": (header.get("data"), rows),
    }
    said |= {
        f"parent {one}": (header.get("parents", {}).get(one), found)
        for one, found in told.parents.items()
    }
    for what, (written, found) in said.items():
        if written != found:
            raise changed(RESULT, f"what it says of the {what}", written, found)
    for model in told.result.report.models:  # by whose counts the journal is then judged
        for split, count in (("validation", model.validation), ("test", model.test)):
            expected = told.splits[split].rows
            if count.n != expected:
                raise changed(RESULT, f"rows of {model.name} on {split}", expected, count.n)
    asked, made = (", ".join(names) for names in (told.recipe.all_nodes(told.ranking), told.nodes))
    if asked != made:
        raise changed(RESULT, "the merges in it", asked, made)


def changed(where: str, what: str, expected: object, got: object) -> VerificationError:
    """Make the error of a file that is not as the run left it."""
    return VerificationError(
        f"changed since the run: {what}", where=where, expected=expected, got=got, hint=_COPY
    )
