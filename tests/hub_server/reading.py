"""Read requests to the test Hub: accounts, repositories, listings and files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import yaml
from starlette.responses import JSONResponse, Response, StreamingResponse

from tests.hub_server.access import Call, Refusal
from tests.hub_server.card import card_data
from tests.hub_server.faults import damaged
from tests.hub_server.store import Commit, File, Repository

_PIECE = 1 << 20


def whoami(call: Call) -> Any:
    """Return the account of a token."""
    user = call.account
    return {
        "type": "user",
        "id": hashlib.sha1(user.name.encode()).hexdigest()[:24],
        "name": user.name,
        "fullname": user.name,
        "isPro": False,
        "canPay": False,
        "periodEnd": None,
        "orgs": [
            {"type": "org", "name": org, "fullname": org, "roleInOrg": user.role}
            for org in user.orgs
        ],
        "auth": {
            "type": "access_token",
            "accessToken": {"displayName": "tests", "role": user.role},
        },
    }


def listing(call: Call) -> Any:
    """List the repositories of a kind that the user may see."""
    user, kind, owner = call.user, call.kind, call.query.get("author")
    shown = [one for (its_kind, _), one in call.store.repositories.items() if its_kind == kind]
    shown = [one for one in shown if not one.private or (user and user.owns(one.name))]
    shown = [one for one in shown if owner in (None, one.name.partition("/")[0])]
    return [
        _record(one, one.commits[one.head], False)
        for one in shown
        if call.query.get("search", "") in one.name
    ]


def info(call: Call) -> Any:
    """Return a repository at a revision."""
    repository = call.repository()
    return _record(repository, call.commit(repository), call.says("blobs"))


def _record(repository: Repository, commit: Commit, blobs: bool) -> dict[str, Any]:
    card = _card(repository, commit)
    library = card.get("library_name")
    record = {
        "_id": commit.id[:24],
        "id": repository.name,
        "author": repository.name.partition("/")[0],
        "sha": commit.id,
        "private": repository.private,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": _tags(card),
        "gated": "auto" if repository.gated is True else repository.gated,
        "createdAt": repository.created,
        "lastModified": commit.date,
        "usedStorage": sum(file.size for file in commit.files.values()),
        "siblings": [_sibling(path, file, blobs) for path, file in commit.files.items()],
    }
    if repository.kind == "models":
        record |= {"modelId": repository.name} | ({"library_name": library} if library else {})
        record |= {key: card[key] for key in ("pipeline_tag", "model-index") if key in card}
    return record | ({"cardData": card} if card else {})


def _card(repository: Repository, commit: Commit) -> dict[str, Any]:
    if "README.md" not in commit.files:
        return {}
    text = repository.objects.read(commit.files["README.md"].sha256).decode(errors="replace")
    try:
        data = card_data(text)
    except yaml.YAMLError:  # published from a folder, which nobody checked
        return {}
    return json.loads(json.dumps(data, default=str)) if isinstance(data, dict) else {}


def _tags(card: dict[str, Any]) -> list[str]:
    """Return the tags of a card, and those that the Hub derives from its other fields."""
    tags = [card["library_name"]] if isinstance(card.get("library_name"), str) else []
    for key, prefix in {
        "tags": "",
        "license": "license:",
        "datasets": "dataset:",
        "base_model": "base_model:",
    }.items():
        values = card.get(key)
        tags += [
            f"{prefix}{one}" for one in (values if isinstance(values, list) else [values]) if one
        ]
    if card.get("base_model_relation"):
        made = [tag.removeprefix("base_model:") for tag in tags if tag.startswith("base_model:")]
        tags += [f"base_model:{card['base_model_relation']}:{one}" for one in made]
    return [*dict.fromkeys(tags), "region:us"]


def _sibling(path: str, file: File, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    record = {"rfilename": path, "size": file.size, "blobId": file.oid}
    lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": file.lfs["pointerSize"]}
    return record | ({"lfs": lfs} if file.large else {})


def tree(call: Call) -> Any:
    """List a folder of a revision, page by page."""
    repository = call.repository()
    commit = call.commit(repository)
    below = call.names.get("path", "").strip("/")
    entries = [one for one in _entries(commit) if not below or one["path"].startswith(f"{below}/")]
    if below and not entries:
        raise _missing(below, commit)
    if not call.says("recursive"):
        depth = below.count("/") + 1 if below else 0
        entries = [one for one in entries if one["path"].count("/") == depth]
    size = min(50, call.page_size) if call.says("expand") else call.page_size
    size, first = int(call.query.get("limit", size)), int(call.query.get("cursor", 0))
    page = entries[first : first + size]
    if call.says("expand"):
        page = [_expanded(repository, commit, one) for one in page]
    return _paged(call, page, first + size if first + size < len(entries) else None)


def paths_info(call: Call) -> Any:
    """Describe some paths; missing ones are left out."""
    repository = call.repository()
    commit, form = call.commit(repository), call.form()
    wanted = [path.strip("/") for path in form.get("paths", form.get("paths[]", []))]
    entries = [one for one in _entries(commit) if one["path"] in wanted]
    if form.get("expand", [""])[0].lower() == "true":
        entries = [_expanded(repository, commit, one) for one in entries]
    return entries


def _entries(commit: Commit) -> list[dict[str, Any]]:
    """Return all folders and files."""
    entries, folders = [], dict[str, list[str]]()
    for path, file in commit.files.items():
        entry = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
        entries.append(entry | ({"lfs": file.lfs} if file.large else {}))
        for end in [i for i, sign in enumerate(path) if sign == "/"]:
            folders.setdefault(path[:end], []).append(f"{path} {file.oid}")
    for path, content in folders.items():
        oid = hashlib.sha1("\n".join(content).encode()).hexdigest()
        entries.append({"type": "directory", "oid": oid, "size": 0, "path": path})
    return sorted(entries, key=lambda entry: entry["path"])


def _expanded(repository: Repository, commit: Commit, entry: dict[str, Any]) -> dict[str, Any]:
    last = commit
    for older in repository.history(commit.id):
        if _below(older, entry["path"]) != _below(commit, entry["path"]):
            break
        last = older
    safe = {"status": "safe", "avScan": None, "pickleImportScan": None}
    return entry | {
        "lastCommit": {"id": last.id, "title": last.title, "date": last.date},
        **({"securityFileStatus": safe} if entry["type"] == "file" else {}),
    }


def _below(commit: Commit, path: str) -> dict[str, File]:
    return {
        name: file
        for name, file in commit.files.items()
        if name == path or name.startswith(f"{path}/")
    }


def commits(call: Call) -> Any:
    """List the commits of a revision, newest first."""
    repository = call.repository()
    first = int(call.query.get("p", 0)) * call.page_size
    history = list(repository.history(call.commit(repository).id))
    page = [
        {
            "id": one.id,
            "title": one.title,
            "message": one.message,
            "date": one.date,
            "authors": [{"user": one.author}],
        }
        for one in history[first : first + call.page_size]
    ]
    more = first + call.page_size < len(history)
    return _paged(call, page, int(call.query.get("p", 0)) + 1 if more else None, "p")


def _paged(
    call: Call, page: Sequence[Any], following: int | None, name: str = "cursor"
) -> Response:
    if following is None:
        return JSONResponse(list(page))
    path = "/".join(quote(part, safe="") for part in call.names["raw"].split("/"))
    query = urlencode({**call.query, name: following})
    return JSONResponse(list(page), headers={"Link": f'<{call.url}{path}?{query}>; rel="next"'})


def refs(call: Call) -> Any:
    """List the branches, the tags and, on request, the pull requests."""
    repository = call.repository()

    def listed(prefix: str, names: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"{prefix}{name}", "targetCommit": commit}
            for name, commit in names
        ]

    record = {
        "branches": listed("refs/heads/", repository.branches.items()),
        "converts": [],
        "tags": listed("refs/tags/", repository.tags.items()),
    }
    if call.says("include_prs"):
        record["pullRequests"] = listed("", [(pull.ref, pull.head) for pull in repository.pulls])
    return record


def auth_check(call: Call) -> Any:
    """Check that the user may read the files."""
    call.check_files(call.repository())
    return {}


def resolve(call: Call) -> Any:
    """Return a file, or the requested range of it."""
    repository = call.repository()
    call.check_files(repository)
    commit = call.commit(repository)
    path = call.names["path"]
    if (file := commit.files.get(path)) is None:
        raise _missing(path, commit)
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    if file.large:
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
    headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2])}"
    first, last, status = 0, file.size - 1, 200
    if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("range", "")):
        first, last = _range(wanted[1], wanted[2], file.size)
        headers["Content-Range"], status = f"bytes {first}-{last}/{file.size}", 206
    headers["Content-Length"] = str(last - first + 1)
    if call.method == "HEAD":
        return Response(b"", status, headers, "application/octet-stream")
    source = repository.objects.path(file.sha256)
    if call.fault is not None:
        return Response(
            damaged(source.read_bytes()[first : last + 1]),
            status,
            headers,
            "application/octet-stream",
        )
    return StreamingResponse(
        _pieces(source, first, last + 1), status, headers, "application/octet-stream"
    )


def _range(first: str, last: str, size: int) -> tuple[int, int]:
    """Return the first and the last byte of the requested range."""
    if not first:
        start, end = max(0, size - int(last or 0)), size - 1
    else:
        start, end = int(first), min(int(last or size), size - 1)
    if start > end:
        raise Refusal(416, f"the file has {size} bytes")
    return start, end


async def _pieces(source: Path, first: int, end: int) -> AsyncIterator[bytes]:
    with source.open("rb") as file:
        file.seek(first)
        while first < end and (piece := file.read(min(_PIECE, end - first))):
            first += len(piece)
            yield piece


def _missing(path: str, commit: Commit) -> Refusal:
    refusal = Refusal(404, f"Entry not found: {path}", "EntryNotFound")
    refusal.commit = commit.id
    return refusal
