"""Errors shown to users: what went wrong, what was expected, what was found, and how to fix it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RESUME = "then run the same command to resume"
_MOST_PROBLEMS = 20  # shown in one message


class Terminated(KeyboardInterrupt):
    """SIGTERM was received; like Ctrl-C, this is nobody's error."""


class MegaError(Exception):
    """An error that the user can fix.

    Args:
        what: one line that says what is wrong.
        expected: what would have been correct.
        got: what was found instead.
        hint: how to fix it.
        where: the place, if there is one: `file:line`, a path or an option.
    """

    # Whether only one of several processes met it; that process then prints the whole message.
    on_one_process = False

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

    def _parts(self) -> dict[str, Any]:
        names = ("where", "what", "expected", "got", "hint")
        return {name: getattr(self, name) for name in names}

    def replace(self, **parts: Any) -> MegaError:
        """Return the same error with some parts replaced, named as the arguments are."""
        return type(self)(**(self._parts() | parts))

    def with_hint(self, more: str) -> MegaError:
        """Return the same error with another hint after its own."""
        return self.replace(hint="; ".join(filter(None, [self.hint, more])))

    def to_dict(self) -> dict[str, str | None]:
        """Return the parts as texts, for JSON."""
        return {name: None if p is None else str(p) for name, p in self._parts().items()}


class RecipeError(MegaError):
    """A recipe, an override or an argument is invalid; one error may list several problems."""

    @classmethod
    def join(cls, problems: list[RecipeError]) -> RecipeError:
        """Return one error that lists each problem once, and at most the first 20."""
        if len(problems) == 1:
            return problems[0]
        texts = list(dict.fromkeys(map(str, problems)))
        joined = cls(f"{len(problems)} problems in the recipe")
        rest = len(texts) - _MOST_PROBLEMS
        more = [f"and {rest} more"] if rest > 0 else []
        joined.args = ("\n".join([f"{joined.what}:", *texts[:_MOST_PROBLEMS], *more]),)
        return joined


class ParentError(MegaError):
    """A parent can't be found, loaded or merged with the others."""


class DataError(MegaError):
    """The data set can't be found, loaded or used as the recipe says.

    Args:
        what: as the other arguments, see `MegaError`.
        key: the entry of the recipe's `data` that the error is about, if there is one.
    """

    def __init__(self, what: str, *, key: str = "", **parts: Any) -> None:
        super().__init__(what, **parts)
        self.key = key

    @classmethod
    @contextmanager
    def about(cls, key: str) -> Iterator[None]:
        """Set `key` of the DataErrors raised inside, if they have none."""
        try:
            yield
        except cls as error:
            error.key = error.key or key
            raise


class RunError(MegaError):
    """The run folder can't be used, or the run can't continue."""


class HubError(MegaError):
    """Something can't be pushed to the Hub, or pulled from it."""


class VerificationError(MegaError):
    """The files of a run contradict each other, or the rebuilt merge; `where` names the file."""

    @classmethod
    def from_error(cls, where: str, error: MegaError, hint: str | None) -> VerificationError:
        """Return a VerificationError that names the file behind another error."""
        return cls(error.what, expected=error.expected, got=error.got, hint=hint, where=where)


class LaunchError(MegaError):
    """The processes could not be started as asked, or do not work together."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def library_errors(what: str, where: str, expected: str, hint: str) -> Iterator[None]:
    """Turn any exception of a library into a ParentError, and fill in `where` of MegaErrors.

    Args:
        what: what failed; the name of the exception's class is added.
        where: the parent.
        expected: as of `MegaError`.
        hint: as of `MegaError`.

    Raises:
        RunError: the disk or the memory is full.
        ParentError: anything else.
    """
    try:
        yield
    except MegaError as error:
        if error.where:
            raise
        raise error.replace(where=where) from None
    except Exception as error:
        raise_if_out_of_space(error, where)
        raise ParentError(
            f"{what}: {type(error).__name__}",
            where=where,
            expected=expected,
            got=" ".join(str(error).split())[:500],
            hint=hint,
        ) from error


def raise_if_out_of_space(error: Exception, where: object = "") -> None:
    """Raise the RunError that `as_resource_error` returns, if there is one."""
    shortage = as_resource_error(error, where)
    if shortage is not None:
        raise shortage from error


def as_resource_error(error: BaseException, where: object = "") -> RunError | None:
    """Return a RunError if the disk is full or fails, or the memory is full; None otherwise.

    Args:
        error: any exception; libraries raise their own in place of the system's, so the exceptions
            that it was raised from are considered too.
        where: the file or folder that was being written.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MegaError):
        shortage = _resource_error(cause, str(where))
        if shortage is not None:
            shortage.on_one_process = True  # the others may have had enough
            return shortage
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _resource_error(error: BaseException, where: str) -> RunError | None:
    code = _system_code(error)
    got = " ".join(str(error).split())[:300] or type(error).__name__
    if code in _OUT_OF_SPACE:
        hint = f"free some space, or raise the limit; {_RESUME}"
        return RunError(
            "can't be written", where=where, expected="free disk space", got=got, hint=hint
        )
    if code == errno.EIO:
        hint = f"check the disk; {_RESUME}"
        return RunError(
            "the disk failed", where=where, expected="a working disk", got=got, hint=hint
        )
    if code == errno.ENOMEM:
        hint = (
            f"use fewer processes, or free memory, {_RESUME};"
            " or set a smaller evaluation.batch_size and add --update"
        )
        return RunError("out of memory", expected="free memory for models", got=got, hint=hint)
    return None


def _system_code(error: BaseException) -> int | None:
    """Return the system's error number; torch and safetensors give it in their text only."""
    if isinstance(error, OSError):
        return error.errno
    text = str(error)
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if is_memory or "can't allocate memory" in text:
        return errno.ENOMEM
    code = re.search(r"\(os error (\d+)\)", text)  # as Rust writes it
    return int(code[1]) if code else None
