"""The run folder: which recipe it belongs to, leftovers of killed runs, finished or not."""

import json
import os
from pathlib import Path

import pytest

from mega_hf.errors import RunError
from mega_hf.recipe.schema import Recipe
from mega_hf.run.folder import RunFolder
from mega_hf.run.journal import Journal
from mega_hf.runtime.files import folder_digest, merged_digest, remove
from tests.tools.run_files import OUTCOME

PUBLISHED = Path(__file__).parents[2] / "model_cards" / "cifar10-resnet20-pair-default-46"


def _recipe(seed=46, revision=None, **merge):
    data = {"path": "org/set", "revision": revision}
    merge = {"seed": seed, **merge}
    return Recipe.from_dict(
        {"name": "x", "data": data, "parents": {"a": "org/a", "b": "org/b"}, "merge": merge}
    )


def _names(folder):
    return sorted(p.name for p in folder.rglob("*"))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs" / "x"


def _made(out, asked=None, pinned=None):
    folder = RunFolder(out)
    folder.create(asked or _recipe(), pinned or asked or _recipe(), overwrite=False)
    return folder


# --- Whose folder it is


def test_a_new_or_empty_folder_passes_the_check_and_is_not_created(out, tmp_path):
    assert RunFolder(out).check(_recipe(), overwrite=False) == _recipe()
    assert not out.parent.exists()
    assert RunFolder(tmp_path).check(_recipe(), overwrite=False) == _recipe()
    assert _names(tmp_path) == []


def test_the_same_recipe_resumes(out):
    assert _made(out).check(_recipe(), overwrite=False) == _recipe()


def test_the_requested_recipe_resumes_the_pinned_one(out):
    pinned = _recipe(revision="abc")
    folder = _made(out, _recipe(), pinned)
    assert folder.check(_recipe(), overwrite=False) == pinned
    assert folder.check(pinned, overwrite=False) == pinned


def test_a_different_recipe_is_an_error_with_the_difference(out):
    folder = _made(out)
    before = (out / "recipe.yaml").read_bytes()
    with pytest.raises(RunError) as caught:
        folder.check(_recipe(seed=47, generations=5), overwrite=False)
    message = str(caught.value)
    for line in (
        "-  seed: 46",
        "+  seed: 47",
        "-  generations: 20",
        "+  generations: 5",
        "--overwrite",
        str(out),
    ):
        assert line in message, message
    assert "population_size" not in message
    assert (out / "recipe.yaml").read_bytes() == before


def test_a_different_recipe_may_overwrite(out):
    folder, other = _made(out), _recipe(seed=47)
    (out / "journal.jsonl").write_text("old\n")
    (out / "merged").mkdir()
    assert folder.check(other, overwrite=True) == other
    folder.create(other, other, overwrite=True)
    assert _names(out) == ["recipe.yaml"]
    assert folder.check(other, overwrite=False) == other


def test_creating_twice_keeps_files_and_pins_new_revisions(out):
    """A part of a tree pins what it needs; the whole of it, later, the rest."""
    folder = _made(out)
    (out / "journal.jsonl").write_text("mine\n")
    folder.create(_recipe(), _recipe(revision="later"), overwrite=False)
    assert (out / "journal.jsonl").read_text() == "mine\n"
    assert folder.check(_recipe(), overwrite=False).data.revision == "later"


def _named(a="org/a@main", revision="main", source="org/s", **merge):
    parents = {"a": a, "b": "org/b", "c": {"train": {"seed": 1, "from": source}}}
    data = {"path": "org/set", "revision": revision}
    return Recipe.from_dict(
        {"name": "x", "data": data, "parents": parents, "merge": merge, "merges": "pairwise"}
    )


def test_named_revisions_stay_pinned_when_other_settings_change(out):
    pinned = _named("org/a@c1", "c2", "org/s@c3")
    folder = _made(out, _named(), pinned)
    assert folder.check(_named(), overwrite=False) == pinned
    with pytest.raises(RunError) as caught:
        folder.check(_named(seed=47), overwrite=False)
    assert "+  seed: 47" in str(caught.value) and "org/" not in str(caught.value)
    changed = _named("org/a@c1", "c2", "org/s@c3", seed=47)
    assert folder.check(_named(seed=47), overwrite=False, update=True) == changed
    folder.create(_named(seed=47), changed, overwrite=False, update=True)
    assert folder.check(_named(seed=48), overwrite=False, update=True).parents == pinned.parents
    assert folder.check(_named("org/a@v2"), overwrite=False, update=True).parents["a"] == "org/a@v2"
    folder.create(changed, changed, overwrite=False)
    assert folder.check(_named(seed=48), overwrite=False, update=True).parents == pinned.parents


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_an_error_and_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"not a run folder[\s\S]*thesis\.txt"):
        RunFolder(tmp_path).check(_recipe(), overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_overwriting_keeps_foreign_files(out):
    folder = _made(out)
    (out / "notes.txt").write_text("mine")
    folder.create(_recipe(), _recipe(), overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_way_is_an_error(tmp_path, overwrite):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "deeper" / "run"):
        with pytest.raises(RunError, match=r"can't be written[\s\S]*a file"):
            RunFolder(path).check(_recipe(), overwrite)
    assert (tmp_path / "file").read_text() == "x"


def test_a_read_only_parent_folder_is_an_error(tmp_path, monkeypatch):
    """Asked of the system by os.access; a superuser may write everywhere, so the answer is given
    here."""
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    with pytest.raises(RunError, match="no permission to write"):
        RunFolder(tmp_path / "new" / "run").check(_recipe(), False)
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]


# --- Stopped at any moment


def test_a_run_killed_while_its_recipe_was_written_resumes(out):
    out.mkdir(parents=True)
    (out / ".mega-recipe.yaml").write_text("# Every def")
    folder = RunFolder(out)
    assert folder.check(_recipe(), overwrite=False) == _recipe()
    folder.create(_recipe(), _recipe(), overwrite=False)
    assert _names(out) == ["recipe.yaml"]


def test_a_run_killed_while_it_removed_the_old_one_can_start_again(out):
    """Whatever is removed first, the folder is still known as ours, or as new."""
    _made(out)
    for name in ("journal.jsonl", "result.json"):
        (out / name).write_text("old")
    removed = []

    def stop(path, missing_ok=False):
        if missing_ok and not path.exists():
            return
        removed.append(path)
        os.unlink(path)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", stop)
        RunFolder(out).create(_recipe(), _recipe(), overwrite=True)
    assert len(removed) == 1
    assert RunFolder(out).check(_recipe(), overwrite=True) == _recipe()


def test_leftovers_of_a_killed_run_are_removed(out):
    _made(out)
    (out / ".mega-merged").mkdir()
    (out / ".mega-merged" / "half.safetensors").write_bytes(b"x")
    (out / ".mega-result.json").write_bytes(b"{")
    RunFolder(out).create(_recipe(), _recipe(), overwrite=False)
    assert _names(out) == ["recipe.yaml"]


# --- Finished or not


def test_a_run_without_a_result_is_not_finished(out):
    assert _made(out).finished() is None
    assert RunFolder(out / "none").finished() is None


def test_a_run_is_finished_while_its_weights_match_its_result(out):
    folder = _made(out)
    (out / "merged").mkdir()
    (out / "merged" / "model.safetensors").write_bytes(b"weights")
    digest = merged_digest(out / "merged")
    record = json.loads((PUBLISHED / "result.json").read_text())
    record["digests"] |= {"file": digest, "recipe": _recipe().sha256}
    record["nodes"][0]["name"] = "a+b"
    (out / "result.json").write_text(json.dumps(record))
    journal = Journal(out / "journal.jsonl")
    journal.node("a+b", "key").finish(OUTCOME | {"folder": folder_digest(out / "merged")})
    assert folder.finished().record.digests.file == digest
    (out / "merged" / "config.json").write_text("{}")
    assert folder.finished() is None, "there is something else in it now"
    remove(out / "merged" / "config.json")
    (out / "merged" / "model.safetensors").write_bytes(b"weightz")
    assert folder.finished() is None
    remove(out / "merged")
    assert folder.finished() is None
