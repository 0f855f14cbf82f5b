"""The journal: what was written comes back, what was torn is measured again, what is damaged is an error."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.errors import RunError
from mega_hf.journal import Journal

HEADER = {
    "recipe": "r",
    "parents": {"a": "1", "b": "2"},
    "data": {"validation": "v"},
    "device_kind": "cpu",
    "forward_path": "eager",
    "batch_size": 4,
    "versions": {"torch": "2"},
}
COUNTED = st.tuples(st.none() | st.integers(0, 100), st.just(100))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def _begun(path, lines=3):
    journal = Journal(path, "a+b")
    journal.begin(HEADER)
    for index in range(lines):
        journal.add(1, index, (index, 9), 0.5)
    return journal


# --- There and back


@given(st.dictionaries(st.tuples(st.integers(1, 9), st.integers(0, 9)), COUNTED, max_size=12))
@settings(max_examples=40, deadline=None)
def test_what_was_added_is_found_after_reading_again(tmp_path_factory, fitness):
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    journal = Journal(path, "a+b")
    journal.begin(HEADER)
    for (generation, index), counted in fitness.items():
        assert journal.find(generation, index) is None
        journal.add(generation, index, counted, 0.1)
    for known in (journal, Journal(path, "a+b")):
        assert len(known) == len(fitness)
        assert all(known.find(*key) == counted for key, counted in fitness.items())


def test_another_nodes_individuals_are_not_found(path):
    _begun(path)
    assert Journal(path, "c+d").find(1, 0) is None
    assert Journal(path, "a+b").find(1, 0) == (0, 9)


def test_every_line_is_on_the_disk_at_once(path):
    journal = _begun(path, 0)
    for index in range(3):
        journal.add(2, index, (None, 9), 1.23456)
        last = json.loads(path.read_text().splitlines()[-1])
        assert last == {"kind": "fitness", "node": "a+b", "generation": 2, "index": index} | {
            "correct": None,
            "n": 9,
            "seconds": 1.2346,
        }
    assert len(path.read_text().splitlines()) == 4


def test_the_system_is_asked_to_keep_each_line_once_it_is_whole(path, monkeypatch):
    journal, sync, seen = _begun(path, 0), os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda descriptor: (seen.append(path.read_text().splitlines()), sync(descriptor)))
    for index in range(2):
        journal.add(1, index, (index, 9), 0)
    assert [len(lines) for lines in seen] == [2, 3]


def test_a_journal_is_only_ever_appended_to(path):
    _begun(path)
    before = path.read_bytes()
    again = Journal(path, "a+b")
    again.begin(HEADER)
    assert path.read_bytes() == before
    again.add(2, 0, (1, 9), 0)
    assert path.read_bytes().startswith(before)


def test_reading_makes_no_file(path):
    assert Journal(path, "a+b").find(1, 0) is None
    assert not path.exists()


# --- Headers


def test_the_header_is_the_first_line(path):
    _begun(path)
    assert json.loads(path.read_text().splitlines()[0]) == {"kind": "header", "version": 1} | HEADER


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("parents", {"a": "1", "b": "3"}, ['{"b": "2"}', '{"b": "3"}']),
        ("parents", {"a": "1"}, ['{"b": "2"}']),
        ("data", {"validation": "w"}, ['"v"', '"w"']),
        ("device_kind", "H200", ['"cpu"', '"H200"']),
        ("forward_path", "compiled", ['"eager"', '"compiled"']),
        ("batch_size", 8, ["4", "8"]),
    ],
)
def test_another_header_is_refused_with_the_difference(path, key, value, shown):
    _begun(path)
    before = path.read_bytes()
    with pytest.raises(RunError) as caught:
        Journal(path, "a+b").begin(HEADER | {key: value})
    message = str(caught.value)
    assert str(path) in message
    assert key.replace("_", " ") in message
    assert all(text in message for text in shown), message
    assert path.read_bytes() == before


def test_other_library_releases_go_on(path):
    _begun(path)
    Journal(path, "a+b").begin(HEADER | {"versions": {"torch": "3"}})


def test_another_version_of_the_format_is_refused(path):
    path.write_text(json.dumps({"kind": "header", "version": 2} | HEADER) + "\n")
    with pytest.raises(RunError, match=r"journal\.jsonl:1[\s\S]*version 2"):
        Journal(path, "a+b")


# --- Torn and damaged


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_last_line_is_dropped_and_overwritten(path, cut):
    _begun(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = Journal(path, "a+b")
    assert (len(again), again.find(1, 2)) == (2, None)
    again.begin(HEADER)
    again.add(1, 2, (2, 9), 0.5)
    assert path.read_bytes() == whole
    assert Journal(path, "a+b").find(1, 2) == (2, 9)


@pytest.mark.parametrize("kept", [1, 10, 0, -1])
def test_a_torn_header_is_written_again(path, kept):
    _begun(path, 0)
    header = path.read_bytes()
    path.write_bytes(header[:kept])
    again = Journal(path, "a+b")
    again.begin(HEADER)
    again.add(1, 0, (5, 9), 0.5)
    assert path.read_bytes().startswith(header)
    assert Journal(path, "a+b").find(1, 0) == (5, 9)


@pytest.mark.parametrize(
    "damage",
    [
        b"not json\n",
        b"{}\n",
        b"[1]\n",
        b"null\n",
        b'{"kind": "fitness", "node": "a+b"}\n',
        b'{"kind": "fitn\n',
        b"\xff\xfe\n",
        b"\n",
    ],
)
def test_a_damaged_line_is_an_error_that_names_it(path, damage):
    _begun(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damage, *lines[3:]]))
    with pytest.raises(RunError, match=r"journal\.jsonl:3: a damaged line[\s\S]*--overwrite"):
        Journal(path, "a+b")
