"""A card in the place of an earlier one: what was generated is replaced, what was written by hand
stays."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mega_hf.errors import HubError
from mega_hf.recipe.document import dump

# Around what is generated; the digest tells whether it was changed by hand since.
_BEGIN = "<!-- mega-hf writes from here, sha256 {} -->"
_END = (
    "<!-- to here; what stands below, or in sections of other names, is kept when the card is"
    " written again -->"
)
_MARKS = re.compile(
    r"<!-- mega-hf writes from here, sha256 ([0-9a-f]{64}) -->\n(.*?)\n" + re.escape(_END), re.S
)
_FRONT = re.compile(r"\A\s*---[ \t]*\n(?:(.*?)\n)?---[ \t]*(?:\n|\Z)(.*)", re.S)
_KEY = re.compile(r"[^\s#-][^\n]*?:(\s|$)")
# What is generated, where a merge has it: left of an earlier one, it would say what is not so.
_GENERATED = (
    "base_model",
    "base_model_relation",
    "datasets",
    "library_name",
    "metrics",
    "model-index",
    "pipeline_tag",
)


@dataclass(frozen=True)
class Card:
    """A card that another one replaces."""

    text: str
    where: str  # for errors
    # the front matter that it was generated with, if that is known
    generated: Mapping[str, Any] | None = None

    @property
    def is_marked(self) -> bool:
        """Whether it shows which part of it was generated."""
        return _MARKS.search(_plain(self.text)) is not None

    @classmethod
    def read(cls, raw: bytes, where: str, generated: Mapping[str, Any] | None = None) -> Card:
        """Decode a card.

        Raises:
            HubError: it is not UTF-8.
        """
        try:
            return cls(raw.decode("utf-8-sig"), where, generated)
        except UnicodeDecodeError as error:
            raise HubError(
                "a card that can't be read",
                where=where,
                expected="UTF-8",
                got=error,
                hint="save it as UTF-8, or --overwrite-card",
            ) from None


def seal(body: str) -> str:
    """Return a generated card's body between marks."""
    inner = body.strip()
    return f"{_BEGIN.format(_digest(inner))}\n{inner}\n{_END}\n"


def has_own_words(text: str) -> bool:
    """Say whether anything in a card was written by hand."""
    body = _plain(split_card(text)[1])
    found = _MARKS.search(body)
    return (
        found is None
        or _digest(found[2]) != found[1]
        or bool((body[: found.start()] + body[found.end() :]).strip())
    )


def tells_of(card: str, generated: str) -> tuple[bool, bool]:
    """Say whether a card holds what was generated, word by word, and whether its front matter has
    other figures.

    What was written by hand beside it is no matter.

    Raises:
        HubError: its generated part was changed by hand, or its front matter can't be read.
    """
    (front, body), (wanted, new_body) = split_card(card), split_card(generated)
    found, new = _MARKS.search(_plain(body)), _MARKS.search(new_body)
    _written_by_hand(_plain(body), new_body, "README.md")
    is_same = all(front.get(key) == wanted[key] for key in _GENERATED if key in wanted)
    is_told = found is not None and new is not None and found[1] == new[1] and is_same
    return is_told, front.get("model-index") != wanted.get("model-index")


def update_card(new: str, replaced: Sequence[Card]) -> str:
    """Return a card with what was written by hand into those that it replaces; of two such sections
    the first's.

    Kept are sections of other names than the generated ones, what stands before or after the marks,
    the whole text of a card that has none; of the front matter tags, and keys that nobody
    generated.

    Raises:
        HubError: a generated section was changed by hand, which would be lost.
    """
    front, body = split_card(new)
    above, below, kept_front = "", "", ""
    for old in replaced:
        there, text = split_card(old.text, old.where)
        before, after = _written_by_hand(_plain(text), body, old.where)
        above = above or before
        if below:  # of one card nothing is divided, and nothing left out
            headings = {_heading(part) for part in _sections(below)}
            more = [
                p.strip()
                for p in _sections(after)
                if _heading(p) not in headings and p.strip() not in below
            ]
            after = "\n\n".join(part for part in more if part)
        below = "\n\n".join(part for part in (below, after) if part)
        tags = there.get("tags") or []
        front["tags"] = list(
            dict.fromkeys([*front["tags"], *(tags if isinstance(tags, list) else [str(tags)])])
        )
        known = {*front, *(yaml.safe_load(kept_front) or {})}
        kept_front += _kept_front(old, there, known)
    text = "\n\n".join(part for part in (above, body.strip(), below) if part)
    return f"---\n{dump(front)}{kept_front}---\n\n{text}\n"


def _kept_front(old: Card, there: Mapping[str, Any], known: set[str]) -> str:
    """Return the front matter to keep of a card, letter by letter; what a license is, the new card
    alone says."""
    found = _FRONT.match(_plain(old.text))
    generated = (
        {key: there.get(key) for key in _GENERATED} if old.generated is None else old.generated
    )
    if old.generated is None and not old.is_marked:
        generated = {}
    kept, is_kept = [], False
    for line in (found[1] or "").splitlines() if found else []:
        if _KEY.match(line):
            key = next(iter(yaml.safe_load(line.partition(":")[0] + ": 0")), "")
            is_own = key in there and there[key] != generated.get(key, ...)
            is_kept = is_own and key not in known and not str(key).startswith("license")
        kept += [line + "\n"] if is_kept else []
    return "".join(kept)


def split_card(card: str, where: str = "README.md") -> tuple[dict[str, Any], str]:
    """Return a card's front matter and its body.

    Raises:
        HubError: the front matter is not a YAML mapping.
    """
    card = _plain(card)
    found = _FRONT.match(card)
    if not found:
        return {}, card
    try:
        front = yaml.safe_load(found[1] or "") or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        front = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not isinstance(front, dict):
        raise HubError(
            "a card whose front matter can't be read",
            where=where,
            expected="a YAML mapping",
            got=front,
            hint="mend it, or --overwrite-card",
        )
    return front, found[2]


def _plain(card: str) -> str:
    return card.removeprefix("\ufeff").replace("\r\n", "\n")


def _written_by_hand(body: str, new_body: str, where: str) -> tuple[str, str]:
    """Return what to keep of an old body: what stands above the generated part, and what goes below
    it."""
    found = _MARKS.search(body)
    if found is None:
        return "", body.strip()
    ours = {_heading(part) for part in _sections(new_body)}
    if _digest(found[2]) == found[1]:
        ours |= {_heading(part) for part in _sections(found[2])}  # of another release, perhaps
    own: list[str] = []
    kept: list[str] = []
    for part in _sections(found[2]):
        (own if _heading(part) in ours else kept).append(part)
    if _digest("".join(own)) != found[1]:
        raise HubError(
            "a generated part of the card was changed by hand",
            where=where,
            expected="the text between the marks as it was written",
            got="another text",
            hint=(
                "move what is yours below the second mark, or to a section of its own; or"
                " --overwrite-card"
            ),
        )
    below = [part.strip() for part in (*kept, body[found.end() :]) if part.strip()]
    return body[: found.start()].strip(), "\n\n".join(below)


def _sections(body: str) -> list[str]:
    """Divide a text at its second-level headings, which code blocks have none of."""
    parts, fence = [""], ""
    for line in body.splitlines(keepends=True):
        found = re.match(r" {0,3}(`{3,}|~{3,})(.*)", line)
        if found and not fence:
            fence = found[1]
        elif found and found[1].startswith(fence) and not found[2].strip():
            fence = ""
        if line.startswith("## ") and not fence:
            parts.append("")
        parts[-1] += line
    return parts


def _heading(section: str) -> str:
    return section.partition("\n")[0].strip() if section.startswith("## ") else ""


def _digest(text: str) -> str:
    """Return the SHA-256 of a text, however its lines end and wherever sections were taken out of
    it."""
    lines = [line.rstrip() for line in text.splitlines()]
    return hashlib.sha256("\n".join(line for line in lines if line).encode()).hexdigest()
