"""What a user did or met that stops a command: said as expected, got, remedy; never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MegaError(Exception):
    """An error that the user can do something about.

    Args:
        what: one line that says what is wrong.
        expected: what would have been right.
        got: what was found instead.
        remedy: what to do now.
        where: the place, as `file:line` or an option's name, where there is one.
    """

    alone = False  # whether one process of several met it, which then must say all of it

    def __init__(
        self, what: str, *, expected: object = None, got: object = None, remedy: str | None = None, where: str = ""
    ) -> None:
        self.what, self.expected, self.got, self.remedy, self.where = what, expected, got, remedy, where
        lines = [f"{where}: {what}" if where else what]
        lines += [f"  expected: {expected}"] if expected is not None else []
        lines += [f"  got:      {got}"] if got is not None else []
        lines += [f"  remedy:   {remedy}"] if remedy else []
        super().__init__("\n".join(lines))


class RecipeError(MegaError):
    """The recipe, an override or an argument is not usable. Several findings are shown in one message."""

    @classmethod
    def join(cls, findings: list[RecipeError]) -> RecipeError:
        """Make one error of several, each on lines of its own."""
        if len(findings) == 1:
            return findings[0]
        joined = cls(f"{len(findings)} problems in the recipe")
        joined.args = ("\n".join([joined.what + ":", *map(str, findings)]),)
        return joined


class ParentError(MegaError):
    """A parent can't be found, read or merged with the others."""


class DataError(MegaError):
    """The data set can't be found, read or used as the recipe asks."""


class RunError(MegaError):
    """The run folder can't be used, or the run can't go on."""


class HubError(MegaError):
    """Something can't be pushed to the Hub, or pulled from it."""


class VerificationError(MegaError):
    """A run's files don't fit together, or don't give what they claim; `where` names the culprit."""


class LaunchError(MegaError):
    """The processes did not start as asked."""


@contextmanager
def library_errors(what: str, where: str, expected: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises over a model into a ParentError: nothing of it is our user's traceback."""
    try:
        yield
    except MegaError as error:
        if error.where:
            raise
        got, said = error.got, error.remedy
        raise type(error)(error.what, expected=error.expected, got=got, remedy=said, where=where) from None
    except Exception as error:
        got = " ".join(str(error).split())[:500]
        raise ParentError(
            f"{what}: {type(error).__name__}", where=where, expected=expected, got=got, remedy=remedy
        ) from error
