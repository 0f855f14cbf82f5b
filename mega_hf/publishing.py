"""Runs to the Hub and back: `push` and `pull`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mega_hf.absent import refuse_absent
from mega_hf.errors import HubError, MegaError, RunError
from mega_hf.hf import hub
from mega_hf.hf.card import card_there, render_card
from mega_hf.hf.card_update import Card, split_card, update_card
from mega_hf.hf.hub import Pushed, Remote, Target
from mega_hf.hf.licences import choose_licence, licence_of, read_licence
from mega_hf.hf.metadata import check_front
from mega_hf.hf.patience import retry, saying
from mega_hf.portable import CARD, portable_files, refuse_private, restore
from mega_hf.recipe import Recipe
from mega_hf.result import MergeResult
from mega_hf.run_folder import refuse_unwritable
from mega_hf.settings import Push

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What a push would send; `str` is what --dry-run prints."""

    target: Target
    files: Mapping[str, Path | bytes]
    licence: str
    state: str  # of the repository

    def __str__(self) -> str:
        sizes = {name: _size(content) for name, content in self.files.items()}
        width = max(map(len, sizes))
        lines = [f"  {name.ljust(width)}  {size:>13,} bytes" for name, size in sizes.items()]
        where = "a pull request" if self.target.create_pr else f"branch {self.target.branch or 'main'}"
        head = f"{self.target.repository}, {where}: {self.state}; license {self.licence}; one commit holds"
        total = f"  {'total'.ljust(width)}  {sum(sizes.values()):>13,} bytes"
        return "\n".join([head, *lines, total, "Nothing was sent."])


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
    overwrite_card: bool = False,
) -> Pushed:
    """Push a finished run to the Hub, in one commit: model, card, recipe, journal, result and plots.

    What is pushed names local parents and data by name and digest; no path of this machine is in it.

    Args:
        run: a finished run, or its folder.
        repository: ORG/NAME; made if it isn't there.
        private: make it private; a repository that is public is refused then.
        create_pr: open a pull request instead of committing.
        branch: another branch than main; made if it isn't there.
        message: the commit's first line.
        license: the Hub's identifier; needed where the parents have none, or not the same.
        with_nodes: the intermediate models of a tree too.
        overwrite_card: replace the card there, what was written by hand included.

    Raises:
        MegaError: something can't be pushed, or the Hub did not take it; the run folder is as it was.
    """
    packing = _prepare(
        run, repository, private=private, create_pr=create_pr, branch=branch, message=message, license=license,
        with_nodes=with_nodes, overwrite_card=overwrite_card,
    )  # fmt: skip
    logger.info("pushing to %s", repository)
    digest = packing.result.record["digests"]["file"]
    return hub.send(packing.target, packing.files, f"SHA-256 of the weights: {digest}")


def plan_push(run: str | Path | MergeResult, repository: str, **options: Any) -> Plan:
    """Check everything that `push` would, and say what it would send; nothing is sent. Args: as `push`."""
    packing = _prepare(run, repository, **options)
    with saying(repository):
        remote = retry(lambda: hub.look(packing.target))
    files = packing.files(remote)
    state = "is there" if remote.exists else "would be made"
    return Plan(packing.target, files, str(packing.licence["license"]), state)


def pull(repository: str, out: str | Path | None = None) -> MergeResult:
    """Restore the run folder of a merge that was pushed.

    Args:
        repository: ORG/NAME or ORG/NAME@REVISION.
        out: the run folder; `runs/NAME` in the working folder by default.

    Raises:
        MegaError: it can't be fetched, is no pushed merge, or was changed since.
    """
    name, _, revision = repository.partition("@")
    target = Path(out) if out is not None else Path("runs") / name.rpartition("/")[2]
    refuse_unwritable(target, "the run folder", "another --out")
    if target.exists() and any(target.iterdir()):
        raise RunError(
            "the folder is not empty", where=str(target), expected="a new or empty folder",
            got=", ".join(sorted(path.name for path in target.iterdir())[:5]), remedy="another --out",
        )  # fmt: skip
    source, commit = hub.fetch(name, revision or None)
    return restore(source, target, f"{name}@{commit[:12]}")


def check_push(recipe: Recipe, wanted: Push) -> None:
    """Raise what would keep a merge from being pushed, before it is made: no account, or no licence.

    Of parents that lie on the Hub the cards are downloaded, with their configurations.
    """
    from mega_hf.hf.parents import resolve  # not above: it loads timm, which a push of a finished run does not need

    refuse_absent(recipe.to_dict())
    hub.check_account(Target(wanted.repo))
    licences: dict[str, dict[str, Any] | None] = {}
    for name in recipe.leaves(None):
        reference = recipe.parents.get(name)
        folder = resolve(reference, name, only_configuration=True)[0] if isinstance(reference, str) else None
        licences[name] = read_licence(folder)
    target = Target(wanted.repo, wanted.private, wanted.branch)
    with saying(wanted.repo):
        remote = retry(lambda: hub.look(target))
    choose_licence(wanted.license, licences, split_card(remote.card)[0] if remote.card else None)


@dataclass
class _Packing:
    """Makes what is sent, given what is there."""

    result: MergeResult
    target: Target
    license: str | None
    with_nodes: bool
    overwrite_card: bool
    licence: Mapping[str, Any] = field(default_factory=dict)

    def files(self, remote: Remote) -> dict[str, Path | bytes]:
        """Return the files to send, once everything in them has been checked."""
        there = Card(remote.card, _generated(remote), "README.md there") if remote.card else None
        here = card_there(self.result)
        if self.overwrite_card:
            there = here = None
        licences = {parent["name"]: licence_of(parent) for parent in self.result.record["parents"]}
        self.licence = choose_licence(self.license, licences, split_card(there.text)[0] if there else None)
        files = portable_files(self.result, self.target.repository, self.licence, self.with_nodes)
        card = files[CARD]
        assert isinstance(card, bytes)
        text = update_card(card.decode(), [old for old in (there, here) if old])
        check_front(split_card(text)[0])
        files[CARD] = text.encode()
        refuse_private(files, hub.get_token())
        return files


def _prepare(
    run: str | Path | MergeResult, repository: str, *, private: bool = False, create_pr: bool = False,
    branch: str | None = None, message: str | None = None, license: str | None = None, with_nodes: bool = False,
    overwrite_card: bool = False,
) -> _Packing:  # fmt: skip
    """See who pushes what, and where to."""
    result = run if isinstance(run, MergeResult) else MergeResult.load(run)
    for parent in result.record["parents"]:
        if parent.get("hub") == repository:
            raise HubError(
                f"that is the parent {parent['name']}", expected="a repository of the merge's own", got=repository,
                remedy="another ORG/NAME",
            )  # fmt: skip
    target = Target(repository, private, branch, create_pr, message or _title(result))
    hub.check_account(target)
    return _Packing(result, target, license, with_nodes, overwrite_card)


def _generated(remote: Remote) -> dict[str, Any]:
    """Return the front matter that the card there was generated with, if a run's record lies beside it."""
    try:
        return split_card(render_card(MergeResult(json.loads(remote.record or ""), Path())))[0]
    except (MegaError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _title(result: MergeResult) -> str:
    names = ", ".join(parent["name"] for parent in result.record["parents"])
    return f"Merge of {names}"[:100] + " by mega_hf"


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
