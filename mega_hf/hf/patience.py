"""Patience with the Hub: waiting while it is busy, saying so, and at last saying what it was."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from mega_hf.errors import HubError, MegaError
from mega_hf.hf.refusals import explain, is_of_hub, is_passing, set_timeout, wait_asked, without_token

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
            reason = explain(error, "")[0]
            logger.warning("%s; trying again in %.0f s (%d of %d)", reason, wait, number + 1, ATTEMPTS)
            time.sleep(wait)
    return attempt()


def _is_conflict(error: Exception) -> bool:
    """Say whether someone else has committed in between."""
    return isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code == 412


@contextmanager
def saying(repository: str, revision: str = "", then: str = "") -> Iterator[None]:
    """Turn what the Hub's client raises into a HubError; `then` ends its remedy."""
    set_timeout()
    try:
        yield
    except MegaError:
        raise
    except Exception as error:
        if not is_of_hub(error) and not isinstance(error, ConnectionError | TimeoutError | ValueError | RuntimeError):
            raise  # of this machine, or a fault of ours
        what, remedy = _explain_push(error) or explain(error, repository, revision, reading=not then)
        got = f"{repository}@{revision}" if revision else repository
        raise HubError(what, expected="the Hub to answer, and to agree", got=got, remedy=remedy + then) from None


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
        found = re.search(r"(?:Waiting|Retrying in) ([\d.]+)s.*\[Retry (\d+)/(\d+)\]", record.getMessage())
        if found:
            logger.warning("the Hub is busy; trying again in %s s (%s of %s)", *found.groups())


@contextmanager
def client_speaks() -> Iterator[None]:
    """Let the client's own waiting be seen, in our words, and keep the rest of what it logs to itself."""
    client = logging.getLogger("huggingface_hub")
    handlers, propagated = client.handlers, client.propagate
    client.handlers, client.propagate = [_Relay()], False
    try:
        yield
    finally:
        client.handlers, client.propagate = handlers, propagated
