"""The faults that the test Hub can simulate."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

# kind -> the requests that it is about, unless said otherwise, and its options with what they are
# if not given
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "status": ("", {"status": 503, "retry_after": None}),
    "cut": ("", {"after": 0}),
    "lose_commit": (r"^POST .*/commit/", {}),
    "lose_answer": (r"^POST .*/commit/", {}),
    "corrupt": (r"^PUT ", {"silent": False, "file": ""}),
    "stall": ("", {"seconds": 60.0}),
}


@dataclass
class Fault:
    """One fault, and the requests that it applies to."""

    kind: str
    match: re.Pattern[str]
    times: int | None  # None: for ever
    skip: int  # so many are let through first
    options: dict[str, Any] = field(default_factory=dict)


class Faults(list[Fault]):
    """The planned faults."""

    def plan(
        self, kind: str, match: str = "", times: int | None = 1, skip: int = 0, **options: Any
    ) -> None:
        """Plan a fault; see `Hub.misbehave`."""
        assert kind in KINDS, f"a fault is one of {', '.join(KINDS)}, not {kind}"
        usual, known = KINDS[kind]
        assert set(options) <= set(known), (
            f"{kind} takes {', '.join(known) or 'no option'}, not {', '.join(options)}"
        )
        self.append(Fault(kind, re.compile(match or usual), times, skip, known | options))

    def take(self, request: str) -> Fault | None:
        """Return the first fault that applies to a request ("METHOD /path"), and count it down."""
        for fault in self:
            if not fault.match.search(request):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            if fault.times is not None:
                fault.times -= 1
                if not fault.times:
                    self.remove(fault)
            return fault
        return None


def damaged(content: bytes) -> bytes:
    """Return different bytes of the same length."""
    middle = len(content) // 2
    return (
        content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
        if content
        else b""
    )
