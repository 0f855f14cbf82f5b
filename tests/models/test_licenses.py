"""Licenses: read from cards, common to all parents or given, never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mega_hf.errors import HubError
from mega_hf.models.licenses import agreed_license, choose_license, read_license

MIT, APACHE = {"license": "mit"}, {"license": "apache-2.0"}
OTHER = {"license": "other", "license_name": "mine", "license_link": "LICENSE"}


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\n---\n# x", MIT),
        ("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\ntags: [x]\n---\n", OTHER),
        ("---\nlicense: [mit, apache-2.0]\n---\n", {"license": ["mit", "apache-2.0"]}),
        ("---\ntags: [x]\n---\n", None),
        ("# no front matter", None),
        ("---\nlicense: [\n---\n", None),
        ("---\n- a\n---\n", None),
        ("---\nlicense: 2023-05-18\n---\n", None),
        ("---\nlicense: other\nlicense_name: 2023-05-18\n---\n", {"license": "other"}),
        ("\xff\xfe", None),
    ],
)
def test_a_models_license_is_what_its_card_says(
    card: str, expected: object, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_bytes(card.encode("latin-1"))
    assert read_license(tmp_path) == expected


def test_a_model_without_a_card_has_none(tmp_path: Path) -> None:
    assert read_license(tmp_path) is None
    assert read_license(None) is None


def test_agreement() -> None:
    assert agreed_license({"a": MIT, "b": dict(MIT)}) == MIT
    assert agreed_license({"a": OTHER, "b": dict(OTHER)}) == OTHER
    assert agreed_license({"a": MIT, "b": APACHE}) is None
    assert agreed_license({"a": MIT, "b": None}) is None
    assert agreed_license({"a": None, "b": None}) is None
    assert agreed_license({}) is None


def test_the_given_license_goes_before_the_common_one() -> None:
    assert choose_license(None, {"a": MIT, "b": MIT}, None) == MIT
    assert choose_license(None, {"a": MIT, "b": MIT}, {"license": "mit", "tags": []}) == MIT
    assert choose_license("apache-2.0", {"a": MIT, "b": None}, {"license": "mit"}) == APACHE


@pytest.mark.parametrize(
    "licenses", [{"a": MIT, "b": APACHE}, {"a": MIT, "b": None}, {"a": OTHER, "b": None}]
)
def test_different_licenses_are_an_error_that_names_each(licenses: dict) -> None:
    with pytest.raises(HubError, match="no license in common") as caught:
        choose_license(None, licenses, None)
    text = str(caught.value)
    for name, license in licenses.items():
        said = "none" if license is None else license["license"]
        assert f"{name}: {said}" in text
    assert "--license" in text


def test_another_license_in_the_repositorys_card_is_a_conflict_too() -> None:
    unknown = {"license": "MIT"}
    with pytest.raises(HubError, match="a: MIT; b: MIT"):
        choose_license(None, {"a": unknown, "b": unknown}, None)
    with pytest.raises(HubError, match=r"the repository's card: apache-2\.0"):
        choose_license(None, {"a": MIT, "b": MIT}, APACHE)


@pytest.mark.parametrize("given", ["openrail++", "llama3.3", "cc-by-4.0", "a-license-of-2031"])
def test_any_identifier_is_accepted(given: str) -> None:
    """The Hub knows which exist, and validates a card before an upload."""
    assert choose_license(given, {"a": MIT}, None) == {"license": given}


@pytest.mark.parametrize("given", ["my own", "MIT", "", "mit\n", "../x"])
def test_what_is_no_identifier_is_an_error(given: str) -> None:
    with pytest.raises(HubError, match="not a license identifier"):
        choose_license(given, {}, None)


def test_other_takes_its_name_from_the_existing_card() -> None:
    assert choose_license("other", {"a": None}, OTHER | {"tags": []}) == OTHER
    with pytest.raises(HubError, match="needs a name"):
        choose_license("other", {"a": OTHER}, None)
