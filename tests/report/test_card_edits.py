"""Cards that replace cards: what was generated goes, what was written by hand stays."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mega_hf.errors import HubError
from mega_hf.report.card_edits import _BEGIN, Card, has_own_words, seal, split_card, update_card

BEGIN = _BEGIN.partition(",")[0]
BODY = "# title\n\nIntro.\n\n## Use\n\n```\n## no heading\n```\n\n## Results\n\nNumbers {n}.\n"


def card(n: int, front: str = "license: mit\ntags: [merge]") -> str:
    return f"---\n{front}\n---\n\n{seal(BODY.format(n=n))}"


def update(new: str, *old: str, **generated: object) -> str:
    return update_card(new, [Card(text, "README.md", generated) for text in old])


def body(text: str) -> str:
    return split_card(text)[1].strip()


def test_what_was_generated_is_replaced() -> None:
    assert body(update(card(2), card(1))) == body(card(2))


def test_a_card_of_an_earlier_release_is_replaced_whole() -> None:
    old = "---\nlicense: mit\n---\n\n" + seal("# title\n\n## A section of old\n\nGone.\n")
    assert "Gone" not in update(card(2), old)


@pytest.mark.parametrize("place", ["below", "above"])
def test_text_outside_of_the_generated_part_is_kept(place: str) -> None:
    mine = "## Mine\n\nKeep | this <b>text</b>.\n"
    below, above = card(1) + mine, card(1).replace(BEGIN, f"{mine}\n{BEGIN}", 1)
    text = update(card(2), below if place == "below" else above)
    assert text.count("Keep | this <b>text</b>.") == 1
    assert (text.index("Keep") > text.index("Numbers 2.")) == (place == "below")
    again = update(card(3), text)
    assert again.count("Keep | this") == 1 and "Numbers 3." in again and "Numbers 2" not in again


def test_a_card_by_hand_is_kept_below() -> None:
    text = update(card(1), "---\nlanguage: en\n---\n# Mine\n\nAll of it.\n")
    assert text.index("Numbers 1.") < text.index("All of it.")
    assert split_card(text)[0]["language"] == "en"


@pytest.mark.parametrize(
    "change",
    [
        ("Numbers 1", "Numbers 99"),
        ("Intro.", "Intro, mine."),
        ("# title", "# mine"),
        ("## Results", "## Mine\n\nKeep.\n\n## Results"),
    ],
)
def test_an_edit_of_the_generated_part_is_an_error(change: tuple[str, str]) -> None:
    with pytest.raises(HubError, match="edited by hand") as caught:
        update(card(2), card(1).replace(*change))
    assert "--overwrite-card" in str(caught.value)


def test_line_ends_and_blank_lines_are_no_change() -> None:
    old = card(1).replace("\n", "\r\n").replace("Intro.", "Intro.  ")
    assert body(update(card(2), old)) == body(card(2))


def test_front_matter_keeps_what_nobody_generated() -> None:
    old = card(
        1, "license: mit\ntags: [merge, mine]\nlanguage: en\nbase_model: [o/a]\ndatasets: [by/hand]"
    )
    front = split_card(update(card(2), old, base_model=["o/a"]))[0]
    assert front == {
        "license": "mit",
        "tags": ["merge", "mine"],
        "language": "en",
        "datasets": ["by/hand"],
    }


def test_of_two_cards_all_text_is_kept_and_none_twice() -> None:
    theirs, ours = card(1) + "## Mine\n\nboth\n", card(1) + "## Mine\n\nours\n"
    text = update(card(2), theirs, ours)
    assert (text.count("both"), text.count("ours")) == (1, 1)
    assert update(card(2), text, ours).count("ours") == 1
    assert update(card(2), theirs, theirs).count("both") == 1


def test_nothing_of_one_card_is_taken_for_a_double() -> None:
    mine = "## Notes\n\nfirst\n\n## Notes\n\nsecond\n\n~~~\n## a\n## a\n~~~\n"
    assert mine.strip() in update(card(2), card(1) + mine)


def test_front_matter_is_kept_letter_by_letter() -> None:
    kept = "language: no\nversion: 1.10\ncommit: 0123456\ntrained_at: 12:30:45\ninference: false\n"
    more = "title: foo ---\nwidget:\n- src: x.png\n  title: y\n"
    text = update(card(2), card(1, f"license: mit\ntags: mine\n{kept}{more}".rstrip()))
    assert kept in text and more in text
    assert split_card(text)[0]["tags"] == ["merge", "mine"]


@pytest.mark.parametrize(
    ("front", "kept"),
    [
        ("{license: mit, language: en}", {"language": "en"}),
        ("license: &x mit\nmine: *x", {"mine": "mit"}),
        ("license: mit\n7: one\nyes: two", {7: "one", True: "two"}),
        ("license: mit\ntwice: 1\ntwice: 2", {"twice": 2}),
    ],
)
def test_any_form_of_front_matter_is_kept(front: str, kept: dict[object, object]) -> None:
    assert split_card(update(card(2), card(1, front)))[0] == kept | {
        "license": "mit",
        "tags": ["merge"],
    }


def test_a_mark_of_byte_order_hides_nothing() -> None:
    assert split_card("\ufeff" + card(1))[0]["license"] == "mit"


def test_of_a_license_nothing_of_the_old_card_is_kept() -> None:
    old = card(1, "license: other\nlicense_name: mine\nlicense_link: https://x.y/z\ntags: [merge]")
    assert split_card(update(card(2), old))[0] == {"license": "mit", "tags": ["merge"]}


def test_what_an_earlier_merge_generated_is_not_taken_for_hand_written() -> None:
    """Even where the record of that merge can't be read."""
    old = card(
        1, "license: mit\ntags: [merge]\nbase_model: [o/old]\ndatasets: [o/old]\nlanguage: en"
    )
    front = split_card(update_card(card(2), [Card(old, "README.md", None)]))[0]
    assert front == {"license": "mit", "tags": ["merge"], "language": "en"}


def test_a_card_that_is_no_text_is_refused() -> None:
    with pytest.raises(HubError, match="UTF-8"):
        Card.read("Grüße aus Köln".encode("latin-1"), "README.md")


@pytest.mark.parametrize(
    "change", [("## Results", "## Mine\n\nx\n\n## Results"), ("Intro.", "Mine."), None]
)
def test_own_words_are_known(change: tuple[str, str] | None) -> None:
    text = card(1).replace(*change) if change else card(1)
    assert has_own_words(text) == (change is not None)
    assert has_own_words(card(1) + "below") and has_own_words("# another\n")


@pytest.mark.parametrize("front", ["- a\n- b", "key: [", "text"])
def test_front_matter_that_is_none_is_refused(front: str) -> None:
    with pytest.raises(HubError, match="front matter") as caught:
        update(card(2), f"---\n{front}\n---\n\nbody\n")
    assert "--overwrite-card" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "   \n", "---\n---\n", "no front matter", "---\nlicense: mit\n---"]
)
def test_any_card_can_be_replaced(text: str) -> None:
    new = update(card(1), text)
    assert yaml.safe_load(new.split("---\n")[1])["license"] == "mit"
    assert "Numbers 1." in new


@given(
    st.lists(
        st.text(
            st.characters(
                codec="utf-8", exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
            )
        ),
        max_size=4,
    )
)
def test_nothing_that_stands_below_is_ever_lost(lines: list[str]) -> None:
    """Whatever is written there, and however often the card is written again."""
    mine = "## Mine\n" + "\n".join(f"x{line}" for line in lines)
    once = update(card(2), card(1) + mine)
    assert mine.strip() in once
    twice = update(card(3), once)
    assert mine.strip() in twice and "Numbers 3." in twice
    assert update(card(3), twice) == twice
