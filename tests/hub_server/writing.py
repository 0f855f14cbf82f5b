"""Write requests to the test Hub: repositories and commits."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from starlette.responses import PlainTextResponse

from tests.hub_server.access import Call, Refusal
from tests.hub_server.card import check_card
from tests.hub_server.faults import damaged
from tests.hub_server.pulls import add_event, open_pull, target
from tests.hub_server.store import LARGE, Commit, File, Repository, git_oid, pointer

_ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE)
_FORBIDDEN = ("", ".", "..", ".git", ".cache")


def create(call: Call) -> Any:
    """Create a repository with its first commit."""
    wanted, user = call.tree(), call.account
    kind = f"{wanted.get('type') or 'model'}s"
    name = f"{wanted.get('organization') or user.name}/{wanted['name']}"
    url = f"{call.url}/{'' if kind == 'models' else kind + '/'}{name}"
    if kind not in ("models", "datasets"):
        raise Refusal(400, f"this Hub keeps no {kind}")
    if user.role != "write" or not user.owns(name):
        space = name.partition("/")[0]
        raise Refusal(
            403, f"You don't have the rights to create a {kind[:-1]} under the namespace {space}"
        )
    if (kind, name) in call.store.repositories:
        raise Refusal(409, f"You already created this {kind[:-1]} repo", url=url)
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    repository = Repository(kind, name, call.store.objects, private)
    files = {".gitattributes": repository.keep(".gitattributes", _ATTRIBUTES.encode())}
    repository.branches["main"] = repository.commit(
        files, None, "initial commit", author=user.name
    ).id
    call.store.repositories[kind, name] = repository
    call.store.save()
    return {"url": url, "name": name, "private": private}


def delete(call: Call) -> Any:
    """Delete a repository."""
    wanted = call.tree()
    user = call.account
    organization = wanted.get("organization") or user.name
    call.names = {
        "kind": f"{wanted.get('type') or 'model'}s",
        "org": organization,
        "name": wanted["name"],
    }
    repository = call.writable()
    del call.store.repositories[repository.kind, repository.name]
    call.store.save()
    return {}


def settings(call: Call) -> Any:
    """Change the visibility of a repository."""
    repository, wanted = call.writable(), call.tree()
    if "visibility" in wanted or "private" in wanted:
        repository.private = (
            wanted.get("visibility", "") == "private" or wanted.get("private") is True
        )
    if "gated" in wanted:
        repository.gated = wanted["gated"]
    call.store.save()
    return {"private": repository.private, "gated": repository.gated}


def validate_yaml(call: Call) -> Any:
    """Validate a card before it is uploaded."""
    errors, warnings = check_card(call.tree().get("content", ""))
    if errors and call.headers.get("accept") == "text/plain":  # as `RepoCard.validate` asks
        return PlainTextResponse("\n".join(f"- {error}" for error in errors), 400)
    if errors:
        raise _bad_card(errors, warnings)
    return {"errors": [], "warnings": _messages(warnings)}


def _bad_card(errors: list[str], warnings: list[str]) -> Refusal:
    told = "Invalid metadata in README.md: " + "; ".join(errors)
    return Refusal(400, told, errors=_messages(errors), warnings=_messages(warnings))


def _messages(texts: list[str]) -> list[dict[str, str]]:
    return [{"message": text} for text in texts]


def commit(call: Call) -> Any:
    """Commit to a branch or a pull request, or open a pull request with the commit."""
    header, operations = _parse(call.body)
    title, message = header.get("summary", ""), header.get("description", "")
    wanted, creates = header.get("parentCommit"), call.says("create_pr")
    repository, pull = (call.proposable(), None) if creates else target(call)
    parent = call.commit(repository)
    if creates and wanted:
        parent = call.commit(repository, wanted)
    elif wanted not in (None, parent.id):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    elif not creates and pull is None and call.names["revision"] not in repository.branches:
        raise Refusal(
            404,
            f"Invalid rev id: {call.names['revision']}: commits go to branches",
            "RevisionNotFound",
        )
    if not title:
        raise Refusal(400, "a commit needs a summary")
    files = _apply(call, repository, parent, operations)
    made = repository.commit(files, parent.id, title, message, call.account.name)
    if creates:
        pull = open_pull(repository, call.account, title, message, base=parent.id, status="open")
    if pull is not None:
        pull.head = made.id
        add_event(pull, call.account.name, "commit", subject=title, oid=made.id)
    else:
        repository.branches[call.names["revision"]] = made.id
    call.store.save()
    web = f"{call.url}/{'' if repository.kind == 'models' else 'datasets/'}{repository.name}"
    answer = {
        "success": True,
        "commitOid": made.id,
        "commitUrl": f"{web}/commit/{made.id}",
        "hookOutput": "",
    }
    return answer | (
        {"pullRequestUrl": f"{web}/discussions/{pull.number}"} if creates and pull else {}
    )


def _parse(body: bytes) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        items = [(line["key"], line["value"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal(400, f"not lines of JSON: {error}") from error
    if not items or items[0][0] != "header":
        raise Refusal(400, "the first line must be the header")
    return items[0][1], items[1:]


def _apply(
    call: Call, repository: Repository, parent: Commit, operations: list[tuple[str, dict[str, Any]]]
) -> dict[str, File]:
    """Return the files after all operations, applied in order."""
    files = dict(parent.files)
    for key, value in operations:
        path = value.get("path", "").rstrip("/")
        if key in ("deletedFile", "deletedFolder"):
            gone = [
                name
                for name in files
                if name == path or (key == "deletedFolder" and name.startswith(f"{path}/"))
            ]
            if not gone:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
            continue
        if any(part in _FORBIDDEN for part in path.split("/")):
            raise Refusal(400, f"not a path within a repository: {path!r}")
        if key == "file":
            files[path] = _regular(call, repository, path, value)
        elif key == "lfsFile":
            files[path] = _large(repository, value)
        else:
            raise Refusal(400, f"unknown operation {key}")
    for clash in _clashes(files):
        raise Refusal(400, f"{clash} would be a file and a folder")
    return files


def _regular(call: Call, repository: Repository, path: str, value: dict[str, Any]) -> File:
    if value.get("encoding") == "base64":
        try:
            content = base64.b64decode(value["content"], validate=True)
        except binascii.Error as error:
            raise Refusal(400, f"{path} is not base64: {error}") from error
    else:
        content = value["content"].encode()
    if path == "README.md":
        errors, warnings = check_card(content.decode(errors="replace"))
        if errors:
            raise _bad_card(errors, warnings)
    if call.fault is not None and call.fault.options["file"] in path:
        content = damaged(content)
    return repository.keep(path, content, large=False)


def _large(repository: Repository, value: dict[str, Any]) -> File:
    claimed = value["oid"]
    if claimed not in repository.uploads:
        raise Refusal(400, f"the object {claimed} of {value['path']} was never uploaded")
    kept = repository.uploads[claimed]
    size = repository.objects.path(kept).stat().st_size
    if value.get("size", size) != size:
        raise Refusal(400, f"the object {claimed} has {size} bytes, not {value['size']}")
    return File(kept, size, git_oid(pointer(kept, size)), large=True)


def _clashes(files: dict[str, File]) -> Iterator[str]:
    for path in files:
        yield from (str(above) for above in PurePosixPath(path).parents if str(above) in files)
