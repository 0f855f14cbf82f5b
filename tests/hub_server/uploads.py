"""Uploads to the test Hub: the choice of large file storage, and its protocol."""

from __future__ import annotations

import hashlib
import hmac
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

from starlette.responses import Response

from tests.hub_server.access import Call, Refusal
from tests.hub_server.faults import damaged
from tests.hub_server.pulls import target
from tests.hub_server.store import File, Repository, git_oid, is_large


def preupload(call: Call) -> Any:
    """Return how each file is to be sent."""
    repository = call.proposable() if call.says("create_pr") else target(call)[0]
    commit, wanted = call.commit(repository), call.tree()
    ignored = wanted.get("gitIgnore")
    if ignored is None and ".gitignore" in commit.files:
        ignored = repository.objects.read(commit.files[".gitignore"].sha256).decode()
    answers = []
    for one in wanted["files"]:
        path = one["path"]
        large = is_large(path, one["size"]) and _client(call) not in call.store.xet_clients
        there = commit.files.get(path)
        # What is told is compared with what the client would send: SHA-256 of a large file, git's
        # name of another.
        oid = None if there is None else there.sha256 if large else _plain_oid(repository, there)
        mode = {
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": _is_ignored(path, ignored),
        }
        answers.append({"path": path} | mode | ({"oid": oid} if oid else {}))
    return {"files": answers}


def _plain_oid(repository: Repository, file: File) -> str:
    return git_oid(repository.objects.read(file.sha256)) if file.large else file.oid


def _client(call: Call) -> tuple[str, str]:
    return call.headers.get("authorization", ""), call.headers.get("user-agent", "")


def xet_token(call: Call) -> Any:
    """Refuse uploads through Xet; the client then falls back to large file storage."""
    call.repository()
    call.store.xet_clients.add(_client(call))
    raise Refusal(404, "this Hub has no Xet storage: try again, or set HF_HUB_DISABLE_XET=1")


def _is_ignored(path: str, rules: str | None) -> bool:
    """Apply git's rules for names, endings and folders; the last match wins."""
    ignored = False
    for rule in (rules or "").splitlines():
        rule = rule.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.lstrip("!").strip("/")
        places = [path, *(str(parent) for parent in PurePosixPath(path).parents)]
        if any(
            fnmatch(place, pattern) or fnmatch(PurePosixPath(place).name, pattern)
            for place in places
        ):
            ignored = not rule.startswith("!")
    return ignored


def batch(call: Call) -> Any:
    """Return where to send each large file that is not stored yet."""
    repository, wanted = call.proposable(), call.tree()
    if wanted.get("operation") != "upload" or wanted.get("hash_algo", "sha256") != "sha256":
        raise Refusal(400, "this Hub only takes uploads, by their SHA-256")
    objects = []
    for one in wanted["objects"]:
        answer = {"oid": one["oid"], "size": one["size"]}
        if repository.uploads.get(one["oid"]) != one["oid"]:
            place = f"{call.url}/lfs/{repository.kind}/{repository.name}/{one['oid']}"
            verify = f"{call.url}{call.names['raw'].removesuffix('batch')}verify"
            upload = {
                "href": f"{place}?signature={_signature(call, repository, one['oid'])}",
                "header": {},
            }
            answer["actions"] = {"upload": upload, "verify": {"href": verify, "header": {}}}
        objects.append(answer)
    return {"transfer": "basic", "objects": objects}


def _signature(call: Call, repository: Repository, oid: str) -> str:
    """Return a signature that permits sending this one object without a token."""
    return hmac.new(
        call.store.secret, f"{repository.kind}/{repository.name}/{oid}".encode(), "sha256"
    ).hexdigest()


def upload(call: Call) -> Any:
    """Store the bytes of a large file; `verify` checks them later."""
    oid, repository = call.names["oid"], call.store.repositories.get((call.kind, call.name))
    if repository is None or not hmac.compare_digest(
        call.query.get("signature", ""), _signature(call, repository, oid)
    ):
        raise Refusal(403, "the link is not signed, or its repository is gone")
    content = call.body if call.fault is None else damaged(call.body)
    kept = repository.objects.keep(content)
    if kept == oid or (call.fault is not None and call.fault.options["silent"]):
        repository.uploads[oid] = kept
        call.store.save()
    return Response(headers={"ETag": f'"{hashlib.md5(content).hexdigest()}"'})


def verify(call: Call) -> Any:
    """Check that an object arrived as announced."""
    repository, wanted = call.proposable(), call.tree()
    kept = repository.uploads.get(wanted["oid"])
    if kept is None:
        raise Refusal(422, f"the object {wanted['oid']} did not arrive, or not whole")
    size = repository.objects.path(kept).stat().st_size
    if size != wanted["size"]:
        raise Refusal(422, f"the object {wanted['oid']} has {size} bytes, not {wanted['size']}")
    return {"success": True}
