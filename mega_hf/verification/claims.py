"""Load a run's recipe, journal and result from a folder or the Hub, and check their digests."""

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
from mega_hf.recipe.baselines import SECOND_LOOK
from mega_hf.recipe.paths import is_local
from mega_hf.recipe.plan import MergePlan, plan_merges
from mega_hf.recipe.schema import Recipe
from mega_hf.report.record import RunRecord
from mega_hf.report.result import NAME as RESULT
from mega_hf.report.result import MergeResult
from mega_hf.run.candidates import ALIGNED, ReportRows
from mega_hf.run.folder import read_stored
from mega_hf.run.journal import NAME as JOURNAL
from mega_hf.run.journal import Journal, NodeRecord
from mega_hf.runtime.files import file_digest
from mega_hf.weights.space import StateDict, largest_difference

COPY = "use another copy of the run"
# The reasons for a different replay.
OTHERWISE = (
    "journal.jsonl was changed, or this machine computes differently: use another copy of the run,"
    " or another machine"
)


@dataclass(frozen=True)
class RunClaims:
    """The files of a finished run.

    Recipe and journal are what a replay starts from. The record (result.json) and the model are
    what it is compared with.

    Attributes:
        name: the folder, or ORG/NAME@COMMIT.
        folder: the folder of the files.
        result: the content of result.json.
        recipe: the content of recipe.yaml.
        journal: the content of journal.jsonl.
        paths: all files of the repository, none if the Hub can't be reached; None for a folder.
    """

    name: str
    folder: Path
    result: MergeResult
    recipe: Recipe
    journal: Journal
    paths: list[str] | None = None

    @property
    def record(self) -> RunRecord:
        """The content of result.json."""
        return self.result.record

    @property
    def header(self) -> dict[str, Any]:
        """The journal's header."""
        return self.journal.header or {}

    @property
    def parents(self) -> dict[str, str]:
        """The SHA-256 of each parent's weights, by the journal."""
        return self.header["parents"]

    @property
    def ranking(self) -> list[str] | None:
        """The parents from best to worst, if the recipe orders them by accuracy."""
        order = self.journal.order
        return order["ranking"] if order and self.recipe.order == "accuracy" else None

    @cached_property
    def plan(self) -> MergePlan:
        """The merges of the run."""
        return plan_merges(self.recipe, self.ranking)

    def rows_of(self, name: str) -> int:
        """Return the number of rows of a merge's search: the winner of a search has seen all."""
        if name == SECOND_LOOK:
            return self.merged_line(name)["n"]
        return max(self.merged_line(one)["n"] for one in self.plan.nodes if one != SECOND_LOOK)

    def record_of(self, name: str) -> NodeRecord:
        """Return the journal's record of a merge.

        Raises:
            VerificationError: the journal has none.
        """
        if name not in self.journal.nodes:
            raise VerificationError(
                f"the merge {name} is missing",
                where=JOURNAL,
                expected="the lines of each merge",
                got="none",
                hint=COPY,
            )
        return self.journal.nodes[name]

    def merged_line(self, name: str) -> dict[str, Any]:
        """Return the last line of a merge in the journal, with its outcome.

        Raises:
            VerificationError: the journal has none.
        """
        line = self.record_of(name).merged
        if line is None:
            raise VerificationError(
                f"the merge {name} is not finished",
                where=JOURNAL,
                expected="a line with its outcome",
                got="none",
                hint=COPY,
            )
        return line

    @property
    def report_rows(self) -> ReportRows:
        """The models of the record's table; to be used once the record has been compared."""
        has_aligned = any(model.name == ALIGNED for model in self.record.models)
        return ReportRows(self.plan, self.record.is_recalibrated, has_aligned)

    @property
    def files_beside_model(self) -> list[str]:
        """The names of all files in the model's folder, or at the root of its repository."""
        assert self.model is not None
        here = [path.name for path in self.model.iterdir() if path.is_file()]
        return [path for path in self.paths if "/" not in path] if self.paths else here

    @property
    def models(self) -> list[Path]:
        """The folders that have weights and may be the merged model's: a run's, or a copy's."""
        folders = (self.folder / "merged", self.folder)
        return [folder for folder in folders if any(folder.glob("*.safetensors"))]

    @property
    def model(self) -> Path | None:
        """The folder of the merged model; None if the run has no model."""
        return next(iter(self.models), None)

    def model_of(self, name: str) -> Path | None:
        """Return the folder of a merge's model; None if the model was not kept."""
        folder = self.model if name == self.plan.merged else self.folder / "nodes" / name
        return folder if folder is not None and folder.is_dir() else None

    def describe_difference(self, name: str, rebuilt: StateDict) -> str:
        """Describe how a merge's stored weights differ from rebuilt ones; empty without a model."""
        folder = self.model_of(name)
        try:
            stored = open_model(folder).state() if folder is not None else {}
        except ParentError:
            return ": they can't be read"
        if not stored:
            return ""
        stored = {entry: tensor for entry, tensor in stored.items() if entry in rebuilt}
        largest, differing, total = largest_difference(stored, rebuilt)
        if largest == 0:
            return ": the same numbers, in a different file"
        return f": largest difference {largest:.3g}, in {differing:,} of {total:,} numbers"


def load_claims(run: str | Path) -> RunClaims:
    """Load a run's files, and check recipe and journal by the digests in result.json.

    Args:
        run: a run folder, a copy of one, or a repository ORG/NAME[@REVISION].

    Raises:
        VerificationError: a file was changed; `where` names it.
        MegaError: there is no finished run, or it can't be downloaded.
    """
    name, folder, paths = _find(str(run))
    missing = [file for file in (RESULT, RECIPE, JOURNAL) if not (folder / file).is_file()]
    if missing:
        raise RunError(
            "not a run that can be verified",
            where=name,
            expected=f"{RESULT}, {RECIPE} and {JOURNAL}",
            got=f"no {missing[0]}",
            hint="use a finished run folder, or a merge that mega-hf pushed",
        )
    with _reading(RESULT):
        result = MergeResult.load(folder)
        str(result.report)
    with _reading(RECIPE):
        recipe, is_whole = read_stored(folder / RECIPE)
    with _reading(JOURNAL):
        journal = Journal(folder / JOURNAL)
    claims = RunClaims(name, folder, result, recipe, journal, paths)
    _check_one_model(claims)
    _check_digests(claims, is_whole)
    return claims


def changed(where: str, what: str, expected: object, got: object) -> VerificationError:
    """Return the error of a file that was changed since the run."""
    return VerificationError(
        f"changed since the run: {what}", where=where, expected=expected, got=got, hint=COPY
    )


def _check_one_model(claims: RunClaims) -> None:
    """Check that there is one model at most, and that all its files were downloaded."""
    if len(claims.models) > 1:
        raise changed(
            "*.safetensors", "the place of the model", "merged, or beside result.json", "both"
        )
    paths = [path for path in claims.paths or () if "/" not in path]
    weights = [path for path in paths if fnmatchcase(path, "*.safetensors")]
    unknown = [path for path in weights if path not in claims.record.files]
    if unknown:
        raise changed(RESULT, "files", "the SHA-256 of each file", f"none of {', '.join(unknown)}")


def _check_digests(claims: RunClaims, is_whole: bool) -> None:
    """Check recipe and journal by their digests in result.json, and the recipe by the journal."""
    digests, recipe = claims.record.digests, claims.recipe.sha256
    if not is_whole or recipe != digests.recipe:
        got = recipe if is_whole else "other content than its first line says"
        raise changed(RECIPE, "the recipe", digests.recipe, got)
    journal = file_digest(claims.folder / JOURNAL)
    if journal != digests.journal:
        raise changed(JOURNAL, "the journal", digests.journal, journal)
    if claims.header.get("recipe") != recipe:
        raise changed(JOURNAL, "the recipe's digest", recipe, claims.header.get("recipe"))


def _find(run: str) -> tuple[str, Path, list[str] | None]:
    """Return a run's name, its folder, and the files of its repository, which is downloaded."""
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
    except HubError as error:  # a folder may have been meant
        raise error.with_hint("if you mean a folder, no folder has this name") from None
    pinned = f"{name}@{commit[:12]}"
    try:
        models = copied_models(source, pinned)
    except HubError as error:
        if not (source / RESULT).is_file():
            raise
        raise VerificationError.from_error(pinned, error, error.hint) from None
    return pinned, hub.fetch(name, commit, [*OURS, *models])[0], hub.list_files(name, commit)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Name the file that can't be read, whatever a stranger wrote into it."""
    try:
        yield
    except VerificationError:
        raise
    except MegaError as error:
        raise VerificationError.from_error(error.where or name, error, COPY) from None
    except Exception as error:
        got = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise VerificationError(
            "unreadable", where=name, expected="a file that mega-hf wrote", got=got, hint=COPY
        ) from None
