"""Requests to the test Hub: user, repository and permissions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import JSONResponse, Response

from tests.hub_server.faults import Fault
from tests.hub_server.store import Commit, Repository, Store, User

BAD_TOKEN = "Invalid username or password."
KINDS = ("models", "datasets")


class Refusal(Exception):
    """An error answer; the client chooses its exception by `code`."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body
        self.commit: str | None = None

    def response(self) -> Response:
        """Return the answer in the Hub's form."""
        headers = {
            "X-Error-Message": self.message.partition("\n")[0].encode("ascii", "replace").decode()
        }
        headers |= {"X-Error-Code": self.code} if self.code else {}
        headers |= {"X-Repo-Commit": self.commit} if self.commit else {}
        error = {} if "errors" in self.body else {"error": self.message}
        return JSONResponse(error | self.body, self.status, headers)


@dataclass
class Call:
    """One request, with its path parsed and decoded."""

    store: Store
    url: str  # of the Hub, as the client sees it
    method: str
    names: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    fault: Fault | None = None
    page_size: int = 1000

    @property
    def user(self) -> User | None:
        """The user, or None if nobody is logged in."""
        word, _, token = self.headers.get("authorization", "").partition(" ")
        if not token:
            return None
        user = self.store.users.get(token.strip())
        if word.lower() != "bearer" or user is None:
            raise Refusal(401, BAD_TOKEN)
        return user

    @property
    def account(self) -> User:
        """The user; raise Refusal if nobody is logged in."""
        if (user := self.user) is None:
            raise Refusal(401, BAD_TOKEN)
        return user

    @property
    def kind(self) -> str:
        """`models` or `datasets`."""
        kind = self.names.get("kind", "models")
        if kind not in KINDS:
            raise Refusal(404, "Sorry, we can't find the page you are looking for.")
        return kind

    @property
    def name(self) -> str:
        """The repository's name, ORG/NAME."""
        return "/".join(self.names[part] for part in ("org", "name") if part in self.names)

    def tree(self) -> dict[str, Any]:
        """Return the JSON object in the body."""
        try:
            value = json.loads(self.body or b"{}")
        except ValueError:
            value = None
        if value is None:  # the client says so where it has nothing to say
            return {}
        if not isinstance(value, dict):
            raise Refusal(400, "the body must be a JSON object")
        return value

    def form(self) -> dict[str, list[str]]:
        """Return the fields of a form, or of JSON, in the body."""
        if "json" in self.headers.get("content-type", ""):
            return {k: v if isinstance(v, list) else [str(v)] for k, v in self.tree().items()}
        return parse_qs(self.body.decode())

    def says(self, name: str) -> bool:
        """Return whether a query parameter is true."""
        return self.query.get(name, "").lower() in ("1", "true")

    def repository(self) -> Repository:
        """Return the repository; raise the same Refusal for a missing and a private one."""
        user, repository = self.user, self.store.repositories.get((self.kind, self.name))
        if repository is None or (repository.private and not (user and user.owns(self.name))):
            # Over https the client reads the bare 401 so; over http it needs the code.
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        return repository

    def commit(self, repository: Repository, revision: str | None = None) -> Commit:
        """Return the commit of a revision, by default that of the path."""
        revision = revision or self.names.get("revision") or "main"
        commit = repository.find(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository.commits[commit]

    def check_files(self, repository: Repository) -> None:
        """Raise Refusal if the repository is gated and the user has no access to its files."""
        user = self.user
        if repository.gated and not (user and (user.owns(self.name) or self.name in user.access)):
            what = f"Access to {self.kind[:-1]} {self.name} is restricted"
            if user is None:
                message = (
                    f"{what}. You must have access to it and be authenticated to access it. Please"
                    " log in."
                )
                raise Refusal(401, message, "GatedRepo")
            message = (
                f"{what} and you are not in the authorized list. Visit {self.url}/{self.name} to"
                " ask for access."
            )
            raise Refusal(403, message, "GatedRepo")

    def may_write(self) -> bool:
        """Return whether the user may change the repository."""
        return bool((user := self.user) and user.role == "write" and user.owns(self.name))

    def writable(self) -> Repository:
        """Return the repository; raise Refusal if the user may not change it."""
        repository = self.repository()
        if self.user is None:
            # what the client makes of a 401 over https
            raise Refusal(401, BAD_TOKEN, "RepoNotFound")
        if not self.may_write():
            raise Refusal(403, self.forbidden())
        return repository

    def proposable(self) -> Repository:
        """Return the repository; raise Refusal if the user may not open discussions there."""
        repository = self.repository()
        if self.user is None:
            raise Refusal(401, BAD_TOKEN, "RepoNotFound")
        if self.account.role != "write":
            raise Refusal(403, self.forbidden())
        self.check_files(repository)
        return repository

    def forbidden(self) -> str:
        """Return the reason why the user may not write."""
        if self.account.role != "write":
            return "This token has no right to write. Use one with the role `write`"
        return "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
