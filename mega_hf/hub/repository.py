"""Read and write repositories on the Hub: the only code that writes to the network."""

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
from mega_hf.recipe.schema import Push
from mega_hf.report.result import NAME as RESULT
from mega_hf.runtime.files import file_digest
from mega_hf.runtime.hub_client import hub_errors, retry

# Files that would be loaded instead of, or beside, the pushed model.
_STALE = (
    "model*.safetensors",
    "*.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
)
AGAIN = "; nothing is lost: run the same push to resume"


@dataclass(frozen=True)
class Remote:
    """The content of a repository before a push."""

    revision: str  # the branch or the pull request of the commit
    commit: str | None  # its head; None if the repository or the branch does not exist
    exists: bool
    card: bytes | None = None  # README.md
    record: bytes | None = None  # result.json of an earlier push
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pushed:
    """The outcome of a push; `str` is a sentence."""

    url: str
    commit: str
    files: int
    is_new: bool  # False: the repository had all files already
    removed: tuple[str, ...] = ()  # files of an earlier push

    def __str__(self) -> str:
        if not self.is_new:
            return f"{self.url} holds all {self.files} files already (commit {self.commit[:12]})"
        removed = f"; removed: {', '.join(self.removed)}" if self.removed else ""
        return (
            f"{self.url} (commit {self.commit[:12]}, {self.files} files, their SHA-256"
            f" compared{removed})"
        )


def check_name(repository: str) -> None:
    """Raise HubError if this can't be the name of a repository."""
    with hub_errors(repository):
        validate_repo_id(repository)
    if "/" not in repository:
        raise HubError(
            "not a repository's name",
            expected="ORG/NAME",
            got=repository,
            hint="use e.g. me/merged",
        )


def check_account(wanted: Push) -> str:
    """Return the name of the account, after checking that it may write to the repository.

    Raises:
        HubError: nobody is logged in, the token is invalid or read-only, or the account may
            not write there.
    """
    check_name(wanted.repo)
    if get_token() is None:
        raise HubError(
            "nobody is logged in",
            expected="a token with the right to write",
            got="none",
            hint="run hf auth login, or set HF_TOKEN",
        )
    with hub_errors(wanted.repo, then=AGAIN):
        account = retry(lambda: _api().whoami())
    owner, name = wanted.repo.split("/")[0], str(account["name"])
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(
            f"the token of {name} may only read",
            expected="a token with the right to write",
            got="role: read",
            hint="use another token: run hf auth login, or set HF_TOKEN",
        )
    mine = [name, *(str(org.get("name")) for org in account.get("orgs", ()))]
    is_known = "orgs" in account  # some tokens don't list them
    if (
        not wanted.create_pr
        and is_known
        and owner.lower() not in [account.lower() for account in mine]
    ):
        raise HubError(
            f"{name} may not write there",
            expected=f"a repository of {' or '.join(mine)}",
            got=wanted.repo,
            hint="use another name, or --create-pr to propose the merge to the owner",
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


def look(wanted: Push) -> Remote:
    """Return the current content of the repository."""
    api, repository = _api(), wanted.repo
    revision = wanted.branch or "main"
    try:
        info = api.model_info(repository)
    except RepositoryNotFoundError:
        return Remote(revision, None, exists=False)
    if wanted.private and not info.private:
        raise HubError(
            "the repository is public",
            expected="a private repository, because of --private",
            got=repository,
            hint="make it private on its page, push without --private, or use another name",
        )
    if wanted.create_pr:
        revision = _open_pull_request(api, wanted) or revision
    is_new = False
    try:
        info = api.model_info(repository, revision=revision)
    except RevisionNotFoundError:
        is_new = True  # the branch will start from main
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
    """Download one file, without any cache."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(hf_hub_download(repository, name, revision=commit, local_dir=folder))


def _open_pull_request(api: HfApi, wanted: Push) -> str | None:
    """Return the reference of an earlier attempt's pull request, if there is one."""
    mine = api.get_repo_discussions(
        wanted.repo, author=api.whoami()["name"], discussion_type="pull_request"
    )
    unmerged = ("open", "draft")
    return next(
        (f"refs/pr/{o.num}" for o in mine if o.title == wanted.message and o.status in unmerged),
        None,
    )


def send(
    wanted: Push, make: Callable[[Remote], Mapping[str, Path | bytes]], description: str = ""
) -> Pushed:
    """Commit files to a repository, which is created if it does not exist.

    While the Hub is busy or can't be reached, everything is tried again, with back-off. No uploaded
    file is sent twice.

    Args:
        wanted: the repository, and how to push.
        make: returns the files, given the repository's content. It raises whatever must stop the
            push, before anything is sent.
        description: the commit's second paragraph.

    Raises:
        HubError: the Hub refused the push, gave no answer, or holds other bytes than were sent.
    """

    def attempt() -> Pushed:
        """Try once."""
        remote = look(wanted)
        files = make(remote)
        if remote.commit is None:
            _create(wanted, remote)
            remote = look(wanted)
            files = make(remote)
        return _commit(wanted, remote, files, description)

    with hub_errors(wanted.repo, then=AGAIN):
        return retry(attempt)


def _create(wanted: Push, remote: Remote) -> None:
    """Create the repository and the branch, whichever is missing."""
    api = _api()
    api.create_repo(wanted.repo, private=wanted.private or None, exist_ok=True)
    if remote.revision != "main":
        api.create_branch(wanted.repo, branch=remote.revision, exist_ok=True)


def _commit(
    wanted: Push, remote: Remote, files: Mapping[str, Path | bytes], description: str
) -> Pushed:
    api, repository = _api(), wanted.repo
    is_update = remote.revision.startswith("refs/pr/")
    stale = stale_paths(remote, files)
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    made = api.create_commit(
        repository,
        [*operations, *(CommitOperationDelete(path) for path in stale)],
        commit_message=wanted.message or "Merge by mega_hf",
        commit_description=description,
        revision=remote.revision,
        create_pr=wanted.create_pr and not is_update,
        parent_commit=remote.commit,
    )
    revision = made.pr_revision or (remote.revision if is_update else None)
    commit = str(api.model_info(repository, revision=revision).sha) if revision else made.oid
    _compare(api, repository, commit, files)
    number = revision.rpartition("/")[2] if revision else ""
    page = f"{api.endpoint}/{repository}" + (f"/discussions/{number}" if revision else "")
    return Pushed(page, commit, len(files), is_new=commit != remote.commit, removed=tuple(stale))


def stale_paths(remote: Remote, files: Mapping[str, Path | bytes]) -> list[str]:
    """Return the files that a push removes: stale models, and remains of an earlier push."""

    def is_stale(path: str) -> bool:
        left = remote.record is not None and (
            path.startswith(("nodes/", "parents/")) or path == "tree.png"
        )
        return left or ("/" not in path and any(fnmatchcase(path, one) for one in _STALE))

    return [path for path in remote.paths if path not in files and is_stale(path)]


def _compare(api: HfApi, repository: str, commit: str, files: Mapping[str, Path | bytes]) -> None:
    """Raise HubError unless the Hub holds the bytes that were sent.

    Large files are compared by the digest that the Hub gives; others are downloaded.
    """
    remote = {
        entry.path: entry
        for entry in api.list_repo_tree(repository, revision=commit, recursive=True)
    }
    for name, content in files.items():
        entry = remote.get(name)
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
    """Download files of a repository, or take them from the cache.

    Args:
        repository: ORG/NAME.
        revision: a branch, tag or commit; None for main.
        names: the files to download.
        afresh: download cached files again.

    Returns:
        the folder that holds the files, and the commit.

    Raises:
        HubError: the repository does not exist, can't be read, or is not in the cache while
            there is no network.
    """
    with hub_errors(repository, revision or ""):
        wanted = list(names)
        folder = Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=wanted, force_download=afresh
            )
        )
        if not any((folder / name).is_file() for name in wanted):
            # an empty cache without a network must not pass for an empty repository
            _api().model_info(repository, revision=revision)
    return folder, folder.name


def list_files(repository: str, commit: str) -> list[str]:
    """Return the paths of all files of a repository; none if the Hub can't be reached."""
    try:
        with hub_errors(repository):
            return _api().list_repo_files(repository, revision=commit)
    except HubError:
        return []


def _api() -> HfApi:
    return HfApi(library_name="mega_hf", library_version=version("mega_hf"))
