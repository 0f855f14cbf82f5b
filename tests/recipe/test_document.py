"""Reading YAML with line numbers: values, errors and overrides."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.errors import RecipeError
from mega_hf.recipe.document import Document, Origin, parse, read


def _read(tmp_path, text):
    file = tmp_path / "r.yaml"
    file.write_text(text, encoding="utf-8")
    return read(file)


def _value(text):
    return parse(text, "x", Path("/")).tree["value"]


# --- Values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2E5", -200_000.0),
        (".5e1", 5.0),
        ("1.5e+2", 150.0),
        ("1.e2", 100.0),
        ("0.1", 0.1),
        ("7", 7),
        ("e5", "e5"),
        ("1e", "1e"),
        ("1e5x", "1e5x"),
        ("'1e-3'", "1e-3"),
        ("true", True),
        ("null", None),
        ("train[45000:]", "train[45000:]"),
        ("{a: [1, 2]}", {"a": [1, 2]}),
    ],
)
def test_scalars_are_what_they_look_like(text, value):
    assert _value(text) == value
    assert type(_value(text)) is type(value)


@given(st.floats(1e-12, 1e12))
@settings(max_examples=50, deadline=None)
def test_a_number_in_scientific_notation_is_a_number(value):
    assert _value(f"{value:.17e}") == value


def test_keys_are_text(tmp_path):
    assert _read(tmp_path, "parents: {44: ./a, 45: ./b}").tree == {
        "parents": {"44": "./a", "45": "./b"}
    }


def test_an_empty_file_is_an_empty_mapping(tmp_path):
    assert _read(tmp_path, "# nothing\n").tree == {}


# --- Lines


def test_every_entry_knows_its_line(tmp_path):
    document = _read(tmp_path, "a: 1\n# comment\nb:\n  c: {d: 2}\n  e:\n    - 5\n    - 6\n")
    lines = {
        at: document.origin(at).label.rpartition(":")[2]
        for at in [("a",), ("b",), ("b", "c"), ("b", "e", 1)]
    }
    assert lines == {("a",): "1", ("b",): "3", ("b", "c"): "4", ("b", "e", 1): "7"}
    assert document.origin(("b", "c", "missing")).label == document.origin(("b", "c")).label
    assert document.origin(("a",)).base == tmp_path.resolve()


# --- Refusals, each at its line


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "duplicate key a"),
        ("a:\n  b: 1\n  'b': 2\n", 3, "duplicate key b"),
        ("a:\n  1: x\n  '1': y\n", 3, "duplicate key 1"),
        ("a: &x 1\nb: *x\n", 2, "alias"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", 3, "alias"),
        ("a: 1\nb: [1, 2\n", 3, "invalid YAML"),
        ("a: 1\n b: 2\n", 2, "invalid YAML"),
        ("a: 1\n\tb: 2\n", 2, "invalid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "invalid YAML"),
        ("a: 1\nb: !!python/name:os.system\n", 2, "invalid YAML"),
    ],
)
def test_a_bad_file_is_an_error_at_its_line(tmp_path, text, line, message):
    with pytest.raises(RecipeError) as caught:
        _read(tmp_path, text)
    assert f"{tmp_path / 'r.yaml'}:{line}:" in str(caught.value)
    assert message in str(caught.value)


def test_the_first_of_two_keys_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"the same key at .*r\.yaml:1"):
        _read(tmp_path, "a: 1\nb: 2\na: 3\n")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "5\n"])
def test_a_file_that_is_no_mapping_is_an_error(tmp_path, text):
    with pytest.raises(RecipeError, match="YAML mapping"):
        _read(tmp_path, text)


def test_no_code_of_a_recipe_is_run(tmp_path):
    for tag in (
        "python/object/apply:os.system",
        "python/object/new:os.system",
        "python/name:os.system",
    ):
        with contextlib.suppress(RecipeError):
            _read(tmp_path, f"a: !!{tag} ['touch {tmp_path}/ran']\n")
    assert not (tmp_path / "ran").exists()


def test_deep_nesting_ends_in_a_message(tmp_path):
    with pytest.raises(RecipeError, match="nested too deeply"):
        _read(tmp_path, "a: " + "[" * 800 + "]" * 800)


@pytest.mark.parametrize("value", ["2024-01-01", "!!binary aGk=", "0x" + "f" * 99])
def test_only_scalars_of_json_are_accepted(value, tmp_path):
    with pytest.raises(RecipeError, match=r"r\.yaml:2: unsupported YAML value"):
        _read(tmp_path, f"a: 1\nb: {value}\n")


def test_missing_unreadable_and_binary_files_are_errors(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        read(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="can't be read"):
        read(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(RecipeError, match="UTF-8"):
        read(tmp_path / "binary.yaml")


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_gives_a_tree_or_a_recipe_error(text):
    """No text gives a traceback of the YAML library."""
    try:
        parse(text, "r.yaml", Path("/"), top="")
    except RecipeError as error:
        assert "r.yaml" in str(error)


# --- Overrides


def _document():
    return Document(
        {"a": {"b": 1, "c": 2}, "d": "text"},
        {(): Origin("f", Path("/x")), ("a", "b"): Origin("f:1", Path("/x"))},
    )


@pytest.mark.parametrize(
    ("assignment", "tree"),
    [
        ("a.b=5", {"a": {"b": 5, "c": 2}, "d": "text"}),
        ("a.b=1e-3", {"a": {"b": 0.001, "c": 2}, "d": "text"}),
        ("a.b=", {"a": {"b": None, "c": 2}, "d": "text"}),
        ("a={b: 7}", {"a": {"b": 7}, "d": "text"}),
        ("d.split=train", {"a": {"b": 1, "c": 2}, "d": {"split": "train"}}),
        ("d={split: train, size: 3}", {"a": {"b": 1, "c": 2}, "d": {"split": "train", "size": 3}}),
        ("e.f.g=x=y", {"a": {"b": 1, "c": 2}, "d": "text", "e": {"f": {"g": "x=y"}}}),
    ],
)
def test_an_override_changes_what_it_names(assignment, tree):
    document = _document()
    document.override(assignment)
    assert document.tree == tree


def test_an_overridden_entry_is_of_the_command_line():
    document = _document()
    document.override("a.b=5")
    assert document.origin(("a", "b")) == Origin("--set a.b", Path.cwd())
    assert document.origin(("a", "c")) == Origin("f", Path("/x"))


def test_a_replaced_mapping_forgets_the_lines_of_its_entries():
    document = _document()
    document.override("a={b: 7}")
    assert document.origin(("a", "b")).label == "--set a"


@pytest.mark.parametrize("assignment", ["a", "=5", ".a=5", "a.=5", "a..b=5", ""])
def test_what_is_no_assignment_is_an_error(assignment):
    with pytest.raises(RecipeError, match=r"KEY\.KEY=VALUE"):
        _document().override(assignment)


@pytest.mark.parametrize("assignment", ["a.b=[1", "a.b={x: 1, x: 2}", "a.b=*x"])
def test_an_overrides_bad_value_is_an_error_by_its_name(assignment):
    with pytest.raises(RecipeError, match=r"--set a\.b"):
        _document().override(assignment)
