"""A run as a stranger may have it: nothing of this machine in it, and a run folder again where it is restored."""

from __future__ import annotations

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
from mega_hf.portable import portable_files, refuse_private, restore
from tests import tiny

MIT = {"license": "mit"}
TOKEN = "hf_" + "a" * 34


def write(files: dict[str, Path | bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return folder


@pytest.fixture
def copy(copied: Path, tmp_path: Path) -> Path:
    """The portable copy of a finished run, as files."""
    return write(portable_files(MergeResult.load(copied), "me/x", MIT), tmp_path / "portable")


def test_the_model_is_at_the_root_and_the_record_beside_it(copy: Path, finished: MergeResult) -> None:
    names = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    record = {"README.md", "recipe.yaml", "journal.jsonl", "result.json", "fitness.png"}
    assert names == {"config.json", "model.safetensors"} | record
    assert (copy / "model.safetensors").read_bytes() == (finished.merged / "model.safetensors").read_bytes()


def test_nothing_of_this_machine_is_in_it(copy: Path, pair: tiny.Pair, tmp_path: Path) -> None:
    for path in copy.rglob("*"):
        text = path.read_bytes().decode(errors="replace")
        for private in (str(tmp_path), str(pair.a), str(pair.data), str(Path.home())):
            assert private not in text, path
    recipe = Recipe.from_yaml(copy / "recipe.yaml").to_dict()
    record = json.loads((copy / "result.json").read_text())
    digests = {parent["name"]: parent["sha256"] for parent in record["parents"]}
    assert recipe["parents"] == {name: {"local": name, "sha256": digests[name]} for name in "ab"}
    rows = {split: record["data"][split]["sha256"] for split in ("validation", "test")}
    assert recipe["data"]["path"] == {"local": "data", "sha256": rows}
    header = json.loads((copy / "journal.jsonl").read_text().splitlines()[0])
    assert header["recipe"] == record["digests"]["recipe"] == Recipe.from_yaml(copy / "recipe.yaml").sha256
    assert record["repository"] == "me/x"


def test_the_card_is_that_of_the_repository(copy: Path) -> None:
    text = (copy / "README.md").read_text()
    assert '"hf-hub:me/x"' in text and "local-dir" not in text
    assert "mega-hf pull me/x --out pulled" in text
    assert "--set data.path=PATH --set parents.a=PATH --set parents.b=PATH" in text
    assert "license: mit" in text


def test_making_it_leaves_the_run_as_it_was(copied: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in copied.rglob("*") if path.is_file()}
    files = portable_files(MergeResult.load(copied), "me/x", MIT)
    refuse_private(files, TOKEN)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert {path for path in copied.rglob("*") if path.is_file()} == before.keys()


def test_a_restored_run_is_finished_and_makes_the_same_copy(copy: Path, tmp_path: Path, mega, finished) -> None:
    result = restore(copy, tmp_path / "run", "me/x")
    assert result.merged == tmp_path / "run" / "merged"
    answer = mega("merge", tmp_path / "run" / "recipe.yaml", "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert str(finished.report) in answer.out
    card = (tmp_path / "run" / "README.md").read_bytes()
    assert mega("card", tmp_path / "run").code == 0
    assert (tmp_path / "run" / "README.md").read_bytes() == card
    assert mega("evaluate", tmp_path / "run", "--data", tmp_path, "--split", "test").code == 2  # no data there
    again = write(portable_files(MergeResult.load(tmp_path / "run"), "me/x", MIT), tmp_path / "again")
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
    answer = mega(*words, *(word for key, place in places.items() for word in ("--set", f"{key}={place}")))
    assert answer.code == 0, answer.err
    assert not measured, "the journal knows it all"
    made = MergeResult.load(tmp_path / "run")
    assert made.record["digests"]["file"] == finished.record["digests"]["file"]
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
    assert "other parents" in answer.err


def test_intermediate_models_go_along_when_asked_for(treed_copy: Path, tmp_path: Path, mega) -> None:
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
        portable_files(result, "me/x", MIT)
    assert "the same mega-hf merge command" in str(caught.value)


# --- What must not leave


@pytest.mark.parametrize(
    "text",
    [
        '{"file": "/home/me/model.bin"}', "path: /gpfs/x", "see file:///data/x", '"~/models/a"',
        r'{"a": "C:\\Users\\me"}',
        "cache=/tmp/x/y", "(/mnt/disk/a)", "`/var/lib/x`", '["/usr/share/x"]', "x\n\n/opt/a/b",
    ],
)  # fmt: skip
def test_a_path_is_found_with_file_and_line(text: str) -> None:
    with pytest.raises(HubError, match="a path of a machine") as caught:
        refuse_private({"config.json": f"first\n{text}".encode()}, None)
    assert re.search(r"config\.json:[24]: ", str(caught.value))


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/org/name", "a/b and c/d", '"/m/011k07"', "3/4 of 1/2", "./x/y", "../x/y", "<br/>",
        "km/h", "org/name@main", "http://127.0.0.1:80/home/x", "re: /", "</div>", "a:\\nb", "PATH=/x",
    ],
)  # fmt: skip
def test_what_is_no_path_passes(text: str) -> None:
    refuse_private({"config.json": text.encode()}, None)


def test_a_token_is_found_and_not_shown() -> None:
    for token, text in ((None, TOKEN), ("short-secret", "xshort-secretx")):
        with pytest.raises(HubError, match="a token stands there") as caught:
            refuse_private({"recipe.yaml": f"a\nb\n{text}".encode()}, token)
        assert "recipe.yaml:3" in str(caught.value)
        assert text not in str(caught.value)


def test_the_header_of_weights_is_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(1)}, file, metadata={"from": "/home/me/x"})
    with pytest.raises(HubError, match="header"):
        refuse_private({"model.safetensors": file}, None)
    save_file({"w": torch.zeros(1)}, file, metadata={"format": "pt"})
    refuse_private({"model.safetensors": file}, None)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RunError, match="unreadable weights"):
        refuse_private({"model.safetensors": file}, None)


# --- What strangers may have done to a copy


def test_a_model_alone_is_no_run(pair: tiny.Pair, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="not a merge that mega-hf pushed"):
        restore(pair.a, tmp_path / "run", "org/a")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "journal.jsonl", "recipe.yaml"])
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
    "text": lambda record: "text",
    "another version": _damage("version", 99),
    "a name outside": _damage("files", {"../../outside": "0" * 64}),
    "an absolute name": _damage("files", {"/etc/hostname": "0" * 64}),
    "a hidden name": _damage("files", {".bashrc": "0" * 64}),
    "a number": _damage("files", {"1": 2}),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_strangers_record_is_not_trusted(case: str, copy: Path, tmp_path: Path) -> None:
    record = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps(DAMAGE[case](record)))
    with pytest.raises(HubError) as caught:
        restore(copy, tmp_path / "run", "me/x")
    assert "remedy" in str(caught.value)
    assert not (tmp_path / "run").exists()
