"""What a user did or met that stops a command: said as expected, got, hint; never a traceback."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RESUMES = "the same command goes on where it stopped"


class Terminated(KeyboardInterrupt):
    """SIGTERM has come: like Ctrl-C, no error of anyone's."""


_SHOWN = 20  # findings in one message


class MegaError(Exception):
    """An error that the user can do something about.

    Args:
        what: one line that says what is wrong.
        expected: what would have been right.
        got: what was found instead.
        hint: what to do now.
        where: the place, as `file:line` or an option's name, where there is one.
    """

    on_one_process = False  # whether one process of several met it, which then must say all of it

    def __init__(
        self,
        what: str,
        *,
        expected: object = None,
        got: object = None,
        hint: str | None = None,
        where: str = "",
    ) -> None:
        self.what = what
        self.expected = expected
        self.got = got
        self.hint = hint
        self.where = where
        lines = [f"{where}: {what}" if where else what]
        lines += [f"  expected: {expected}"] if expected is not None else []
        lines += [f"  got:      {got}"] if got is not None else []
        lines += [f"  hint:     {hint}"] if hint else []
        super().__init__("\n".join(lines))

    def replace(self, **parts: Any) -> MegaError:
        """Return the same error with some of its parts replaced, as they are named when it is
        made."""
        mine: dict[str, Any] = {
            "what": self.what,
            "expected": self.expected,
            "got": self.got,
            "hint": self.hint,
        }
        return type(self)(**(mine | {"where": self.where} | parts))

    def with_hint(self, more: str) -> MegaError:
        """Return the same error with something more to be done about it."""
        return self.replace(hint="; ".join(filter(None, [self.hint, more])))

    def to_dict(self) -> dict[str, str | None]:
        """Return its parts as texts."""
        parts = {"where": self.where, "what": self.what, "expected": self.expected, "got": self.got}
        return {
            name: None if part is None else str(part)
            for name, part in (parts | {"hint": self.hint}).items()
        }


class RecipeError(MegaError):
    """The recipe, an override or an argument is not usable. Several findings are shown in one
    message."""

    @classmethod
    def join(cls, findings: list[RecipeError]) -> RecipeError:
        """Make one error of several, each on lines of its own and said once; of many the first are
        shown."""
        if len(findings) == 1:
            return findings[0]
        said = list(dict.fromkeys(map(str, findings)))
        joined = cls(f"{len(findings)} problems in the recipe")
        more = [f"and {len(said) - _SHOWN} more"] if len(said) > _SHOWN else []
        joined.args = ("\n".join([joined.what + ":", *said[:_SHOWN], *more]),)
        return joined


class ParentError(MegaError):
    """A parent can't be found, read or merged with the others."""


class DataError(MegaError):
    """The data set can't be found, read or used as the recipe asks.

    Args: as `MegaError`; `key` is the entry of the recipe's `data` that it is about, if it is one.
    """

    def __init__(self, what: str, *, key: str = "", **parts: Any) -> None:
        super().__init__(what, **parts)
        self.key = key

    @classmethod
    @contextmanager
    def about(cls, key: str) -> Iterator[None]:
        """Say of errors that are met inside that they are about an entry, unless they are about
        another."""
        try:
            yield
        except cls as error:
            error.key = error.key or key
            raise


class RunError(MegaError):
    """The run folder can't be used, or the run can't go on."""


class HubError(MegaError):
    """Something can't be pushed to the Hub, or pulled from it."""


class VerificationError(MegaError):
    """A run's files don't fit together, or don't give what they claim; `where` names the
    culprit."""

    @classmethod
    def from_error(cls, where: str, error: MegaError, hint: str | None) -> VerificationError:
        """Make one of another error that a culprit is to blame for."""
        return cls(error.what, expected=error.expected, got=error.got, hint=hint, where=where)


class LaunchError(MegaError):
    """The processes did not start as asked."""


def first_line(error: BaseException) -> str:
    """Return the first line of what a library's error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def library_errors(what: str, where: str, expected: str, hint: str) -> Iterator[None]:
    """Turn whatever a library raises over a model into a ParentError: nothing of it is our user's
    traceback."""
    try:
        yield
    except MegaError as error:
        if error.where:
            raise
        raise error.replace(where=where) from None
    except Exception as error:
        raise_if_out_of_space(error, where)
        got = " ".join(str(error).split())[:500]
        raise ParentError(
            f"{what}: {type(error).__name__}",
            where=where,
            expected=expected,
            got=got,
            hint=hint,
        ) from error


def raise_if_out_of_space(error: Exception, where: object = "") -> None:
    """Raise the `shortage` that an error is, if it is one; for those who call every error a fault
    of their input."""
    short = as_resource_error(error, where)
    if short is not None:
        raise short from error


def as_resource_error(error: BaseException, where: object = "") -> RunError | None:
    """Return as an error of ours that a disk has no room or fails, or that memory is out; None for
    anything else.

    Args:
        error: what was raised; libraries raise errors of their own because of the system's.
        where: what was being written.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MegaError):
        code, got = _system_code(cause), " ".join(str(cause).split())[:300] or type(cause).__name__
        short = None
        if code in _NO_ROOM:
            hint = f"make room, or raise the limit; {_RESUMES}"
            short = RunError(
                "can't be written", where=str(where), expected="room", got=got, hint=hint
            )
        elif code == errno.EIO:
            hint = f"see to the disk; {_RESUMES}"
            short = RunError(
                "the disk fails",
                where=str(where),
                expected="a working disk",
                got=got,
                hint=hint,
            )
        elif code == errno.ENOMEM:
            hint = f"a smaller evaluation.batch_size, or fewer processes; {_RESUMES}"
            short = RunError(
                "out of memory", expected="room for models and pictures", got=got, hint=hint
            )
        if short is not None:
            short.on_one_process = True  # other processes may have had enough
            return short
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _system_code(error: BaseException) -> int | None:
    """Return the system's error number behind an error: torch and safetensors have it in the text
    on_one_process."""
    if isinstance(error, OSError):
        return error.errno
    text = str(error)
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
    ):
        return errno.ENOMEM
    code = re.search(r"\(os error (\d+)\)", text)  # as Rust writes it
    return int(code[1]) if code else None
