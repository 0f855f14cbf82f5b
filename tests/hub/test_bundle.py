"""A run as a stranger may have it: nothing of this machine in it, and a run folder again where it
is restored."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mega_hf import MergeResult, Recipe
from mega_hf.errors import HubError, MegaError, RunError
from mega_hf.hub.bundle import check_unchanged, portable_files, restore
from mega_hf.hub.privacy import check_no_private_paths, local_paths
from mega_hf.report.card import render_card
from mega_hf.report.record import RunRecord
from tests.tools import tiny

MIT = {"license": "mit"}


def write(files: dict[str, Path | bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return folder


@pytest.fixture
def copy(copied: Path, tmp_path: Path) -> Path:
    """The portable copy of a finished run, as files."""
    return write(portable_files(MergeResult.load(copied), "me/x", MIT), tmp_path / "portable")


def test_the_model_is_at_the_root_and_the_record_beside_it(
    copy: Path, finished: MergeResult
) -> None:
    names = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    record = {"README.md", "recipe.yaml", "journal.jsonl", "result.json", "fitness.png"}
    assert names == {"config.json", "model.safetensors"} | record
    assert (copy / "model.safetensors").read_bytes() == (
        finished.merged / "model.safetensors"
    ).read_bytes()


def test_nothing_of_this_machine_is_in_it(copy: Path, pair: tiny.Pair, tmp_path: Path) -> None:
    for path in copy.rglob("*"):
        text = path.read_bytes().decode(errors="replace")
        for private in (str(tmp_path), str(pair.a), str(pair.data), str(Path.home())):
            assert private not in text, path
    recipe = Recipe.from_yaml(copy / "recipe.yaml").to_dict()
    record = json.loads((copy / "result.json").read_text())
    digests = {parent["name"]: parent["sha256"] for parent in record["parents"]}
    assert recipe["parents"] == {name: {"local": name, "sha256": digests[name]} for name in "ab"}
    rows = {
        split: record["data"][split]["sha256"] for split in ("validation", "test", "calibration")
    }
    assert recipe["data"]["path"] == {"local": "data", "sha256": rows}
    header = json.loads((copy / "journal.jsonl").read_text().splitlines()[0])
    assert (
        header["recipe"]
        == record["digests"]["recipe"]
        == Recipe.from_yaml(copy / "recipe.yaml").sha256
    )
    assert record["repository"] == "me/x"


def test_the_card_is_that_of_the_repository(copy: Path) -> None:
    text = (copy / "README.md").read_text()
    assert '"hf-hub:me/x"' in text and "local-dir" not in text
    assert "mega-hf pull me/x --out pulled" in text
    assert "--set data.path=PATH --set parents.a=PATH --set parents.b=PATH" in text
    assert "license: mit" in text


def test_making_it_leaves_the_run_as_it_was(copied: Path) -> None:
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in copied.rglob("*")
        if path.is_file()
    }
    files = portable_files(MergeResult.load(copied), "me/x", MIT)
    check_no_private_paths(files, local_paths(copied), None)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert {path for path in copied.rglob("*") if path.is_file()} == before.keys()


def test_a_restored_run_is_finished_and_makes_the_same_copy(
    copy: Path, tmp_path: Path, mega, finished
) -> None:
    result = restore(copy, tmp_path / "run", "me/x")
    assert result.merged == tmp_path / "run" / "merged"
    answer = mega("merge", tmp_path / "run" / "recipe.yaml", "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert str(finished.report) in answer.out
    card = (tmp_path / "run" / "README.md").read_bytes()
    assert mega("card", tmp_path / "run").code == 0
    assert (tmp_path / "run" / "README.md").read_bytes() == card
    # no data there
    assert mega("evaluate", tmp_path / "run", "--data", tmp_path, "--split", "test").code == 2
    again = write(
        portable_files(MergeResult.load(tmp_path / "run"), "me/x", MIT), tmp_path / "again"
    )
    for path in copy.rglob("*"):
        if path.is_file() and path.suffix != ".png":
            assert (again / path.relative_to(copy)).read_bytes() == path.read_bytes(), path


def test_a_restored_run_is_made_again_from_its_journal(
    copy: Path, tmp_path: Path, mega, pair: tiny.Pair, measured: list[str], finished: MergeResult
) -> None:
    restore(copy, tmp_path / "run", "me/x")
    shutil.rmtree(tmp_path / "run" / "merged")
    words = ["merge", tmp_path / "run" / "recipe.yaml", "--out", tmp_path / "run"]
    bare = mega(*words)
    assert bare.code == 2
    assert "--set data.path=PATH --set parents.a=PATH --set parents.b=PATH" in bare.err
    places = {"data.path": pair.data, "parents.a": pair.a, "parents.b": pair.b}
    answer = mega(
        *words, *(word for key, place in places.items() for word in ("--set", f"{key}={place}"))
    )
    assert answer.code == 0, answer.err
    assert not measured, "the journal knows it all"
    made = MergeResult.load(tmp_path / "run")
    assert made.record.digests.file == finished.record.digests.file
    assert str(made.report) == str(finished.report)


def test_other_parents_than_the_runs_are_refused_in_its_folder(
    copy: Path, tmp_path: Path, mega, pair: tiny.Pair
) -> None:
    restore(copy, tmp_path / "run", "me/x")
    shutil.rmtree(tmp_path / "run" / "merged")
    places = {"data.path": pair.data, "parents.a": pair.b, "parents.b": pair.a}
    words = [word for key, place in places.items() for word in ("--set", f"{key}={place}")]
    answer = mega("merge", tmp_path / "run" / "recipe.yaml", "--out", tmp_path / "run", *words)
    assert answer.code == 2
    assert "different parents" in answer.err


def test_intermediate_models_go_along_when_asked_for(
    treed_copy: Path, tmp_path: Path, mega
) -> None:
    result = MergeResult.load(treed_copy)
    bare = portable_files(result, "me/x", MIT)
    assert "tree.png" in bare and not [name for name in bare if name.startswith("nodes/")]
    files = portable_files(result, "me/x", MIT, with_nodes=True)
    assert "nodes/a+b/model.safetensors" in files
    restored = restore(write(files, tmp_path / "portable"), tmp_path / "run", "me/x")
    assert (restored.folder / "nodes" / "c+d" / "config.json").is_file()
    assert mega("merge", tmp_path / "run" / "recipe.yaml", "--out", tmp_path / "run").code == 0


def test_dropped_intermediate_models_are_missed_in_words(treed_copy: Path) -> None:
    shutil.rmtree(treed_copy / "nodes")
    with pytest.raises(RunError, match="intermediate models"):
        portable_files(MergeResult.load(treed_copy), "me/x", MIT, with_nodes=True)


@pytest.mark.parametrize("change", ["weights", "config", "journal", "recipe", "unfinished"])
def test_a_run_that_was_changed_is_not_copied(change: str, copied: Path) -> None:
    result = MergeResult.load(copied)
    if change == "weights":
        save_file({"w": torch.zeros(1)}, copied / "merged" / "model.safetensors")
    elif change == "config":
        (copied / "merged" / "config.json").write_text("{}")
    elif change == "journal":
        (copied / "journal.jsonl").unlink()
    elif change == "recipe":
        (copied / "recipe.yaml").unlink()
    else:
        (copied / "result.json").unlink()
    with pytest.raises(RunError) as caught:
        check_unchanged(result)
    assert "the same mega-hf merge command" in str(caught.value)


# --- What strangers may have done to a copy


def test_a_model_alone_is_no_run(pair: tiny.Pair, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="not a merge that mega-hf pushed"):
        restore(pair.a, tmp_path / "run", "org/a")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "journal.jsonl", "recipe.yaml"]
)
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_changed_copy_is_not_restored(name: str, how: str, copy: Path, tmp_path: Path) -> None:
    if how == "gone":
        (copy / name).unlink()
    elif name == "recipe.yaml":
        (copy / name).write_text((copy / name).read_text().replace("seed: 46", "seed: 47"))
    else:
        (copy / name).write_bytes((copy / name).read_bytes() + b"\n")
    with pytest.raises(MegaError) as caught:
        restore(copy, tmp_path / "run", "me/x")
    assert "me/x" in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob(".mega-*"))


def _damage(key: str, value: Any) -> Any:
    def change(record: dict[str, Any]) -> dict[str, Any]:
        record[key] = value
        return record

    return change


DAMAGE = {
    "no files": _damage("files", None),
    "no models": _damage("models", []),
    "no digests": _damage("digests", {}),
    "no nodes": _damage("nodes", []),
    "nodes that are text": _damage("nodes", "abc"),
    "a node elsewhere": _damage("nodes", [{"name": "/usr/share"}, {"name": "a+b"}]),
    "another recipe": lambda record: record | {"recipe": record["recipe"] | {"name": "y"}},
    "a recipe that pushes": (
        lambda record: record | {"recipe": record["recipe"] | {"push": {"repo": "me/x"}}}
    ),
    "a recipe that is none": _damage("recipe", {"a": 1}),
    "text": lambda record: "text",
    "another version": _damage("version", 99),
    "a name outside": _damage("files", {"../../outside": "0" * 64}),
    "an absolute name": _damage("files", {"/etc/hostname": "0" * 64}),
    "a hidden name": _damage("files", {".bashrc": "0" * 64}),
    "a name with a line's end": _damage("files", {"config.json\n": "0" * 64}),
    "an endless name": _damage("files", {"x" * 5000: "0" * 64}),
    "a number": _damage("files", {"1": 2}),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_strangers_record_is_not_trusted(case: str, copy: Path, tmp_path: Path) -> None:
    record = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps(DAMAGE[case](record)))
    with pytest.raises(HubError) as caught:
        restore(copy, tmp_path / "run", "me/x")
    assert "hint" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_strangers_recipe_can_not_push(copy: Path, tmp_path: Path) -> None:
    """With the digest in its first line made anew, as whoever pushed it could."""
    text = (copy / "recipe.yaml").read_text()
    head, _, body = text.partition("\n")
    body += "push:\n  repo: me/precious\n  license: mit\n"
    head = head.replace(
        re.findall("[0-9a-f]{64}", head)[-1], hashlib.sha256(body.encode()).hexdigest()
    )
    (copy / "recipe.yaml").write_text(f"{head}\n{body}")
    with pytest.raises(HubError, match="changed since it was pushed"):
        restore(copy, tmp_path / "run", "evil/x")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("line", [b'{"kind": "fitness"}\n', b"[" * 100_000 + b"\n", b"text\n"])
def test_a_strangers_journal_is_not_trusted(line: bytes, copy: Path, tmp_path: Path) -> None:
    journal = (copy / "journal.jsonl").read_bytes() + line
    record = json.loads((copy / "result.json").read_text())
    record["digests"]["journal"] = hashlib.sha256(journal).hexdigest()
    (copy / "journal.jsonl").write_bytes(journal)
    (copy / "result.json").write_text(json.dumps(record))
    with pytest.raises(HubError, match="can't be read"):
        restore(copy, tmp_path / "run", "evil/x")
    assert not (tmp_path / "run").exists()


def test_what_lies_at_the_target_is_left_alone(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        restore(copy, tmp_path / "run", "me/x")
    assert (tmp_path / "run" / "precious.txt").read_text() == "mine"


def test_the_working_folder_may_be_the_target(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    restore(copy, Path("."), "me/x")
    assert (tmp_path / "here" / "merged" / "model.safetensors").is_file()


def test_a_strangers_texts_do_no_harm_in_a_card(finished: MergeResult) -> None:
    record = finished.record.to_dict()
    record |= {
        "repository": "me/x; rm -rf ~",
        "architecture": "cifar_resnet20\nimport os; os.system('id')",
    }
    record["environment"]["versions"]["torch"] = "<script>alert(1)</script>"
    record["environment"]["forward_path"] = "<img onerror=alert(1)>"
    record["models"][2]["name"] = "\x1b[31mred"
    doubtful = MergeResult(RunRecord.from_dict(record), finished.folder)
    text = render_card(doubtful)
    for harm in ("<script>", "<img", "; rm", "\nimport os", "\x1b"):
        assert harm not in text
    assert "\x1b" not in str(doubtful.report)
