"""Runs to the Hub and back: `push` and `pull`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mega_hf.errors import HubError, RunError
from mega_hf.hub import repository as hub
from mega_hf.hub.bundle import check_unchanged, portable_files, trained_parents
from mega_hf.hub.privacy import check_no_private_paths, check_no_tokens, local_paths
from mega_hf.hub.repository import Pushed, Remote, Target
from mega_hf.models.licenses import choose_license, license_of, read_license
from mega_hf.recipe.document import dump
from mega_hf.recipe.placeholders import check_no_placeholders
from mega_hf.recipe.schema import Push, Recipe
from mega_hf.report.card import card_there, render_card
from mega_hf.report.card_edits import Card, split_card, update_card
from mega_hf.report.record import RunRecord
from mega_hf.report.result import MergeResult
from mega_hf.run.folder import CARD
from mega_hf.runtime.hub_client import hub_errors, retry

_THERE = "README.md in the repository"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a push would send; `str` is what --dry-run prints."""

    target: Target
    files: Mapping[str, Path | bytes]
    license: str
    state: str  # of the repository
    removed: list[str]  # from it

    def __str__(self) -> str:
        sizes = {name: _size(content) for name, content in self.files.items()}
        width = max(map(len, sizes))
        lines = [f"  {name.ljust(width)}  {size:>13,} bytes" for name, size in sizes.items()]
        where = (
            "a pull request" if self.target.create_pr else f"branch {self.target.branch or 'main'}"
        )
        head = (
            f"{self.target.repository}, {where}: {self.state}; license {self.license}; one commit"
            " holds"
        )
        total = f"  {'total'.ljust(width)}  {sum(sizes.values()):>13,} bytes"
        gone = [f"  {name.ljust(width)}  is removed there" for name in self.removed]
        return "\n".join([head, *lines, total, *gone, "Nothing was sent."])


def push(
    run: str | Path | MergeResult,
    repository: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    branch: str | None = None,
    message: str | None = None,
    license: str | None = None,
    with_nodes: bool = False,
    with_parents: bool = True,
    parents: str | Path | None = None,
    overwrite_card: bool = False,
) -> Pushed:
    """Push a finished run to the Hub, in one commit: model, card, recipe, journal, result and
    plots.

    What is pushed names local parents and data by name and digest; no path of this machine is in
    it.

    Args:
        run: a finished run, or its folder.
        repository: ORG/NAME; made if it isn't there.
        private: make it private; a repository that is public is refused then.
        create_pr: open a pull request instead of committing.
        branch: another branch than main; made if it isn't there.
        message: the commit's first line.
        license: the Hub's identifier; needed where the parents have none, or not the same.
        with_nodes: the intermediate models of a tree too.
        with_parents: the parents that were trained for the run too, without which nobody else can
            verify it.
        parents: the folder in which they lie, if not the run's own.
        overwrite_card: replace the card there, what was written by hand included.

    Raises:
        MegaError: something can't be pushed, or the Hub did not take it; the run folder is as it
            was.
    """
    packing = _prepare(
        run,
        repository,
        private=private,
        create_pr=create_pr,
        branch=branch,
        message=message,
        license=license,
        with_nodes=with_nodes,
        with_parents=with_parents,
        parents=parents,
        overwrite_card=overwrite_card,
    )
    logger.info("pushing to %s", repository)
    digest = packing.result.record.digests.file
    return hub.send(packing.target, packing.files, f"SHA-256 of the weights: {digest}")


def plan_push(run: str | Path | MergeResult, repository: str, **options: Any) -> Plan:
    """Check everything that `push` would, and say what it would send; nothing is sent. Args: as
    `push`."""
    packing = _prepare(run, repository, **options)
    with hub_errors(repository):
        remote = retry(lambda: hub.look(packing.target))
    files = packing.files(remote)
    state = "is there" if remote.exists else "would be made"
    license = packing.choose_license(remote)["license"]
    return Plan(packing.target, files, str(license), state, hub.stale_paths(remote, files))


def check_push(recipe: Recipe, wanted: Push) -> None:
    """Raise what would keep a merge from being pushed, before it is made: no account, or no
    license.

    Of parents that lie on the Hub the cards are downloaded, with their configurations.
    """
    from mega_hf.models.references import (
        resolve,  # not above: it loads timm, which a push of a finished run does not need
    )

    check_no_placeholders(recipe.to_dict())
    target = Target(wanted.repo, wanted.private, wanted.branch)
    hub.check_account(target)
    licenses: dict[str, dict[str, Any] | None] = {}
    for name in recipe.leaves(None):
        reference = recipe.parents.get(name)
        _refuse_parent({name: str(reference).partition("@")[0]}, wanted.repo)
        folder = (
            resolve(reference, name, only_configuration=True)[0]
            if isinstance(reference, str)
            else None
        )
        licenses[name] = read_license(folder)
    with hub_errors(wanted.repo):
        remote = retry(lambda: hub.look(target))
    there = Card.read(remote.card, _THERE) if remote.card else None
    front = split_card(there.text, there.where)[0] if there else None
    license = choose_license(wanted.license, licenses, front)
    hub.check_card(f"---\n{dump(license)}---\n")


@dataclass(frozen=True)
class _Packing:
    """Makes what is sent, given what is there."""

    result: MergeResult
    target: Target
    license: str | None
    with_nodes: bool
    parents: Mapping[str, Path]
    overwrite_card: bool

    def files(self, remote: Remote) -> dict[str, Path | bytes]:
        """Return the files to send, once everything in them has been checked."""
        there = self._card_there(remote)
        here = None if self.overwrite_card else card_there(self.result)
        files = portable_files(
            self.result,
            self.target.repository,
            self.choose_license(remote),
            self.with_nodes,
            self.target.branch or "",
            self.parents,
        )
        check_no_private_paths(
            {**files, "the commit's message": self.target.message.encode()},
            local_paths(self.result.folder),
            hub.get_token(),
        )
        card = files[CARD]
        assert isinstance(card, bytes)
        text = update_card(card.decode(), [old for old in (there, here) if old])
        # what others wrote there may name paths
        check_no_tokens({CARD: text.encode()}, hub.get_token())
        hub.check_card(text)
        files[CARD] = text.encode()
        return files

    def choose_license(self, remote: Remote) -> dict[str, Any]:
        """Return the license: what is asked for, what this very merge is under, or what the parents
        agree on."""
        there, known = self._card_there(remote), self.result.record
        was = next(
            filter(None, (_license(record, known) for record in (known, _record(remote)))), None
        )
        if self.license is None and was is not None:
            return was
        licenses = {parent.name: license_of(parent.license_fields) for parent in known.parents}
        return choose_license(
            self.license, licenses, split_card(there.text, there.where)[0] if there else None
        )

    def _card_there(self, remote: Remote) -> Card | None:
        if remote.card is None or self.overwrite_card:
            return None
        return Card.read(remote.card, _THERE, _generated(remote))


def _record(remote: Remote) -> RunRecord | None:
    """Return the record of the merge that was pushed there before, or None."""
    try:
        return RunRecord.from_dict(json.loads(remote.record or b"{}"))
    except (ValueError, RecursionError):
        return None


def _license(record: RunRecord | None, known: RunRecord) -> dict[str, Any] | None:
    """Return the license under which a merge was pushed, if the record is of this very one."""
    is_same = record is not None and record.digests.file == known.digests.file
    return license_of(record.license or {}) if record and is_same else None


def _generated(remote: Remote) -> dict[str, Any] | None:
    """Return the front matter that the card there was generated with, if a run's record lies beside
    it."""
    record = _record(remote)
    try:
        return split_card(render_card(MergeResult(record, Path())))[0] if record else None
    except Exception:  # whatever someone else's record makes of our own code
        return None


def _refuse_parent(parents: Mapping[str, str], repository: str) -> None:
    for name, parent in parents.items():
        if parent.lower() == repository.lower():
            raise HubError(
                f"that is the parent {name}",
                expected="a repository of the merge's own",
                got=repository,
                hint="another ORG/NAME",
            )


def _prepare(
    run: str | Path | MergeResult,
    repository: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    branch: str | None = None,
    message: str | None = None,
    license: str | None = None,
    with_nodes: bool = False,
    with_parents: bool = True,
    parents: str | Path | None = None,
    overwrite_card: bool = False,
) -> _Packing:
    """See who pushes what, and where to."""
    result = run if isinstance(run, MergeResult) else MergeResult.load(run)
    _refuse_parent({p.name: p.hub for p in result.record.parents if p.hub}, repository)
    check_unchanged(result)
    target = Target(repository, private, branch, create_pr, message or _title(result))
    hub.check_account(target)
    trained = (
        _trained(result, Path(parents) if parents is not None else None) if with_parents else {}
    )
    return _Packing(result, target, license, with_nodes, trained, overwrite_card)


def _trained(result: MergeResult, elsewhere: Path | None) -> dict[str, Path]:
    """Return the folders of the parents that were trained for the run.

    Raises:
        RunError: some are lost.
    """
    found, lost = trained_parents(result, elsewhere)
    if lost:
        raise RunError(
            "parents that were trained for the run are not there as they were merged",
            where=str(elsewhere or result.folder / "parents"),
            expected="each, for others to verify the merge by",
            got=f"no {', '.join(lost)}",
            hint=(
                "--parents DIR says where they lie; --without-parents pushes what nobody else can"
                " verify"
            ),
        )
    return found


def _title(result: MergeResult) -> str:
    names = ", ".join(parent.name for parent in result.record.parents)
    return f"Merge of {names}"[:80] + f" ({result.record.digests.weights[:12]}) by mega_hf"


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
