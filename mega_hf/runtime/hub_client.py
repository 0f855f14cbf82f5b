"""What the Hub's client met, in words: which of the many ways of not getting something it was, and
the hint."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import constants, get_session, get_token
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

# seconds without a sign of life from the Hub; its client alone would wait for ever
TIMEOUT = "MEGA_HF_HUB_TIMEOUT"
BUSY = (408, 429, 500, 502, 503, 504)  # what may pass by waiting


def describe_error(
    error: Exception, repository: str, revision: str = "", reading: bool = True
) -> tuple[str, str]:
    """Return what an error of the Hub's client means, and what to do about it.

    Args:
        error: as it was raised; what it was raised from is looked at too.
        repository: ORG/NAME.
        revision: what was asked for, if anything was.
        reading: whether something was to be fetched, for which a folder would do as well.
    """
    met = list(_chain(error))
    logged_in = get_token() is not None
    page = f"{constants.ENDPOINT}/{repository}"
    for one in met:
        if _is_gate(one):
            then = (
                "wait until it is granted to this account" if logged_in else "then: hf auth login"
            )
            return "the repository is gated", f"ask for access on its page, {page}; {then}"
        if isinstance(one, HfHubHTTPError) and _is_unknown_token(one):
            return (
                "the Hub does not know this token",
                "a valid one: hf auth login, or HF_TOKEN; or log out",
            )
        if isinstance(one, RepositoryNotFoundError) and logged_in:
            hint = (
                "check the name; of a private one, ask its owner for access (hf auth whoami says"
                " who you are)"
            )
            return "no such repository, or this account may not see it", hint
        if isinstance(one, RepositoryNotFoundError):
            hint = "check the name; for a private one: hf auth login"
            return "no such repository, or it is private and nobody is logged in", hint
        if isinstance(one, RevisionNotFoundError):
            return (
                f"the repository has no revision {revision}",
                f"a branch, a tag or a commit of it: {page}/commits",
            )
        if isinstance(one, HFValidationError):
            return "not a repository's name", "ORG/NAME, or ./FOLDER"
    return _explain_failure(met, reading)


def _explain_failure(met: list[BaseException], reading: bool) -> tuple[str, str]:
    """Say what kept the Hub from answering."""
    instead = ", or download it elsewhere and give its folder: ./FOLDER" if reading else ""
    if constants.HF_HUB_OFFLINE or any(isinstance(one, OfflineModeIsEnabled) for one in met):
        what = (
            "not in the cache, and HF_HUB_OFFLINE keeps the network out"
            if reading
            else "HF_HUB_OFFLINE is set"
        )
        return what, "unset HF_HUB_OFFLINE" + instead
    for one in met:
        if isinstance(one, httpx.TimeoutException | TimeoutError):
            return "the Hub did not answer in time", f"try again; {TIMEOUT}=300 waits longer"
        if isinstance(one, HfHubHTTPError) and one.response is not None:
            status = one.response.status_code
            if status == 429:
                return (
                    "the Hub lets nothing more through for now (429)",
                    "wait some minutes, or log in: hf auth login",
                )
            if status == 403:
                hint = "a token that may do this (hf auth login), or another repository"
                return f"the Hub refuses this to this account: {_say(one)}", hint
            hint = (
                "try again later"
                if status in BUSY
                else "mend what it names; else report it to mega_hf"
            )
            return f"the Hub answered with an error {status}: {_say(one)}", hint
    name = type(met[0]).__name__
    return f"the Hub can't be reached ({name})", "check the network" + instead


def is_of_hub(error: BaseException) -> bool:
    """Say whether an error is the Hub's, or the network's, and not of what was fetched."""
    kinds = (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        httpx.TransportError,
        LocalEntryNotFoundError,
    )
    return any(isinstance(one, kinds) or _is_gate(one) for one in _chain(error))


def is_passing(error: BaseException) -> bool:
    """Say whether an error may pass by waiting: a busy Hub, a time-out, a cut connection."""
    for one in _chain(error):
        if isinstance(one, HfHubHTTPError):
            return one.response is not None and one.response.status_code in BUSY
        if isinstance(one, httpx.TransportError | ConnectionError | TimeoutError):
            return not isinstance(one, OfflineModeIsEnabled)
    return False


def wait_asked(error: BaseException) -> float | None:
    """Return the seconds that the Hub asked to be left alone for, if it did."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        text = response.headers.get("Retry-After", "") if response is not None else ""
        if re.fullmatch("[0-9]+", text):
            return float(text)
    return None


def set_timeout() -> None:
    """Let a Hub that has fallen silent end a request; most requests of its client would wait for
    ever."""
    session = get_session()
    hooks = session.event_hooks
    if _end_silence not in hooks["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _end_silence]}


def _end_silence(request: httpx.Request) -> None:
    """Put a limit where a request has none; the client passes None, which the session's own limit
    gives way to."""
    text = os.environ.get(TIMEOUT, "")
    limit = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 60.0
    given = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        kind: limit if given.get(kind) is None else given[kind]
        for kind in ("connect", "read", "write", "pool")
    }


def without_token(text: str) -> str:
    """Return a text in which the token, should it stand there, does not."""
    token = get_token()
    return text.replace(token, "(token)") if token else text


def _is_gate(error: BaseException) -> bool:
    """Say whether a repository is gated; `datasets` says so in words of its own, and drops the
    Hub's error."""
    return isinstance(error, GatedRepoError) or "gated dataset" in str(error)


def _is_unknown_token(error: HfHubHTTPError) -> bool:
    if error.response is None or error.response.status_code != 401 or get_token() is None:
        return False
    return (
        "invalid"
        in f"{error.server_message} {error.response.headers.get('X-Error-Message')}".lower()
    )


def _say(error: HfHubHTTPError) -> str:
    text = error.server_message or first_line(error)
    return without_token(" ".join(text.split())[:300])


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what it was raised from, and so on."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


ATTEMPTS = 5  # the client tries each upload several times too
_LONGEST_WAIT = 300.0

logger = logging.getLogger(__name__)
T = TypeVar("T")


def retry(attempt: Callable[[], T]) -> T:
    """Call until it succeeds, with back-off while the Hub is busy or can't be reached."""
    for number in range(1, ATTEMPTS):
        set_timeout()  # the client drops its settings with a broken connection
        try:
            return attempt()
        except Exception as error:
            if not is_passing(error) and not _is_conflict(error):
                raise
            wait = min(wait_asked(error) or 2.0**number, _LONGEST_WAIT)
            reason = describe_error(error, "")[0]
            logger.warning(
                "%s; trying again in %.0f s (%d of %d)", reason, wait, number + 1, ATTEMPTS
            )
            time.sleep(wait)
    return attempt()


def _is_conflict(error: Exception) -> bool:
    """Say whether someone else has committed in between."""
    return (
        isinstance(error, HfHubHTTPError)
        and error.response is not None
        and error.response.status_code == 412
    )


@contextmanager
def hub_errors(repository: str, revision: str = "", then: str = "") -> Iterator[None]:
    """Turn what the Hub's client raises into a HubError; `then` ends its remedy."""
    set_timeout()
    try:
        yield
    except MegaError:
        raise
    except Exception as error:
        if not is_of_hub(error) and not isinstance(
            error, ConnectionError | TimeoutError | ValueError | RuntimeError
        ):
            raise  # of this machine, or a fault of ours
        what, hint = _explain_push(error) or describe_error(
            error, repository, revision, reading=not then
        )
        got = f"{repository}@{revision}" if revision else repository
        raise HubError(
            what, expected="the Hub to answer, and to agree", got=got, hint=hint + then
        ) from None


def _explain_push(error: Exception) -> tuple[str, str] | None:
    """Say what is meant by errors that the client raises in words of its own."""
    first = without_token(" ".join(str(error).split())[:300])
    if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError | HFValidationError):
        return f"the Hub does not take this: {first}", "mend what it names"
    return None


class _Relay(logging.Handler):
    """Says in one line what the client says in two, with addresses that may hold signatures."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on how long the client waits, and nothing else."""
        found = re.search(
            r"(?:Waiting|Retrying in) ([\d.]+)s.*\[Retry (\d+)/(\d+)\]", record.getMessage()
        )
        if found:
            logger.warning("the Hub is busy; trying again in %s s (%s of %s)", *found.groups())


@contextmanager
def client_speaks() -> Iterator[None]:
    """Let the client's own waiting be seen, in our words, and keep the rest of what it logs to
    itself."""
    client = logging.getLogger("huggingface_hub")
    handlers, propagated = client.handlers, client.propagate
    client.handlers, client.propagate = [_Relay()], False
    try:
        yield
    finally:
        client.handlers, client.propagate = handlers, propagated
