"""Files and folders that are there whole or not at all, and their digests."""

import os
from pathlib import Path

import pytest

from mega_hf.errors import RunError
from mega_hf.runtime.files import merged_digest, remove, write_folder, write_whole


def _names(folder):
    return sorted(p.name for p in folder.rglob("*"))


def test_the_digest_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "b.safetensors").write_bytes(b"c")
    (tmp_path / "a.safetensors").write_bytes(b"ab")
    (tmp_path / "config.json").write_bytes(b"not weights")
    # of b"abc", FIPS 180-2
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert merged_digest(tmp_path) == known


# --- Whole or not at all


def test_write_whole_writes_replaces_and_leaves_nothing_else(tmp_path):
    for content in (b"first", b"second"):
        write_whole(tmp_path / "f", content)
        assert (tmp_path / "f").read_bytes() == content
        assert _names(tmp_path) == ["f"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    write_whole(tmp_path / "f", b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(RunError, match=r"f: can't be written[\s\S]*No space"),
    ):
        patch.setattr(os, "fsync", full)
        write_whole(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert _names(tmp_path) == ["f"]
    write_whole(tmp_path / "f", b"new")
    assert _names(tmp_path) == ["f"]


def _fill(text):
    def fill(path):
        assert not path.exists()
        path.mkdir()
        (path / "w").write_text(text)

    return fill


def test_write_folder_makes_its_parents_and_replaces(tmp_path):
    for text in ("first", "second"):
        write_folder(tmp_path / "deep" / "merged", _fill(text))
        assert (tmp_path / "deep" / "merged" / "w").read_text() == text
    assert _names(tmp_path) == ["deep", "merged", "w"]


def test_a_failed_filling_keeps_the_old_folder(tmp_path):
    write_folder(tmp_path / "merged", _fill("old"))

    def fail(path):
        _fill("half")(path)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "merged", fail)
    assert (tmp_path / "merged" / "w").read_text() == "old"
    write_folder(tmp_path / "merged", _fill("new"))
    assert (tmp_path / "merged" / "w").read_text() == "new"
    assert _names(tmp_path) == ["merged", "w"]


def test_a_folder_is_not_there_before_it_is_whole(tmp_path):
    def look(path):
        assert path.parent == tmp_path
        assert not (tmp_path / "merged").exists()
        _fill("x")(path)
        assert not (tmp_path / "merged").exists()

    write_folder(tmp_path / "merged", look)
    assert (tmp_path / "merged").is_dir()


def test_remove_takes_files_folders_links_and_nothing(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "f").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("link", "none"):
        remove(tmp_path / name)
    assert _names(tmp_path) == ["f", "kept"]
    remove(tmp_path / "kept")
    assert _names(tmp_path) == []


def test_whoever_may_read_new_files_may_read_those_of_a_folder(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        folder.mkdir()
        os.close(os.open(folder / "private", os.O_CREAT | os.O_WRONLY, 0o600))

    before = os.umask(0o027)
    try:
        write_folder(tmp_path / "model", fill)
    finally:
        os.umask(before)
    assert (tmp_path / "model" / "private").stat().st_mode & 0o777 == 0o640
