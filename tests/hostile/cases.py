"""Values of hostile files, and the check that only clear errors come of them."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mega_hf.errors import MegaError
from tests.tools.broken import PARTS
from tests.tools.soak import count

SECONDS = 20  # for one case
SOAK = int(os.environ.get("MEGA_HF_SOAK", "1"))

# Each is what a field of the kind once broke, or might.
HOSTILE: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    17,
    4097,
    100_000,
    10**6,
    10**9,
    -(10**9),
    2**31,
    2**63,
    2**64,
    10**400,
    0.5,
    -0.5,
    1e-300,
    1e30,
    float("nan"),
    float("inf"),
    "",
    "x",
    "1",
    "../../x",
    "/etc/passwd",
    "hf-hub:org/model",
    "local-dir:/etc",
    "timm:resnet18",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202egpj.exe",
    "`id`; $(reboot) | <b>\n# [a](b)",
    "\x00",
    "\ud800",
    "a" * 5000,
    "1e999",
    "NaN",
    [],
    {},
    [0],
    [1] * 5,
    [3, 100_000, 100_000],
    [10**6] * 4,
    [[]],
    ["x"],
    {"x": 1},
    {"a": {"b": [{}]}},
    {"__float__": "NaN"},
    [None],
    list(range(3000)),
]


def _is_small(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) < 10 and all(map(_is_small, value))
    return not isinstance(value, int | float) or not 20 < abs(value) < math.inf


# for sizes of a model, which may be as large as its configuration says
SMALL = [value for value in HOSTILE if _is_small(value)]
DEEP = "[" * 5000 + "]" * 5000


def cases(number: int) -> settings:
    """Return settings for a number of cases, the same in each run; MEGA_HF_SOAK multiplies it."""
    healthy = [
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ]
    return settings(
        max_examples=number * SOAK,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=healthy,
    )


class Hang(BaseException):
    """A case took too long; no library catches it."""


@contextmanager
def bounded() -> Iterator[None]:
    """Let a case end in `SECONDS`, in nothing or in an error of ours that says all that it must."""

    def ring(*_: Any) -> None:
        raise Hang(f"more than {SECONDS} s")

    count()
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    except MegaError as error:
        lacking = [part for part in PARTS if part not in str(error)]
        assert not lacking, f"no {lacking} in:\n{error}"
        assert len(str(error)) < 20_000, f"an error of {len(str(error))} characters"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where a tree's values stand, itself left out."""
    inner = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    return [place for key, one in inner for place in [(*at, key), *places(one, (*at, key))]]


def _copy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copy(one) for key, one in tree.items()}
    return [_copy(one) for one in tree] if isinstance(tree, list) else tree


def mutated(
    tree: Any, extra: Sequence[Any] = (), values: Sequence[Any] = HOSTILE
) -> st.SearchStrategy[Any]:
    """Draw a tree with one or two values replaced, removed or renamed.

    Args:
        tree: plain values.
        extra: more hostile values.
        values: what replaces a value.
    """
    values = [*values, *extra]
    known = sorted(places(tree), key=str)
    change = st.tuples(
        st.sampled_from(known),
        st.sampled_from(["set"] * 6 + ["drop", "add", "scale"]),
        st.integers(0),
    )

    def apply(changes: list[tuple[tuple[Any, ...], str, int]]) -> Any:
        copied = _copy(tree)
        for place, how, number in changes:
            inner = copied
            try:
                for key in place[:-1]:
                    inner = inner[key]
                _change(inner, place[-1], how, values[number % len(values)])
            except (KeyError, IndexError, TypeError):
                continue  # an earlier change has taken it away
        return copied

    return st.lists(change, min_size=1, max_size=2).map(apply)


def _change(inner: Any, key: Any, how: str, value: Any) -> None:
    old = inner[key]
    if how == "drop":
        del inner[key]
    elif how == "add" and isinstance(inner, dict):
        inner[value if isinstance(value, str) else f"{key}x"] = old
    elif how == "scale" and isinstance(old, int | float) and not isinstance(old, bool):
        inner[key] = old * 3
    else:
        inner[key] = _copy(value)


def used(make: Callable[[], Any], *uses: Callable[[Any], Any]) -> None:
    """Make something of hostile files, and use it as commands do: nothing but errors of ours may
    come of it."""
    with bounded():
        made = make()
        for use in uses:
            use(made)
