"""The journal: read back what was written, drop incomplete lines, reject damaged ones."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.errors import RunError
from mega_hf.run.journal import Journal
from mega_hf.search.population import Fitness
from tests.tools.run_files import OUTCOME

HEADER = {
    "recipe": "r",
    "parents": {"a": "1", "b": "2"},
    "data": {"validation": "v"},
    "device_kind": "cpu",
    "forward_path": "eager",
    "batch_size": 4,
    "versions": {"torch": "2"},
}
FITNESS = st.builds(
    Fitness, st.none() | st.integers(0, 100), st.just(100), loss=st.integers(0, 9999)
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def _opened(path, node="a+b", key="k"):
    """Open a journal as a run does: its header is checked, its node is begun or found."""
    journal = Journal(path)
    journal.begin(HEADER)
    return journal.node(node, key)


def _known(path, node="a+b", key="k"):
    """Return what is known, and write nothing."""
    return Journal(path).node(node, key, write=False)


def _begun(path, lines=3):
    node = _opened(path)
    for index in range(lines):
        node.add(1, index, f"1{index}", Fitness(index, 9), 0.5)
    return node


# --- There and back


@given(st.dictionaries(st.tuples(st.integers(1, 9), st.integers(0, 9)), FITNESS, max_size=12))
@settings(max_examples=40, deadline=None)
def test_added_lines_are_found_after_reading_again(tmp_path_factory, fitness):
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    journal = _opened(path)
    for (generation, index), counted in fitness.items():
        genome = f"{generation}{index}"
        assert journal.find(generation, index, genome) is None
        journal.add(generation, index, genome, counted, 0.1)
    for known in (journal, _known(path)):
        assert len(known) == len(fitness)
        assert all(
            known.find(*key, f"{key[0]}{key[1]}") == counted for key, counted in fitness.items()
        )


def test_lines_under_another_key_are_ignored(path):
    """Another key means other parents, rows or settings: the same name, but another merge."""
    _begun(path).finish(OUTCOME)
    assert _known(path).merged["file"] == "f"
    again = _opened(path, key="other")
    assert (len(again), again.merged, again.seconds) == (0, None, 0.0)
    again.add(1, 0, "10", Fitness(7, 9), 0.5)
    assert _known(path, key="other").find(1, 0, "10") == Fitness(7, 9)
    back = _opened(path)
    assert len(back) == 0, (
        "what was void stays void: the journal tells what is good now by its last key alone"
    )


def test_lines_of_nodes_may_be_interleaved(path):
    journal = Journal(path)
    journal.begin(HEADER)
    first, second = journal.node("a+b", "k"), journal.node("c+d", "l")
    for index in range(2):
        first.add(1, index, f"1{index}", Fitness(index, 9), 1.0)
        second.add(1, index, f"1{index}", Fitness(index + 5, 9), 2.0)
    assert [_known(path, "c+d", "l").find(1, i, f"1{i}") for i in range(2)] == [
        Fitness(5, 9),
        Fitness(6, 9),
    ]
    assert (_known(path).seconds, _known(path, "c+d", "l").seconds) == (2.0, 4.0)


def test_other_processes_begin_nodes_in_memory(path):
    _begun(path)
    before = path.read_bytes()
    assert len(_known(path, key="other")) == 0
    assert path.read_bytes() == before


def test_the_order_is_read_back(path):
    journal = Journal(path)
    journal.begin(HEADER)
    assert journal.order is None
    journal.append(
        {"kind": "order", "key": "k", "ranking": ["b", "a"], "correct": {"a": 1, "b": 2}, "n": 9}
    )
    assert Journal(path).order["ranking"] == ["b", "a"]


def test_every_line_is_on_the_disk_at_once(path):
    journal = _begun(path, 0)
    for index in range(3):
        journal.add(2, index, f"2{index}", Fitness(None, 9), 1.23456, 4)
        last = json.loads(path.read_text().splitlines()[-1])
        assert len(last.pop("crc")) == 8
        assert last == {"kind": "fitness", "node": "a+b", "generation": 2, "index": index} | {
            "correct": None,
            "n": 9,
            "genome": f"2{index}",
            "seconds": 1.2346,
            "pictures": 4,
        }
    assert len(path.read_text().splitlines()) == 5


def test_each_line_is_synced_to_disk(path, monkeypatch):
    journal, sync, seen = _begun(path, 0), os.fsync, []
    monkeypatch.setattr(
        os,
        "fsync",
        lambda descriptor: (seen.append(path.read_text().splitlines()), sync(descriptor)),
    )
    for index in range(2):
        journal.add(1, index, f"1{index}", Fitness(index, 9), 0)
    assert [len(lines) for lines in seen] == [3, 4]


def test_a_journal_is_only_ever_appended_to(path):
    _begun(path)
    before = path.read_bytes()
    again = _opened(path)
    assert path.read_bytes() == before
    again.add(2, 0, "20", Fitness(1, 9), 0)
    assert path.read_bytes().startswith(before)


def test_reading_makes_no_file(path):
    assert Journal(path).order is None
    assert _known(path).find(1, 0, "10") is None
    assert not path.exists()


# --- Headers


def test_the_header_is_the_first_line(path):
    _begun(path)
    header = json.loads(path.read_text().splitlines()[0])
    assert len(header.pop("crc")) == 8
    assert header == {"kind": "header", "version": 4} | HEADER


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("parents", {"a": "1", "b": "3"}, ['{"b": "2"}', '{"b": "3"}']),
        ("data", {"validation": "w"}, ['"v"', '"w"']),
        ("device_kind", "H200", ['"cpu"', '"H200"']),
        ("forward_path", "compiled", ['"eager"', '"compiled"']),
        ("batch_size", 8, ["4", "8"]),
    ],
)
def test_a_different_header_is_an_error_with_the_difference(path, key, value, shown):
    _begun(path)
    before = path.read_bytes()
    with pytest.raises(RunError) as caught:
        Journal(path).begin(HEADER | {key: value})
    message = str(caught.value)
    assert str(path) in message
    assert key.replace("_", " ") in message
    assert all(text in message for text in shown), message
    assert path.read_bytes() == before


def test_new_parents_are_added_to_the_header(path):
    """A part of a tree is run with the parents that it needs, and the whole of it later."""
    _begun(path)
    Journal(path).begin(HEADER | {"parents": {"b": "2", "c": "3"}})
    assert Journal(path).header["parents"] == {"a": "1", "b": "2", "c": "3"}
    assert len(_known(path)) == 3
    before = path.read_bytes()
    Journal(path).begin(HEADER | {"parents": {"a": "1"}})
    assert path.read_bytes() == before


def test_an_update_appends_a_header_and_keeps_fitnesses(path):
    _begun(path)
    before = path.read_bytes()
    Journal(path).begin(HEADER | {"parents": {"a": "1", "b": "3"}}, update=True)
    assert path.read_bytes().startswith(before)
    assert Journal(path).header["parents"] == {"a": "1", "b": "3"}
    assert len(_known(path)) == 3, "the nodes' keys decide what is still good"


def test_other_library_versions_resume_with_a_warning(path):
    _begun(path)
    Journal(path).begin(HEADER | {"versions": {"torch": "3"}})


# --- Torn and damaged


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_an_incomplete_last_line_is_dropped_and_overwritten(path, cut):
    _begun(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    known = _known(path)
    assert (len(known), known.find(1, 2, "12")) == (2, None)
    again = _opened(path)
    again.add(1, 2, "12", Fitness(2, 9), 0.5)
    assert path.read_bytes() == whole
    assert _known(path).find(1, 2, "12") == Fitness(2, 9)


@pytest.mark.parametrize("kept", [1, 10, 0, -1])
def test_an_incomplete_header_is_written_again(path, kept):
    Journal(path).begin(HEADER)
    header = path.read_bytes()
    path.write_bytes(header[:kept])
    again = _opened(path)
    again.add(1, 0, "10", Fitness(5, 9), 0.5)
    assert path.read_bytes().startswith(header)
    assert _known(path).find(1, 0, "10") == Fitness(5, 9)


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
    with pytest.raises(
        RunError, match=r"journal\.jsonl:3: a damaged line[\s\S]*head -n 2[\s\S]*--overwrite"
    ):
        Journal(path)
    path.write_bytes(b"".join(lines[:2]))  # what the hint says
    assert len(_known(path)) == 0


def test_an_incomplete_line_is_logged(path, caplog):
    _begun(path)
    path.write_bytes(path.read_bytes()[:-3])
    _opened(path)
    assert "incomplete last line" in caplog.text
    caplog.clear()
    _opened(path)
    assert "incomplete last line" not in caplog.text


# --- Genomes


def test_a_genome_is_found_in_any_generation(path):
    journal = _begun(path)
    assert journal.find_genome("11") == _known(path).find_genome("11") == Fitness(1, 9)
    assert journal.find_genome("99") is None


def test_another_genome_at_a_known_place_is_an_error(path):
    _begun(path)
    with pytest.raises(
        RunError, match=r"individual 1 of generation 1 of a\+b is not the one[\s\S]*genome 11"
    ):
        _known(path).find(1, 1, "xx")


def test_the_later_of_two_lines_on_one_individual_counts(path):
    journal = _begun(path, 1)
    journal.add(1, 0, "10", Fitness(3, 9), 0.1)
    assert _known(path).find(1, 0, "10") == Fitness(3, 9)
    assert len(_known(path)) == 1


def test_other_processes_keep_fitnesses_in_memory(path):
    journal = _begun(path, 0)
    before = path.read_bytes()
    journal.add(1, 0, "10", Fitness(3, 9), 0.1, write=False)
    assert journal.find(1, 0, "10") == journal.find_genome("10") == Fitness(3, 9)
    assert path.read_bytes() == before


def test_a_recorded_outcome_is_not_written_again(path):
    journal = _begun(path, 0)
    journal.finish(OUTCOME)
    before = path.read_bytes()
    _known(path).finish(OUTCOME)
    assert path.read_bytes() == before
    _known(path).finish(OUTCOME | {"file": "g"})
    assert path.read_bytes().startswith(before) and path.read_bytes() != before
