"""The Hub's client: a timeout for every request, retries, and readable errors."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

from huggingface_hub import constants, get_session, get_token, set_client_factory
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from mega_hf.errors import HubError, MegaError, first_line

TIMEOUT = "MEGA_HF_HUB_TIMEOUT"  # the environment variable: seconds without an answer
ATTEMPTS = 5
_DEFAULT_TIMEOUT = 60.0
_LONGEST_WAIT = 300.0
_TEMPORARY = (408, 429, 500, 502, 503, 504)  # status codes after which another try may succeed
_CONFLICT = 412  # somebody else committed meanwhile

logger = logging.getLogger(__name__)
T = TypeVar("T")


# --- Requests


class _Client(httpx.Client):
    """A client that waits for an answer no longer than TIMEOUT says.

    Most functions of huggingface_hub pass no timeout, and would wait forever.
    """

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send a request; fill in the timeouts that it leaves open."""
        text = os.environ.get(TIMEOUT, "")
        limit = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else _DEFAULT_TIMEOUT
        given = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {
            kind: limit if given.get(kind) is None else given[kind]
            for kind in ("connect", "read", "write", "pool")
        }
        return super().send(request, **options)


@cache
def set_timeout() -> None:
    """Give every request of this process a timeout, also those of `datasets`."""
    hooks = get_session().event_hooks  # the default client's: they refuse requests while offline
    set_client_factory(lambda: _Client(event_hooks=hooks, follow_redirects=True, timeout=None))


def retry(attempt: Callable[[], T]) -> T:
    """Call a function up to ATTEMPTS times while the Hub is busy or can't be reached.

    The client retries uploads and downloads by itself, but not what creates or commits.
    """
    set_timeout()
    for number in range(2, ATTEMPTS + 1):
        try:
            return attempt()
        except Exception as error:
            if not _is_temporary(error):
                raise
            wait = min(_retry_after(error) or 2.0 ** (number - 1), _LONGEST_WAIT)
            reason = describe_error(error, "")[0]
            logger.warning("%s; retrying in %.0f s (%d of %d)", reason, wait, number, ATTEMPTS)
            time.sleep(wait)
    return attempt()


def _is_temporary(error: BaseException) -> bool:
    """Return whether another try may succeed: the Hub is busy, or the connection was cut."""
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            return _status(cause) in (*_TEMPORARY, _CONFLICT)
        if isinstance(cause, httpx.TransportError | ConnectionError | TimeoutError):
            return not isinstance(cause, OfflineModeIsEnabled)
    return False


def _retry_after(error: BaseException) -> float | None:
    """Return the seconds that the Hub asked to wait, if it did."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        text = response.headers.get("Retry-After", "") if response is not None else ""
        if re.fullmatch("[0-9]+", text):
            return float(text)
    return None


# --- Errors


@contextmanager
def hub_errors(repository: str, revision: str = "", then: str = "") -> Iterator[None]:
    """Turn errors of the Hub's client into HubErrors.

    Args:
        repository: ORG/NAME.
        revision: the requested revision, if any.
        then: the end of the hint. If empty, something was to be read.
    """
    set_timeout()
    try:
        yield
    except MegaError:
        raise
    except Exception as error:
        others = ConnectionError | TimeoutError | ValueError | RuntimeError
        if not is_of_hub(error) and not isinstance(error, others):
            raise  # an error of this machine, or a bug
        is_rejected = isinstance(error, ValueError) and not isinstance(
            error, HfHubHTTPError | HFValidationError
        )
        if is_rejected:  # the client checks some of what it sends
            what, hint = f"the Hub does not accept this: {_text(error)}", "fix what it names"
        else:
            what, hint = describe_error(error, repository, revision, reading=not then)
        raise HubError(
            what,
            expected="an answer from the Hub",
            got=f"{repository}@{revision}" if revision else repository,
            hint=hint + then,
        ) from None


def is_of_hub(error: BaseException) -> bool:
    """Return whether an error is the Hub's or the network's, and not one of the fetched files."""
    kinds = (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        httpx.TransportError,
        LocalEntryNotFoundError,
    )
    return any(isinstance(cause, kinds) or _is_gated(cause) for cause in _causes(error))


def describe_error(
    error: BaseException, repository: str, revision: str = "", reading: bool = True
) -> tuple[str, str]:
    """Return in words what an error of the Hub's client means, and a hint.

    Args:
        error: the error; the errors that it was raised from are considered too.
        repository: ORG/NAME.
        revision: the requested revision, if any.
        reading: whether something was to be read; a local folder would do as well.
    """
    causes = list(_causes(error))
    for cause in causes:
        known = _describe_refusal(cause, repository, revision)
        if known is not None:
            return known
    instead = ", or download it elsewhere and pass its folder: ./FOLDER" if reading else ""
    if constants.HF_HUB_OFFLINE or any(isinstance(c, OfflineModeIsEnabled) for c in causes):
        what = "not in the cache, and HF_HUB_OFFLINE is set" if reading else "HF_HUB_OFFLINE is set"
        return what, "unset HF_HUB_OFFLINE" + instead
    for cause in causes:
        if isinstance(cause, httpx.TimeoutException | TimeoutError):
            return "the Hub did not answer in time", f"try again, or wait longer: {TIMEOUT}=300"
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return _describe_status(cause)
    return f"the Hub can't be reached ({type(error).__name__})", "check the network" + instead


def _describe_refusal(
    error: BaseException, repository: str, revision: str
) -> tuple[str, str] | None:
    """Describe an error about the repository, its revision or the token; None for all others."""
    logged_in = get_token() is not None
    page = f"{constants.ENDPOINT}/{repository}"
    if _is_gated(error):
        then = "wait until it is granted to this account" if logged_in else "then: hf auth login"
        return "the repository is gated", f"ask for access on {page}; {then}"
    if isinstance(error, HfHubHTTPError) and logged_in and _is_unknown_token(error):
        return "the Hub does not know this token", "log in again: hf auth login, or set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        if logged_in:
            hint = "check the name (hf auth whoami prints the account), or ask the owner for access"
            return "the repository does not exist, or this account may not see it", hint
        hint = "check the name; for a private repository: hf auth login"
        return "the repository does not exist, or it is private and nobody is logged in", hint
    if isinstance(error, RevisionNotFoundError):
        hint = f"use one of its branches, tags or commits: {page}/commits"
        return f"the repository has no revision {revision}", hint
    if isinstance(error, HFValidationError):
        return "not a repository's name", "use ORG/NAME, or ./FOLDER for a local folder"
    return None


def _describe_status(error: HfHubHTTPError) -> tuple[str, str]:
    """Describe an error by its HTTP status."""
    status = _status(error)
    text = _text(error.server_message or first_line(error))
    if status == 429:
        return "too many requests to the Hub (429)", "wait some minutes, or log in: hf auth login"
    if status == 403:
        hint = "use a token with this permission (hf auth login), or another repository"
        return f"the Hub does not permit this: {text}", hint
    hint = "try again later" if status in _TEMPORARY else "fix what it names, or report a bug"
    return f"the Hub answered with error {status}: {text}", hint


def _is_gated(error: BaseException) -> bool:
    # `datasets` drops the Hub's error and raises one with this text
    return isinstance(error, GatedRepoError) or "gated dataset" in str(error)


def _is_unknown_token(error: HfHubHTTPError) -> bool:
    if _status(error) != 401:
        return False
    header = error.response.headers.get("X-Error-Message")
    return "invalid" in f"{error.server_message} {header}".lower()


def _status(error: HfHubHTTPError) -> int | None:
    return error.response.status_code if error.response is not None else None


def _text(error: object) -> str:
    """Return an error's text on one line, without the token."""
    text = " ".join(str(error).split())[:300]
    token = get_token()
    return text.replace(token, "(token)") if token else text


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, the error that it was raised from, and so on."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
