"""Branches, tags, pull requests and discussions of the test Hub."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from tests.hub_server.access import Call, Refusal
from tests.hub_server.store import Pull, Repository, User, now

_PAGE = 50
_BRANCH = re.compile(r"(?!refs/|[0-9a-f]{40}$)[\w][\w./-]*")


def target(call: Call) -> tuple[Repository, Pull | None]:
    """Return the repository, and the pull request if the revision is one."""
    repository = call.repository()
    pull = _pull_of(repository, call.names["revision"])
    if pull is None:
        return call.writable(), None
    call.proposable()
    if pull.author != call.account.name and not call.may_write():
        raise Refusal(403, call.forbidden())
    if pull.status in ("merged", "closed"):
        raise Refusal(403, f"pull request {pull.number} is {pull.status}")
    return repository, pull


def _pull_of(repository: Repository, revision: str) -> Pull | None:
    return next((pull for pull in repository.pulls if pull.ref == revision), None)


def open_pull(
    repository: Repository, author: User, title: str, text: str, base: str, status: str
) -> Pull:
    """Create a pull request without commits."""
    pull = Pull(
        len(repository.discussions) + 1, title, author.name, status, now(), base=base, head=base
    )
    repository.discussions.append(pull)
    _comment(pull, author, text)
    return pull


def add_event(pull: Pull, user: str, kind: str, **data: Any) -> dict[str, Any]:
    """Add an event to the page of a pull request."""
    name = hashlib.sha1(f"{pull.number}/{len(pull.events)}".encode()).hexdigest()[:24]
    event = {"id": name, "type": kind, "createdAt": now(), "author": {"name": user}, "data": data}
    pull.events.append(event)
    return event


def _comment(pull: Pull, user: User, text: str) -> dict[str, Any]:
    latest = {"raw": text, "html": text, "updatedAt": now(), "author": {"name": user.name}}
    return add_event(
        pull, user.name, "comment", edited=False, hidden=False, latest=latest, history=[]
    )


def discussions(call: Call) -> Any:
    """List the pull requests and discussions, newest first."""
    repository, asked = call.repository(), call.query
    found = list(reversed(repository.discussions))
    if (kind := asked.get("type", "all")) != "all":
        found = [one for one in found if one.is_pull == (kind == "pull_request")]
    if (status := asked.get("status", "all")) != "all":
        found = [one for one in found if (one.status in ("open", "draft")) == (status == "open")]
    if author := asked.get("author"):
        found = [one for one in found if one.author == author]
    start = int(asked.get("p", 0)) * _PAGE
    shown = [_record(call, one) for one in found[start : start + _PAGE]]
    return {"discussions": shown, "count": len(found), "start": start}


def _record(call: Call, pull: Pull) -> dict[str, Any]:
    return {
        "num": pull.number,
        "title": pull.title,
        "author": {"name": pull.author},
        "status": pull.status,
        "createdAt": pull.date,
        "isPullRequest": pull.is_pull,
        "repo": {"name": call.name, "type": call.kind[:-1]},
    }


def discuss(call: Call) -> Any:
    """Open a discussion, or a pull request as a draft."""
    repository, wanted = call.proposable(), call.tree()
    is_pull = bool(wanted.get("pullRequest"))
    pull = open_pull(
        repository,
        call.account,
        wanted["title"],
        wanted.get("description", ""),
        base=repository.head,
        status="draft" if is_pull else "open",
    )
    pull.is_pull = is_pull
    call.store.save()
    return {
        "num": pull.number,
        "url": f"{call.url}/{call.name}/discussions/{pull.number}",
        "pullRequest": is_pull,
    }


def _find(call: Call) -> tuple[Repository, Pull]:
    repository, number = call.repository(), call.names["number"]
    found = [one for one in repository.discussions if str(one.number) == number]
    if not found:
        raise Refusal(404, f"there is no discussion {number}")
    return repository, found[0]


def details(call: Call) -> Any:
    """Return a pull request with all of its events."""
    repository, pull = _find(call)
    record = _record(call, pull) | {"events": pull.events}
    if pull.is_pull:
        changes = {"base": "refs/heads/main"} | (
            {"mergeCommitId": pull.merge_commit} if pull.merge_commit else {}
        )
        record |= {
            "changes": changes,
            "filesWithConflicts": _conflicts(repository, pull),
            "diff": "",
        }
    return record


def comment(call: Call) -> Any:
    """Add a comment."""
    call.proposable()
    _, pull = _find(call)
    event = _comment(pull, call.account, call.tree()["comment"])
    call.store.save()
    return {"newMessage": event}


def change_status(call: Call) -> Any:
    """Open or close a pull request or a discussion."""
    call.proposable()
    _, pull = _find(call)
    if pull.author != call.account.name and not call.may_write():
        raise Refusal(403, call.forbidden())
    status = call.tree()["status"]
    if pull.status == "merged" or status not in ("open", "closed"):
        raise Refusal(400, f"a discussion that is {pull.status} can't be made {status}")
    pull.status = status
    event = add_event(pull, call.account.name, "status-change", status=status)
    call.store.save()
    return {"newStatus": event}


def merge(call: Call) -> Any:
    """Merge a pull request into `main`, as one commit."""
    repository, (_, pull) = call.writable(), _find(call)
    if not pull.is_pull or pull.status != "open":
        raise Refusal(400, f"discussion {pull.number} can't be merged: {pull.status}")
    if conflicts := _conflicts(repository, pull):
        raise Refusal(409, f"changed on both sides: {', '.join(conflicts)}")
    files = dict(repository.commits[repository.head].files)
    for path in _changed(repository, pull.base, pull.head):
        files.pop(path, None)
        if path in repository.commits[pull.head].files:
            files[path] = repository.commits[pull.head].files[path]
    title = f"{pull.title} (#{pull.number})"
    made = repository.commit(files, repository.head, title, author=call.account.name)
    repository.branches["main"] = pull.merge_commit = made.id
    pull.status = "merged"
    add_event(pull, call.account.name, "status-change", status="merged")
    call.store.save()
    return {}


def _changed(repository: Repository, older: str, newer: str) -> set[str]:
    before, after = repository.commits[older].files, repository.commits[newer].files
    return {path for path in {*before, *after} if before.get(path) != after.get(path)}


def _conflicts(repository: Repository, pull: Pull) -> list[str]:
    if pull.status in ("merged", "closed"):
        return []
    both = _changed(repository, pull.base, pull.head) & _changed(
        repository, pull.base, repository.head
    )
    return sorted(both & _changed(repository, repository.head, pull.head))


def create_branch(call: Call) -> Any:
    """Create a branch, from `main` by default."""
    repository, name = call.writable(), call.names["branch"]
    if not _BRANCH.fullmatch(name):
        raise Refusal(400, f"Invalid reference for a branch: {name}")
    if name in repository.branches:
        raise Refusal(409, f"Reference already exists: {name}")
    repository.branches[name] = call.commit(repository, call.tree().get("startingPoint")).id
    call.store.save()
    return {}


def delete_branch(call: Call) -> Any:
    """Delete a branch; its commits stay."""
    repository, name = call.writable(), call.names["branch"]
    if name == "main":
        raise Refusal(403, "main can't be deleted")
    if repository.branches.pop(name, None) is None:
        raise Refusal(404, f"there is no branch {name}", "RevisionNotFound")
    call.store.save()
    return {}


def create_tag(call: Call) -> Any:
    """Create a tag."""
    repository, name = call.writable(), call.tree()["tag"]
    if name in repository.tags:
        raise Refusal(409, f"Tag reference exists already: {name}")
    repository.tags[name] = call.commit(repository).id
    call.store.save()
    return {}


def delete_tag(call: Call) -> Any:
    """Delete a tag."""
    repository, name = call.writable(), call.names["revision"]
    if repository.tags.pop(name, None) is None:
        raise Refusal(404, f"there is no tag {name}", "RevisionNotFound")
    call.store.save()
    return {}
