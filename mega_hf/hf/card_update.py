"""A card in the place of an earlier one: what was generated is replaced, what was written by hand stays."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mega_hf.errors import HubError

# Around what is generated; the digest tells whether it was changed by hand since.
_BEGIN = "<!-- mega-hf writes from here, sha256 {} -->"
_END = "<!-- to here; what stands below, or in sections of other names, is kept when the card is written again -->"
_MARKS = re.compile(r"<!-- mega-hf writes from here, sha256 ([0-9a-f]{64}) -->\n(.*?)\n" + re.escape(_END), re.S)


def seal(body: str) -> str:
    """Return a generated card's body between marks."""
    inner = body.strip()
    return f"{_BEGIN.format(_digest(inner))}\n{inner}\n{_END}\n"


@dataclass(frozen=True)
class Card:
    """A card that another one replaces."""

    text: str
    generated: Mapping[str, Any]  # the front matter that it was generated with
    where: str  # for errors

    @property
    def is_marked(self) -> bool:
        """Whether it shows which part of it was generated."""
        return _MARKS.search(self.text) is not None


def update_card(new: str, replaced: Sequence[Card]) -> str:
    """Return a card with what was written by hand into those that it replaces; of two such sections the first's.

    Kept are sections of other names than the generated ones, what stands before or after the marks, the whole text of
    a card that has none; of the front matter tags, and keys that the new card lacks and nobody generated.

    Raises:
        HubError: a generated section was changed by hand, which would be lost.
    """
    front, body = split_card(new)
    above = ""
    below: dict[str, str] = {}
    for old in replaced:
        there, text = split_card(old.text, old.where)
        before, parts = _written_by_hand(text, body, old.where)
        above = above or before
        below = {_heading(part) or part: part for part in parts} | below
        tags = there.get("tags")
        front["tags"] = list(dict.fromkeys([*front["tags"], *(tags if isinstance(tags, list) else [])]))
        front |= {k: v for k, v in there.items() if k not in front and v != old.generated.get(k)}
    text = "\n\n".join(part for part in (above, body.strip(), *below.values()) if part)
    return f"---\n{dump_front(front)}---\n\n{text}\n"


def split_card(card: str, where: str = "README.md") -> tuple[dict[str, Any], str]:
    """Return a card's front matter and its body.

    Raises:
        HubError: the front matter is not a YAML mapping.
    """
    found = re.match(r"\s*---[ \t]*\n(.*?)\n?---[ \t]*(?:\n|$)(.*)", card.replace("\r\n", "\n"), re.S)
    if not found:
        return {}, card
    try:
        front = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        front = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not isinstance(front, dict):
        raise HubError(
            "a card whose front matter can't be read", where=where, expected="a YAML mapping", got=front,
            remedy="mend it on the repository's page, or --overwrite-card",
        )  # fmt: skip
    return front, found[2]


def dump_front(front: dict[str, Any]) -> str:
    """Return front matter as YAML."""
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10**6)


def _written_by_hand(body: str, new_body: str, where: str) -> tuple[str, list[str]]:
    """Return what to keep of an old body: what stands above the generated part, and the sections to put below it."""
    found = _MARKS.search(body)
    if found is None:
        return "", [body.strip()] if body.strip() else []
    ours = {_heading(part) for part in _sections(new_body)}
    if _digest(found[2]) == found[1]:
        ours |= {_heading(part) for part in _sections(found[2])}  # of another release, perhaps
    own: list[str] = []
    kept: list[str] = []
    for part in _sections(found[2]):
        (own if _heading(part) in ours else kept).append(part)
    if _digest("".join(own)) != found[1]:
        raise HubError(
            "a generated part of the card was changed by hand", where=where,
            expected="the text between the marks as it was pushed", got="another text",
            remedy="move what is yours below the second mark, or to a section of its own; or --overwrite-card",
        )  # fmt: skip
    parts = [part.strip() for part in [*kept, *_sections(body[found.end() :])]]
    return body[: found.start()].strip(), [part for part in parts if part]


def _sections(body: str) -> list[str]:
    """Divide a text at its second-level headings, which code blocks have none of."""
    parts, fenced = [""], False
    for line in body.splitlines(keepends=True):
        if line.startswith("```"):
            fenced = not fenced
        if line.startswith("## ") and not fenced:
            parts.append("")
        parts[-1] += line
    return parts


def _heading(section: str) -> str:
    return section.partition("\n")[0].strip() if section.startswith("## ") else ""


def _digest(text: str) -> str:
    """Return the SHA-256 of a text, however its lines end and wherever sections were taken out of it."""
    lines = [line.rstrip() for line in text.splitlines()]
    return hashlib.sha256("\n".join(line for line in lines if line).encode()).hexdigest()
