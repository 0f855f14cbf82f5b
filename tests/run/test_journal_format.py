"""The format of the journal: any damage and any invalid line is an error."""

import json

import pytest

from mega_hf.errors import RunError
from mega_hf.run.journal import Journal
from mega_hf.search.population import Fitness
from tests.run.test_journal import HEADER
from tests.tools.run_files import OUTCOME, journal_of


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def _begun(path, lines):
    journal = Journal(path)
    journal.begin(HEADER)
    node = journal.node("a+b", "k")
    for index in range(lines):
        node.add(1, index, f"1{index}", Fitness(index, 9), 0.5)


@pytest.mark.parametrize("number", range(5))
def test_every_flipped_bit_is_an_error_that_names_the_line(path, number):
    """In the middle of a journal; the last line is closed by its newline."""
    _begun(path, 4)
    lines = path.read_bytes().splitlines(keepends=True)
    start = sum(map(len, lines[:number]))
    for at in range(start, start + len(lines[number]) - 1):
        for bit in (0, 3, 6):
            damaged = bytearray(b"".join(lines))
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(RunError, match=rf"journal\.jsonl:{number + 1}: a damaged line"):
                Journal(path)


def test_a_missing_or_moved_line_is_an_error(path):
    _begun(path, 4)
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in (
        [*lines[:2], *lines[3:]],
        [*lines[:2], lines[3], lines[2], *lines[4:]],
        [*lines[:3], *lines[2:]],
    ):
        path.write_bytes(b"".join(changed))
        with pytest.raises(RunError, match=r"journal\.jsonl:[34]: a damaged line"):
            Journal(path)


FITNESS = {
    "kind": "fitness",
    "node": "a+b",
    "generation": 1,
    "index": 0,
    "correct": 1,
    "n": 2,
    "genome": "g",
}


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"kind": "else"},
        FITNESS,
        FITNESS | {"seconds": 1.0, "correct": 3},
        FITNESS | {"seconds": 1.0, "correct": -1},
        FITNESS | {"seconds": 1.0, "correct": "1"},
        FITNESS | {"seconds": 1.0, "n": 10**30},
        FITNESS | {"seconds": float("nan")},
        FITNESS | {"seconds": 1.0, "node": "nobody"},
        FITNESS | {"seconds": 1.0, "genome": "g" * 200},
        FITNESS | {"seconds": 1.0, "more": 1},
        {"kind": "merged", "node": "a+b", **OUTCOME, "history": [1]},
        {"kind": "order", "key": "k", "ranking": "ab", "correct": {}, "n": 1},
        {"kind": "header", "version": 4, "recipe": "r"},
    ],
)
def test_an_invalid_line_with_a_valid_checksum_is_an_error(path, line):
    _begun(path, 0)
    before = [json.loads(one) for one in path.read_text().splitlines()]
    path.write_bytes(journal_of([*before, line]))
    with pytest.raises(RunError, match=r"journal\.jsonl:3: a damaged line"):
        Journal(path)


@pytest.mark.parametrize("version", [3, 5])
def test_another_version_of_the_format_is_an_error(path, version):
    line = {"kind": "header", "version": version} | HEADER
    path.write_bytes(journal_of([line]))
    with pytest.raises(RunError, match=r"journal\.jsonl:1[\s\S]*version"):
        Journal(path)
