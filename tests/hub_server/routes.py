"""The routes of the test Hub, and the application that handles every request."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Message, Receive, Scope, Send

from tests.hub_server import pulls as hub_pulls
from tests.hub_server import reading as hub_reading
from tests.hub_server import uploads as hub_uploads
from tests.hub_server import writing as hub_writing
from tests.hub_server.access import Call, Refusal
from tests.hub_server.faults import Fault, Faults
from tests.hub_server.store import Store

_HangUp = Callable[[], Awaitable[None]]
_REPO = "/api/{kind}/{org}/{name}"
_PLACES: list[tuple[str, str, Callable[[Call], Any]]] = [
    ("GET", "/api/whoami-v2", hub_reading.whoami),
    ("POST", "/api/validate-yaml", hub_writing.validate_yaml),
    ("POST", "/api/repos/create", hub_writing.create),
    ("DELETE", "/api/repos/delete", hub_writing.delete),
    ("GET", "/api/{kind}", hub_reading.listing),
    ("GET", _REPO, hub_reading.info),
    ("GET", f"{_REPO}/revision/{{revision}}", hub_reading.info),
    ("GET", f"{_REPO}/tree/{{revision}}", hub_reading.tree),
    ("GET", f"{_REPO}/tree/{{revision}}/{{path:path}}", hub_reading.tree),
    ("POST", f"{_REPO}/paths-info/{{revision}}", hub_reading.paths_info),
    ("GET", f"{_REPO}/commits/{{revision}}", hub_reading.commits),
    ("GET", f"{_REPO}/refs", hub_reading.refs),
    ("GET", f"{_REPO}/auth-check", hub_reading.auth_check),
    ("PUT", f"{_REPO}/settings", hub_writing.settings),
    ("POST", f"{_REPO}/preupload/{{revision}}", hub_uploads.preupload),
    ("GET", f"{_REPO}/xet-write-token/{{revision}}", hub_uploads.xet_token),
    ("POST", f"{_REPO}/commit/{{revision}}", hub_writing.commit),
    ("POST", f"{_REPO}/branch/{{branch}}", hub_pulls.create_branch),
    ("DELETE", f"{_REPO}/branch/{{branch}}", hub_pulls.delete_branch),
    ("POST", f"{_REPO}/tag/{{revision}}", hub_pulls.create_tag),
    ("DELETE", f"{_REPO}/tag/{{revision}}", hub_pulls.delete_tag),
    ("GET", f"{_REPO}/discussions", hub_pulls.discussions),
    ("POST", f"{_REPO}/discussions", hub_pulls.discuss),
    ("GET", f"{_REPO}/discussions/{{number}}", hub_pulls.details),
    ("POST", f"{_REPO}/discussions/{{number}}/comment", hub_pulls.comment),
    ("POST", f"{_REPO}/discussions/{{number}}/status", hub_pulls.change_status),
    ("POST", f"{_REPO}/discussions/{{number}}/merge", hub_pulls.merge),
    ("PUT", "/lfs/{kind}/{org}/{name}/{oid}", hub_uploads.upload),
]
for _prefix in ("/{kind}", ""):  # models have none; what has one is tried first
    _web = f"{_prefix}/{{org}}/{{name}}"
    _PLACES += [
        ("POST", f"{_web}.git/info/lfs/objects/batch", hub_uploads.batch),
        ("POST", f"{_web}.git/info/lfs/objects/verify", hub_uploads.verify),
        ("GET", f"{_web}/resolve/{{revision}}/{{path:path}}", hub_reading.resolve),
    ]
_PLACES += [  # a name without a namespace, as the oldest repositories have
    ("GET", "/api/{kind}/{name}", hub_reading.info),
    ("GET", "/api/{kind}/{name}/revision/{revision}", hub_reading.info),
    ("GET", "/{name}/resolve/{revision}/{path:path}", hub_reading.resolve),
]


class Door:
    """The ASGI application: record each request, simulate faults, and route the rest."""

    def __init__(self, store: Store, log: Callable[[str], None] | None = None) -> None:
        self.store, self.log = store, log
        self.faults = Faults()
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.failures: list[str] = []  # tracebacks of our own mistakes
        self.page_size = 1000
        self.is_closing = False
        routes: list[BaseRoute] = [
            Route(path, self._endpoint(f), methods=[verb]) for verb, path, f in _PLACES
        ]
        self._router = Router(routes, redirect_slashes=False, default=_nowhere)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = f"{scope['method']} {scope['path']}"
        self.requests.append(request)
        fault = self.faults.take(request)
        # ASGI has no word for the end of a connection in the middle: the transport is uvicorn's.
        hang_up = partial(_hang_up, receive, send.__self__.transport)  # type: ignore[attr-defined]
        is_cut = fault is not None and fault.kind == "cut"
        limit = (
            fault.options["after"]
            if fault and is_cut and scope["method"] not in ("GET", "HEAD")
            else None
        )
        body, is_whole = await _read(receive, limit)
        if body and self.log is None:
            self.bodies.append(body)
        if not is_whole:  # the client went: what it began to say must not be done
            return
        if self.log is not None:
            send = self._logged(request, send)
        # The router would take a quoted slash within a name for one between two.
        scope = dict(scope) | {
            "path": scope["raw_path"].decode("ascii"),
            "hub.body": body,
            "hub.fault": None,
        }
        if fault is None:
            await self._router(scope, receive, send)
        elif is_cut and (limit is not None or not fault.options["after"]):
            await hang_up()
        else:
            await self._misbehave(fault, hang_up, scope, receive, send)

    async def _misbehave(
        self, fault: Fault, hang_up: _HangUp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if fault.kind in ("status", "lose_commit"):
            status, after = fault.options.get("status", 500), fault.options.get("retry_after")
            headers = {} if after is None else {"Retry-After": str(after)}
            await JSONResponse({"error": "the Hub is busy"}, status, headers)(scope, receive, send)
        elif fault.kind == "stall":
            end = time.monotonic() + fault.options["seconds"]
            while time.monotonic() < end and not self.is_closing:
                await asyncio.sleep(0.02)
            await (hang_up() if self.is_closing else self._router(scope, receive, send))
        elif fault.kind == "lose_answer":
            await self._router(scope, receive, _swallow)
            await hang_up()
        elif fault.kind == "cut":
            await self._router(scope, receive, _cutting(fault.options["after"], hang_up, send))
        else:
            await self._router(scope | {"hub.fault": fault}, receive, send)

    def _endpoint(self, answer: Callable[[Call], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            call = Call(
                self.store,
                f"{request.url.scheme}://{request.url.netloc}",
                request.method,
                {key: unquote(value) for key, value in request.path_params.items()}
                | {"raw": unquote(request.scope["path"])},
                request.query_params,
                request.headers,
                request.scope["hub.body"],
                request.scope["hub.fault"],
                self.page_size,
            )
            try:
                with self.store.lock:
                    value = answer(call)
            except Refusal as refusal:
                return refusal.response()
            except Exception:
                failure = traceback.format_exc()
                self.failures.append(failure) if self.log is None else self.log(failure)
                return JSONResponse({"error": failure}, 500)
            return value if isinstance(value, Response) else JSONResponse(value)

        return endpoint

    def _logged(self, request: str, send: Send) -> Send:
        async def logged(message: Message) -> None:
            if message["type"] == "http.response.start" and self.log is not None:
                self.log(f"{message['status']} {request}")
            await send(message)

        return logged


async def _read(receive: Receive, limit: int | None) -> tuple[bytes, bool]:
    """Return a request's body up to some bytes, and whether this is all of it."""
    parts, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts), False
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if not message.get("more_body", False) or (limit is not None and size >= limit):
            return b"".join(parts)[:limit], True


async def _hang_up(receive: Receive, transport: asyncio.Transport) -> None:
    """Close the connection without an answer."""
    while transport.get_write_buffer_size() and not transport.is_closing():
        await asyncio.sleep(0.001)
    transport.abort()
    while (await receive())["type"] != "http.disconnect":
        continue


async def _swallow(message: Message) -> None:
    """Send nothing."""


def _cutting(after: int, hang_up: _HangUp, send: Send) -> Send:
    """Send some bytes of a body, then close the connection."""
    left = after

    async def cut(message: Message) -> None:
        nonlocal left
        if left < 0:
            return
        if message["type"] == "http.response.start":
            await send(message)
            return
        piece = message.get("body", b"")[:left]
        left -= len(piece)
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        if not left or not message.get("more_body", False):
            left = -1
            await hang_up()

    return cut


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    await Refusal(404, "Sorry, we can't find the page you are looking for.").response()(
        scope, receive, send
    )
