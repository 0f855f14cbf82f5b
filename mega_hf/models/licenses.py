"""Licenses: what a model's card says of its own, and what a merge of several may say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from mega_hf.errors import HubError

_KEYS = ("license", "license_name", "license_link")

# The identifiers that the Hub takes, https://huggingface.co/docs/hub/repositories-licenses
_IDENTIFIERS = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
    cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c
    ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa
    unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1
    llama3.2 llama3.3 llama4 grok2-community gemma unknown other"""  # noqa: E501
KNOWN = frozenset(_IDENTIFIERS.split())


def read_license(folder: Path | None) -> dict[str, Any] | None:
    """Return what the front matter of a model's card says of its license, if there is a card and it
    says so."""
    card = folder / "README.md" if folder is not None else None
    if card is None or not card.is_file():
        return None
    try:
        front = metadata_load(card)
    except (ValueError, UnicodeDecodeError, yaml.YAMLError):  # another's card may hold anything
        return None
    return license_of(front) if isinstance(front, dict) else None


def license_of(front: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the license in a card's front matter, with its name and link where they stand there as
    text."""
    said = {key: front[key] for key in _KEYS if front.get(key) and _is_text(front[key])}
    said = {
        key: value[0] if isinstance(value, list) and len(value) == 1 else value
        for key, value in said.items()
    }
    return said if "license" in said else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(one, str) for one in value)
    )


def agreed_license(licenses: Mapping[str, dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return the license of models, by name, if each has one and it is the same."""
    distinct = list(licenses.values())
    return distinct[0] if distinct and all(one == distinct[0] for one in distinct) else None


def choose_license(
    given: str | None,
    licenses: Mapping[str, dict[str, Any] | None],
    there: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the license under which a merge is pushed; none is ever guessed.

    Args:
        given: what the user asked for, if anything.
        licenses: what each parent's card says.
        there: the front matter of the card in the repository, if it has one.

    Raises:
        HubError: the parents do not agree and nobody said what holds, or the Hub knows no such
            license.
    """
    theirs = license_of(there or {})
    if given is not None:
        if given not in KNOWN:
            raise HubError(
                "no license that the Hub knows",
                expected="e.g. apache-2.0, mit, cc-by-4.0, unknown",
                got=given,
                hint=(
                    "--license with an identifier of"
                    " https://huggingface.co/docs/hub/repositories-licenses"
                ),
            )
        named: dict[str, Any] = (
            theirs if theirs is not None and theirs["license"] == given else {"license": given}
        )
        if given == "other" and "license_name" not in named:
            hint = "write license: other, license_name and license_link into the card there first"
            raise HubError(
                "a license of its own needs a name",
                expected="license_name in the repository's card",
                got="none",
                hint=hint,
            )
        return named
    agreed = agreed_license(licenses)
    said_all = agreed["license"] if agreed is not None else []
    is_known = all(one in KNOWN for one in ([said_all] if isinstance(said_all, str) else said_all))
    if agreed is not None and is_known and theirs in (None, agreed):
        return agreed
    said = [f"{name}: {_show(one)}" for name, one in licenses.items()]
    said += [f"the repository's card: {_show(theirs)}"] if theirs is not None else []
    raise HubError(
        "under which license?",
        expected="one that all parents have, or --license",
        got="; ".join(said),
        hint=(
            "once you know what the parents allow: push --license LICENCE, or merge --set"
            " push.license=LICENCE"
        ),
    )


def _show(license: dict[str, Any] | None) -> str:
    if license is None:
        return "none"
    more = ", ".join(str(license[key]) for key in _KEYS[1:] if key in license)
    return str(license["license"]) + (f" ({more})" if more else "")
