"""Progress bars on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm


@dataclass(frozen=True)
class Progress:
    """Progress bars, or nothing if they are not wanted."""

    shown: bool = False

    @contextmanager
    def bar(self, title: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
        """Show a bar while inside.

        Args:
            title: the text before the bar.
            total: the number of steps.
            unit: what is counted, in the plural.

        Yields:
            a function that advances the bar by a number of steps and sets the text behind it.
        """
        is_watched = sys.stderr.isatty() or "ipykernel" in sys.modules
        pause = 0.1 if is_watched else 30  # seconds; a log file needs few lines
        with tqdm(
            total=total,
            desc=_short(title),
            unit=f" {unit}",
            disable=not self.shown,
            dynamic_ncols=True,
            mininterval=pause,
        ) as bar:

            def advance(count: int, text: str) -> None:
                bar.set_postfix_str(text, refresh=False)
                bar.update(count)

            yield advance


def _short(title: str) -> str:
    """Shorten the name of a merge of many parents."""
    return title if len(title) <= 40 else f"{title[:19]}...{title[-18:]}"
