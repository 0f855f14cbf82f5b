"""A run as a stranger may have it: no path of this machine in any file; and from such files a run folder again."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors

from mega_hf import strict_yaml
from mega_hf.errors import HubError, RunError
from mega_hf.hf.card import render_card
from mega_hf.hf.hub import file_digest
from mega_hf.journal import NAME as JOURNAL
from mega_hf.plots import plot_fitness, plot_tree
from mega_hf.recipe import Recipe
from mega_hf.result import NAME as RESULT
from mega_hf.result import MergeResult
from mega_hf.run_folder import RunFolder, other_recipe, write_folder

Files = Mapping[str, Path | bytes]  # path in the repository -> a file here, or what is to stand in it

CARD, RECIPE = "README.md", "recipe.yaml"
PLOTS = {"fitness.png": plot_fitness, "tree.png": plot_tree}
OURS = frozenset({CARD, RECIPE, JOURNAL, RESULT, *PLOTS})
_NODE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+@-]*$")
_FILE = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")


def portable_files(
    result: MergeResult, repository: str, licence: Mapping[str, Any], with_nodes: bool = False
) -> dict[str, Path | bytes]:
    """Return the files of a run's copy: the model at the root, beside it card, recipe, journal, result and plots.

    Args:
        result: a finished run.
        repository: where the copy goes; its card says how to use it from there.
        licence: the front matter's license, with its name and link if it has them.
        with_nodes: the intermediate models of a tree too, under nodes/NAME.

    Raises:
        RunError: the models are not as the run left them.
    """
    _refuse_changed(result)
    folder = result.folder
    files: dict[str, Path | bytes] = {path.name: path for path in _model_files(result.merged)}
    if with_nodes:
        _refuse_dropped(result)
        for node in result.record["nodes"][:-1]:
            kept = _model_files(folder / "nodes" / node["name"])
            files |= {f"nodes/{node['name']}/{path.name}": path for path in kept}
    recipe = result.record["recipe"]
    settings = Recipe.from_dict(recipe).sha256
    journal = _portable_journal(folder / JOURNAL, result.record["digests"]["recipe"], settings)
    digests = result.record["digests"] | {"recipe": settings, "journal": hashlib.sha256(journal).hexdigest()}
    models = {name: file_digest(content) for name, content in files.items()}
    copied = result.record | {
        "digests": digests, "repository": repository, "licence": dict(licence), "files": models,
    }  # fmt: skip
    files[RECIPE] = other_recipe(folder / RECIPE, strict_yaml.dump(recipe))
    files[JOURNAL] = journal
    files[RESULT] = (json.dumps(copied, indent=1, ensure_ascii=False) + "\n").encode()
    for name, plot in PLOTS.items():
        if name != "tree.png" or result.has_tree:
            files[name] = folder / name if (folder / name).is_file() else plot(copied)
    files[CARD] = render_card(MergeResult(copied, folder)).encode()
    return files


def _model_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _refuse_changed(result: MergeResult) -> None:
    """Raise RunError unless the folder is a finished run, and holds what was measured."""
    again = "the same mega-hf merge command makes it again"
    if RunFolder(result.folder).finished() is None:
        raise RunError(
            "the run is not finished, or its files were changed since", where=str(result.folder),
            expected="recipe, journal and models as the run left them", got="others", remedy=again,
        )  # fmt: skip


def _refuse_dropped(result: MergeResult) -> None:
    if result.has_tree and not (result.folder / "nodes").is_dir():
        raise RunError(
            "the intermediate models were dropped", where=str(result.folder),
            expected="nodes/NAME for each", got="none",
            remedy="push without --with-nodes; or delete result.json, and merge again without --keep final",
        )  # fmt: skip


def _portable_journal(path: Path, was: str, now: str) -> bytes:
    """Return the journal with the digest of the copy's recipe in its header, in the place of the run's own."""
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return b"".join(line.replace(was.encode(), now.encode()) if b'"header"' in line else line for line in lines)


# --- What must not leave this machine

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bapi_org_[A-Za-z0-9]{20,}")
# Two parts at least, not inside a word, an address or a relative path.
_PATH = re.compile(r"(?<![\w.:/@~+%-])(/([\w.+@-]+)(?:/[\w.+@~ -]+)+)")
_OTHER_PATH = re.compile(r"(?<![\w/])(~/[\w.]+|file:///[\w.]+|[A-Z]:\\{1,2}\w\w+)")
_USUAL = """
    home Users root mnt tmp var media Volumes private scratch content kaggle workspace data work opt srv usr etc
    gpfs lustre nfs"""
_ROOTS = frozenset(_USUAL.split())


def refuse_private(files: Files, token: str | None) -> None:
    """Raise HubError, naming file and line, where a path of some machine or a token stands in a file.

    Args:
        files: what is about to be sent; of weights the header is looked at.
        token: the one that is in use, if there is one.
    """
    for name, content in files.items():
        for where, text in _texts(name, content):
            if (token and token in text) or _TOKEN.search(text):
                raise HubError(
                    "a token stands there", where=where, expected="no token in anything that is pushed", got="a token",
                    remedy="take it out where it comes from, and merge again; and revoke it: others may have seen it",
                )  # fmt: skip
            found = None if name.endswith(".png") else _path_in(text)  # compressed bytes may look like anything
            if found:
                raise HubError(
                    "a path of a machine stands there", where=where, expected="names and digests", got=found,
                    remedy="take it out where it comes from (a parent's configuration, a class name), and merge again",
                )  # fmt: skip


def _path_in(text: str) -> str | None:
    other = _OTHER_PATH.search(text)
    if other:
        return other[1]
    for match in _PATH.finditer(text):  # a class may be called /m/0abc: only what is a folder here, or often is
        if match[2] in _ROOTS or Path(f"/{match[2]}").exists():
            return match[1]
    return None


def _texts(name: str, content: Path | bytes) -> Iterator[tuple[str, str]]:
    """Yield (where, text) of all text in a file."""
    if name.endswith(".safetensors"):
        yield f"{name} (its header)", json.dumps(_header(name, content))
        return
    raw = content if isinstance(content, bytes) else content.read_bytes()
    for number, line in enumerate(raw.decode("utf-8", errors="replace").splitlines(), start=1):
        yield f"{name}:{number}", line


def _header(name: str, content: Path | bytes) -> dict[str, str]:
    """Return the free text of a safetensors file's header, once the library has checked header and length."""
    assert isinstance(content, Path), "weights are never made in memory"
    try:
        with safetensors.safe_open(content, framework="np") as opened:
            return dict(opened.metadata() or {}) | dict.fromkeys(opened.keys(), "")
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(
            "unreadable weights", where=str(content), expected="safetensors", got=error,
            remedy="the same mega-hf merge command makes them again",
        ) from None  # fmt: skip


# --- Back to a run folder


def restore(source: Path, target: Path, repository: str) -> MergeResult:
    """Make a run folder of a copy.

    Args:
        source: the copy's files.
        target: the run folder, which must not exist or be empty; it appears whole or not at all.
        repository: where the copy comes from, for errors.

    Raises:
        HubError: it is no copy of a run, or was changed since it was pushed.
    """
    record = _read_copy(source, repository)
    models = {name: f"merged/{name}" if "/" not in name else name for name in record["files"]}
    copied = {name: name for name in OURS if (source / name).is_file()}

    def fill(folder: Path) -> None:
        for name, place in {**models, **copied}.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / place)
        if RunFolder(folder).finished() is None:
            raise _changed(repository, "recipe, journal or models")

    write_folder(target, fill)
    return MergeResult.load(target)


def _read_copy(source: Path, repository: str) -> dict[str, Any]:
    """Return the record of a copy whose files are those that were pushed."""
    missing = [name for name in (RESULT, RECIPE, JOURNAL) if not (source / name).is_file()]
    if missing:
        raise HubError(
            "not a merge that mega-hf pushed", where=repository, expected=", ".join((RESULT, RECIPE, JOURNAL)),
            got=f"no {missing[0]}", remedy="a model alone is used as a parent is: mega-hf merge, evaluate, compare",
        )  # fmt: skip
    try:
        result = MergeResult.load(source)
        render_card(result)
        Recipe.from_document(strict_yaml.read(source / RECIPE), check_files=False)
        files, digests = dict(result.record["files"]), result.record["digests"]
        expected = files | {JOURNAL: digests["journal"]}
    except Exception as error:  # whatever a stranger's record makes of our own code
        got = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise HubError(
            "its record can't be read", where=f"{repository}: {RESULT}", expected="what mega-hf wrote", got=got,
            remedy="an earlier revision: ORG/NAME@COMMIT; or a newer release of mega_hf",
        ) from None  # fmt: skip
    for name, sha256 in expected.items():
        if not _is_harmless(name) or not (source / name).is_file() or file_digest(source / name) != sha256:
            raise _changed(repository, str(name)[:100])
    return result.record


def _is_harmless(name: object) -> bool:
    """Say whether a file's name is one that a push gives: NAME, or nodes/NODE/NAME."""
    parts = str(name).split("/")
    folders = len(parts) == 1 or (len(parts) == 3 and parts[0] == "nodes" and _NODE.match(parts[1]) is not None)
    return folders and _FILE.match(parts[-1]) is not None


def _changed(repository: str, what: str) -> HubError:
    return HubError(
        "changed since it was pushed", where=repository, expected="the files that its result.json tells of",
        got=f"another {what}", remedy="an earlier revision: ORG/NAME@COMMIT",
    )  # fmt: skip
