"""Push and pull: the only code that writes to the network."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoCard,
    get_token,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from mega_hf.errors import HubError
from mega_hf.report.result import NAME as RESULT
from mega_hf.runtime.files import file_digest
from mega_hf.runtime.hub_client import hub_errors, retry

# What would be loaded in the place of, or beside, what is pushed.
_STALE = (
    "model*.safetensors",
    "*.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
)
AGAIN = "; nothing is lost: the same push goes on from there"


@dataclass(frozen=True)
class Target:
    """Where a push goes."""

    repository: str
    private: bool = False
    branch: str | None = None
    create_pr: bool = False
    message: str = "Merge by mega_hf"


@dataclass(frozen=True)
class Remote:
    """What is in a repository before a push."""

    revision: str  # the branch, or the pull request, that the commit goes to
    commit: str | None  # its head; None if the repository, or the branch, is still to be made
    exists: bool
    card: bytes | None = None  # README.md
    record: bytes | None = None  # result.json, if a merge was pushed there before
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pushed:
    """What a push left; `str` is a sentence."""

    url: str
    commit: str
    files: int
    is_new: bool  # False: everything was there already
    removed: tuple[str, ...] = ()  # what an earlier push had left there

    def __str__(self) -> str:
        if not self.is_new:
            return f"{self.url} holds all {self.files} files already (commit {self.commit[:12]})"
        gone = f"; removed there: {', '.join(self.removed)}" if self.removed else ""
        return (
            f"{self.url} (commit {self.commit[:12]}, {self.files} files, their SHA-256"
            f" compared{gone})"
        )


def check_name(repository: str) -> None:
    """Raise HubError unless this can be a repository's name."""
    with hub_errors(repository):
        validate_repo_id(repository)
    if "/" not in repository:
        raise HubError(
            "not a repository's name", expected="ORG/NAME", got=repository, hint="e.g. me/merged"
        )


def check_account(target: Target) -> str:
    """Return the name of who is logged in, if the target can be theirs to write.

    Raises:
        HubError: nobody is logged in, the token is not valid, or the name is no repository's.
    """
    check_name(target.repository)
    if get_token() is None:
        raise HubError(
            "nobody is logged in",
            expected="a token with the right to write",
            got="none",
            hint="hf auth login, or the environment's HF_TOKEN",
        )
    with hub_errors(target.repository, then=AGAIN):
        account = retry(lambda: _api().whoami())
    owner, name = target.repository.split("/")[0], str(account["name"])
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(
            f"the token of {name} may only read",
            expected="a token with the right to write",
            got="role: read",
            hint="another one: hf auth login, or HF_TOKEN",
        )
    mine = [name, *(str(org.get("name")) for org in account.get("orgs", ()))]
    is_known = "orgs" in account  # some tokens don't tell
    if not target.create_pr and is_known and owner.lower() not in [one.lower() for one in mine]:
        raise HubError(
            f"{name} may not write there",
            expected=f"a repository of {' or '.join(mine)}",
            got=target.repository,
            hint="another name, or --create-pr to propose it to its owner",
        )
    return name


def check_card(text: str) -> None:
    """Ask the Hub whether it accepts a card, as it does before it takes any file.

    Raises:
        HubError: the Hub refuses the card's front matter, or can't be reached.
    """

    def ask() -> None:
        """Ask once."""
        try:
            RepoCard(text).validate("model")
        except HfHubHTTPError:
            raise
        except ValueError as error:
            raise HubError(
                "the Hub does not accept the card's front matter",
                where="README.md",
                expected="keys as in https://huggingface.co/docs/hub/model-cards",
                got=" ".join(str(error).split())[:500],
                hint="correct it on the repository's page, or push with --overwrite-card",
            ) from None

    with hub_errors("README.md", then=AGAIN):
        retry(ask)


def look(target: Target) -> Remote:
    """Return what is in the repository now."""
    api, repository = _api(), target.repository
    revision = target.branch or "main"
    try:
        info = api.model_info(repository)
    except RepositoryNotFoundError:
        return Remote(revision, None, exists=False)
    if target.private and not info.private:
        raise HubError(
            "the repository is public",
            expected="a private one, as --private says",
            got=repository,
            hint="make it private on its page, or push without --private, or to another name",
        )
    if target.create_pr:
        revision = _open_pull_request(api, target) or revision
    is_new = False
    try:
        info = api.model_info(repository, revision=revision)
    except RevisionNotFoundError:
        is_new = True  # it will begin with what main holds
    paths = tuple(sibling.rfilename for sibling in info.siblings or ())
    card, record = (
        _read(repository, name, str(info.sha)) if name in paths else None
        for name in ("README.md", RESULT)
    )
    return Remote(revision, None if is_new else info.sha, True, card, record, paths)


def _read(repository: str, name: str, commit: str) -> bytes:
    with _downloaded(repository, name, commit) as file:
        return file.read_bytes()


@contextmanager
def _downloaded(repository: str, name: str, commit: str) -> Iterator[Path]:
    """Fetch one file, past every cache."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(hf_hub_download(repository, name, revision=commit, local_dir=folder))


def _open_pull_request(api: HfApi, target: Target) -> str | None:
    """Return the reference of the pull request that an earlier attempt made, so that none is made
    twice."""
    mine = api.get_repo_discussions(
        target.repository, author=api.whoami()["name"], discussion_type="pull_request"
    )
    is_auto = ("open", "draft")
    return next(
        (f"refs/pr/{o.num}" for o in mine if o.title == target.message and o.status in is_auto),
        None,
    )


def send(
    target: Target, make: Callable[[Remote], Mapping[str, Path | bytes]], description: str = ""
) -> Pushed:
    """Bring a repository to hold some files, in one commit; the repository is made if it isn't
    there.

    Everything is tried again, with back-off, while the Hub is busy or can't be reached; what was
    uploaded is not sent twice.

    Args:
        target: where to.
        make: the files, given what is there; it raises what must stop the push, before anything is
            sent.
        description: the commit's second paragraph.

    Raises:
        HubError: the Hub refused, or did not answer for good, or holds other bytes than were sent.
    """

    def attempt() -> Pushed:
        """Bring it there, or fail in a way that may pass."""
        remote = look(target)
        files = make(remote)
        if remote.commit is None:
            _create(target, remote)
            remote = look(target)
            files = make(remote)
        return _commit(target, remote, files, description)

    with hub_errors(target.repository, then=AGAIN):
        return retry(attempt)


def _create(target: Target, remote: Remote) -> None:
    """Make what is missing of a repository and its branch."""
    api = _api()
    api.create_repo(target.repository, private=target.private or None, exist_ok=True)
    if remote.revision != "main":
        api.create_branch(target.repository, branch=remote.revision, exist_ok=True)


def _commit(
    target: Target, remote: Remote, files: Mapping[str, Path | bytes], description: str
) -> Pushed:
    api, repository = _api(), target.repository
    is_update = remote.revision.startswith("refs/pr/")
    stale = stale_paths(remote, files)
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    made = api.create_commit(
        repository,
        [*operations, *(CommitOperationDelete(path) for path in stale)],
        commit_message=target.message,
        commit_description=description,
        revision=remote.revision,
        create_pr=target.create_pr and not is_update,
        parent_commit=remote.commit,
    )
    revision = made.pr_revision or (remote.revision if is_update else None)
    commit = str(api.model_info(repository, revision=revision).sha) if revision else made.oid
    _compare(api, repository, commit, files)
    number = revision.rpartition("/")[2] if revision else ""
    page = f"{api.endpoint}/{repository}" + (f"/discussions/{number}" if revision else "")
    return Pushed(page, commit, len(files), is_new=commit != remote.commit, removed=tuple(stale))


def stale_paths(remote: Remote, files: Mapping[str, Path | bytes]) -> list[str]:
    """Return what a push removes: what would be loaded in its place, and what an earlier push
    left."""

    def is_stale(path: str) -> bool:
        left = remote.record is not None and (
            path.startswith(("nodes/", "parents/")) or path == "tree.png"
        )
        return left or ("/" not in path and any(fnmatchcase(path, one) for one in _STALE))

    return [path for path in remote.paths if path not in files and is_stale(path)]


def _compare(api: HfApi, repository: str, commit: str, files: Mapping[str, Path | bytes]) -> None:
    """Raise HubError unless the Hub holds what was sent: large files by the digest it gives, others
    downloaded."""
    there = {
        one.path: one for one in api.list_repo_tree(repository, revision=commit, recursive=True)
    }
    for name, content in files.items():
        entry = there.get(name)
        found = entry.lfs.sha256 if isinstance(entry, RepoFile) and entry.lfs else None
        if entry is not None and found is None:
            with _downloaded(repository, name, commit) as file:
                found = file_digest(file)
        if found != file_digest(content):
            raise HubError(
                f"the Hub holds other bytes than were sent: {name}",
                where=f"{repository}@{commit[:12]}",
                expected=file_digest(content),
                got=found or "no such file",
                hint="push again",
            )


def fetch(
    repository: str, revision: str | None, names: Iterable[str], afresh: bool = False
) -> tuple[Path, str]:
    """Download files of a repository, or take them from the cache; return the folder that they are
    in, and the commit.

    With `afresh` the cache is not trusted.

    Raises:
        HubError: it doesn't exist, is not ours to read, or there is no network and nothing in the
            cache.
    """
    with hub_errors(repository, revision or ""):
        wanted = list(names)
        folder = Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=wanted, force_download=afresh
            )
        )
        if not any((folder / name).is_file() for name in wanted):
            # else a cache without a network speaks for the Hub
            _api().model_info(repository, revision=revision)
    return folder, folder.name


def list_files(repository: str, commit: str) -> list[str]:
    """Return the paths of all files of a repository; none where only the cache can be asked."""
    try:
        with hub_errors(repository):
            return _api().list_repo_files(repository, revision=commit)
    except HubError:
        return []


def _api() -> HfApi:
    return HfApi(library_name="mega_hf", library_version=version("mega_hf"))
