"""Push finished runs to the Hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mega_hf.errors import HubError, RunError
from mega_hf.hub import repository as hub
from mega_hf.hub.bundle import check_unchanged, portable_files, trained_parents
from mega_hf.hub.privacy import check_no_private_paths, check_no_tokens, local_paths
from mega_hf.hub.repository import Pushed, Remote
from mega_hf.models.licenses import choose_license, license_of, read_license
from mega_hf.recipe.document import dump
from mega_hf.recipe.placeholders import check_no_placeholders
from mega_hf.recipe.schema import Push, Recipe
from mega_hf.report.card import existing_card, render_card
from mega_hf.report.card_edits import Card, split_card, update_card
from mega_hf.report.record import RunRecord
from mega_hf.report.result import MergeResult
from mega_hf.run.folder import CARD
from mega_hf.runtime.hub_client import hub_errors, retry
from mega_hf.runtime.untrusted import parse_json

_REMOTE_CARD = "README.md in the repository"
logger = logging.getLogger(__name__)


def push(
    run: str | Path | MergeResult,
    repository: str,
    *,
    parents: str | Path | None = None,
    **options: Any,
) -> Pushed:
    """Push a finished run to the Hub, in one commit.

    The commit holds model, card, recipe, journal, result and plots. Local parents and data are
    named by name and digest; no local path is pushed.

    Args:
        run: a finished run, or its folder.
        repository: ORG/NAME; created if it does not exist.
        parents: the folder of the trained parents, if it is not the run's own.
        options: the other keys of a recipe's `push` block: `private` (bool), `create_pr` (bool:
            open a pull request), `branch`, `message` (of the commit), `license`, `with_nodes`
            (bool: push a tree's intermediate models), `with_parents` (bool, True by default: push
            the parents that were trained for the run) and `overwrite_card` (bool).

    Raises:
        MegaError: something can't be pushed, or the Hub refused it; the run folder is unchanged.
    """
    result = run if isinstance(run, MergeResult) else MergeResult.load(run)
    wanted, trained = _prepare(result, Push(repo=repository, **options), parents)
    logger.info("pushing to %s", repository)
    description = f"SHA-256 of the weights: {result.record.digests.file}"
    return hub.send(wanted, lambda remote: _files(result, wanted, trained, remote), description)


def plan_push(
    run: str | Path | MergeResult,
    repository: str,
    *,
    parents: str | Path | None = None,
    **options: Any,
) -> PushPlan:
    """Check everything that `push` would, and list the files; push nothing. Args: as `push`."""
    result = run if isinstance(run, MergeResult) else MergeResult.load(run)
    wanted, trained = _prepare(result, Push(repo=repository, **options), parents)
    with hub_errors(repository):
        remote = retry(lambda: hub.look(wanted))
    files = _files(result, wanted, trained, remote)
    license = str(_license(result.record, wanted, remote)["license"])
    return PushPlan(wanted, files, license, remote.exists, hub.stale_paths(remote, files))


@dataclass(frozen=True)
class PushPlan:
    """The files that a push would send; `str` is the text of --dry-run."""

    options: Push
    files: Mapping[str, Path | bytes]
    license: str
    exists: bool  # whether the repository does
    removed: list[str]  # from it

    def __str__(self) -> str:
        sizes = {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }
        width = max(map(len, sizes))
        branch = f"branch {self.options.branch or 'main'}"
        where = "a pull request" if self.options.create_pr else branch
        state = "exists" if self.exists else "would be created"
        head = f"{self.options.repo}, {where}: {state}; license {self.license}; one commit holds"
        lines = [f"  {name.ljust(width)}  {size:>13,} bytes" for name, size in sizes.items()]
        total = f"  {'total'.ljust(width)}  {sum(sizes.values()):>13,} bytes"
        removed = [f"  {name.ljust(width)}  would be removed" for name in self.removed]
        return "\n".join([head, *lines, total, *removed, "Nothing was pushed."])


def check_push(recipe: Recipe, wanted: Push) -> None:
    """Check, before a merge is made, that it can be pushed: account, license and repository.

    Of parents on the Hub the cards and configurations are downloaded.

    Raises:
        MegaError: nobody is logged in, the license is open, or the repository is a parent.
    """
    # not above: it loads timm, which a push of a finished run does not need
    from mega_hf.models.references import resolve

    check_no_placeholders(recipe.to_dict())
    hub.check_account(wanted)
    licenses: dict[str, dict[str, Any] | None] = {}
    for name in recipe.leaves(None):
        reference, folder = recipe.parents.get(name), None
        if isinstance(reference, str):
            _check_not_a_parent({name: reference.partition("@")[0]}, wanted.repo)
            folder = resolve(reference, name, only_configuration=True)[0]
        licenses[name] = read_license(folder)
    with hub_errors(wanted.repo):
        remote = retry(lambda: hub.look(wanted))
    license = choose_license(wanted.license, licenses, _remote_front(wanted, remote))
    hub.check_card(f"---\n{dump(license)}---\n")


def _prepare(
    result: MergeResult, wanted: Push, parents: str | Path | None
) -> tuple[Push, dict[str, Path]]:
    """Check run and account; return the options with a message, and the trained parents' folders.

    Raises:
        RunError: trained parents are missing, or were changed since the merge.
    """
    on_hub = {parent.name: parent.hub for parent in result.record.parents if parent.hub}
    _check_not_a_parent(on_hub, wanted.repo)
    check_unchanged(result)
    wanted = wanted.model_copy(update={"message": wanted.message or _title(result.record)})
    hub.check_account(wanted)
    if not wanted.with_parents:
        return wanted, {}
    folder = Path(parents) if parents is not None else None
    found, missing = trained_parents(result, folder)
    if missing:
        raise RunError(
            "parents that were trained for the run are missing, or were changed since",
            where=str(folder or result.folder / "parents"),
            expected="each one, so that others can verify the merge",
            got=f"no {', '.join(missing)}",
            hint=(
                "give their folder with --parents DIR; or push with --without-parents, and nobody"
                " else can verify the merge"
            ),
        )
    return wanted, found


def _files(
    result: MergeResult, wanted: Push, trained: Mapping[str, Path], remote: Remote
) -> dict[str, Path | bytes]:
    """Return the files to send, given the state of the repository, after all checks of them.

    Raises:
        HubError: a file contains a local path or a token, or the card can't be used.
    """
    files = portable_files(
        result,
        wanted.repo,
        _license(result.record, wanted, remote),
        wanted.with_nodes,
        wanted.branch or "",
        trained,
    )
    token = hub.get_token()
    checked = files | {"the commit's message": str(wanted.message).encode()}
    check_no_private_paths(checked, local_paths(result.folder), token)
    card = files[CARD]
    assert isinstance(card, bytes)
    here = None if wanted.overwrite_card else existing_card(result)
    edited = [old for old in (_remote_card(wanted, remote), here) if old]
    text = update_card(card.decode(), edited)
    # Text that was written by hand may name paths.
    check_no_tokens({CARD: text.encode()}, token)
    hub.check_card(text)
    return files | {CARD: text.encode()}


def _license(record: RunRecord, wanted: Push, remote: Remote) -> dict[str, Any]:
    """Return the requested license, that of an earlier push, or the parents' common one."""
    if wanted.license is None:
        for known in (record, _remote_record(remote)):
            is_same = known is not None and known.digests.file == record.digests.file
            license = license_of(known.license or {}) if known and is_same else None
            if license:
                return license
    licenses = {parent.name: license_of(parent.license_fields) for parent in record.parents}
    return choose_license(wanted.license, licenses, _remote_front(wanted, remote))


def _remote_front(wanted: Push, remote: Remote) -> dict[str, Any] | None:
    """Return the front matter of the repository's card; None if the push replaces the card."""
    if remote.card is None or wanted.overwrite_card:
        return None
    card = Card.read(remote.card, _REMOTE_CARD)
    return split_card(card.text, card.where)[0]


def _remote_card(wanted: Push, remote: Remote) -> Card | None:
    """Return the repository's card, with the front matter that it was generated with."""
    if remote.card is None or wanted.overwrite_card:
        return None
    record, generated = _remote_record(remote), None
    if record is not None:
        with suppress(Exception):  # a stranger's record may hold anything
            generated = split_card(render_card(MergeResult(record, Path())))[0]
    return Card.read(remote.card, _REMOTE_CARD, generated)


def _remote_record(remote: Remote) -> RunRecord | None:
    """Return the record of an earlier push to the repository; None if there is none to be read."""
    try:
        return RunRecord.from_dict(parse_json(remote.record or b""))
    except ValueError:  # no record, or a stranger's file of this name
        return None


def _check_not_a_parent(parents: Mapping[str, str], repository: str) -> None:
    for name, parent in parents.items():
        if parent.lower() == repository.lower():
            raise HubError(
                f"this repository is the parent {name}",
                expected="a repository of the merge's own",
                got=repository,
                hint="use another ORG/NAME",
            )


def _title(record: RunRecord) -> str:
    names = ", ".join(parent.name for parent in record.parents)
    return f"Merge of {names}"[:80] + f" ({record.digests.weights[:12]}) by mega_hf"
