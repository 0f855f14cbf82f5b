"""Read licenses from model cards, and choose one for a merge."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from mega_hf.errors import HubError

_KEYS = ("license", "license_name", "license_link")

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # the Hub says which of them it knows


def read_license(folder: Path | None) -> dict[str, Any] | None:
    """Return the license in the front matter of a folder's card, if there is one."""
    card = folder / "README.md" if folder is not None else None
    if card is None or not card.is_file():
        return None
    try:
        front = metadata_load(card)
    except (ValueError, UnicodeDecodeError, yaml.YAMLError):  # a stranger's card may hold anything
        return None
    return license_of(front) if isinstance(front, dict) else None


def license_of(front: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return license, license_name and license_link of a card's front matter, as far as given."""
    found = {key: front[key] for key in _KEYS if front.get(key) and _is_text(front[key])}
    found = {
        key: value[0] if isinstance(value, list) and len(value) == 1 else value
        for key, value in found.items()
    }
    return found if "license" in found else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(one, str) for one in value)
    )


def agreed_license(licenses: Mapping[str, dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return the license that all models, by name, have in common, if there is one."""
    distinct = list(licenses.values())
    return distinct[0] if distinct and all(one == distinct[0] for one in distinct) else None


def choose_license(
    given: str | None,
    licenses: Mapping[str, dict[str, Any] | None],
    front: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the license under which a merge is pushed; none is ever guessed.

    Args:
        given: the identifier that the user asked for, if any.
        licenses: what each parent's card says.
        front: the front matter of the repository's existing card, if there is one.

    Raises:
        HubError: the parents' licenses differ and none is given, or it is not an identifier.
    """
    existing = license_of(front or {})
    if given is not None:
        if not _IDENTIFIER.fullmatch(given):
            raise HubError(
                "not a license identifier",
                expected="lower-case letters, digits, '-', '.' and '+', e.g. apache-2.0",
                got=given,
                hint="see https://huggingface.co/docs/hub/repositories-licenses",
            )
        chosen = existing if existing and existing["license"] == given else {"license": given}
        if given == "other" and "license_name" not in chosen:
            raise HubError(
                "the license 'other' needs a name",
                expected="license_name in the repository's card",
                got="none",
                hint="first write license: other, license_name and license_link into that card",
            )
        return chosen
    agreed = agreed_license(licenses)
    if agreed is not None and existing in (None, agreed):
        identifiers = agreed["license"]
        identifiers = [identifiers] if isinstance(identifiers, str) else identifiers
        if all(map(_IDENTIFIER.fullmatch, identifiers)):
            return agreed
    found = [f"{name}: {_show(license)}" for name, license in licenses.items()]
    found += [f"the repository's card: {_show(existing)}"] if existing is not None else []
    raise HubError(
        "the parents have no license in common",
        expected="one license for all parents, or --license",
        got="; ".join(found),
        hint="push --license LICENSE, or merge --set push.license=LICENSE, as the parents allow",
    )


def _show(license: dict[str, Any] | None) -> str:
    if license is None:
        return "none"
    more = ", ".join(str(license[key]) for key in _KEYS[1:] if key in license)
    return str(license["license"]) + (f" ({more})" if more else "")
