"""Check that the files of a push contain no local path and no token."""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import safetensors

from mega_hf.errors import HubError, RunError
from mega_hf.recipe.document import read
from mega_hf.recipe.paths import is_local
from mega_hf.recipe.placeholders import references
from mega_hf.recipe.schema import Recipe

# path in the repository -> a local file, or its content
Files = Mapping[str, Path | bytes]

_TOKEN = re.compile(r"\bhf_\w{20,}|\bapi_org_\w{20,}")
_ESCAPED = re.compile(r"\\(.)")  # in JSON


def local_paths(run: Path) -> set[str]:
    """Return the paths of this machine that a run knows.

    These are the home folder, the working folder, the run folder and the recipe's local paths.

    Args:
        run: the run folder.
    """
    recipe = Recipe.from_document(read(run / "recipe.yaml"), check_files=False).to_dict()
    values = [block[key[-1]] for key, block in references(recipe)]
    known = [Path.home(), Path.cwd(), run]
    known += [Path(path) for path in values if isinstance(path, str) and is_local(path)]
    return {str(path) for one in known for path in (one.absolute(), one.resolve())}


def check_no_private_paths(files: Files, paths: Iterable[str], token: str | None) -> None:
    """Raise HubError, with file and line, if a file contains a local path or a token.

    Args:
        files: the files to be sent. Of weights the header is searched.
        paths: the local paths to search for, see `local_paths`. Absolute paths with the user's name
            in them are found too.
        token: the token in use, if there is one.
    """
    check_no_tokens(files, token)
    private = _pattern(paths)
    for name, content in files.items():
        # compressed bytes may look like a path
        for where, text in _texts(name, content) if not name.endswith(".png") else ():
            plain = _ESCAPED.sub(_unescape, text) if ".json" in name else text
            if found := private.search(_with_single_slashes(plain)):
                raise HubError(
                    "this file contains a local path",
                    where=where,
                    expected="names and digests",
                    got=found[0],
                    hint=(
                        "remove it from its source (a parent's config or a class name) and merge"
                        " again"
                    ),
                )


def check_no_tokens(files: Files, token: str | None) -> None:
    """Raise HubError if a file contains a token. Args: see `check_no_private_paths`."""
    for name, content in files.items():
        for where, text in _texts(name, content):
            # Tokens of the Hub are longer than 8 letters; a shorter text would be found everywhere.
            if (token and len(token) >= 8 and token in text) or _TOKEN.search(text):
                raise HubError(
                    "this file contains a token",
                    where=where,
                    expected="no token in the files of a push",
                    got="a token",
                    hint="remove it from its source, and revoke it: others may have seen it",
                )


def _pattern(paths: Iterable[str]) -> re.Pattern[str]:
    """Return what matches these paths, and any absolute path with the user's name in it."""
    known = [re.escape(_with_single_slashes(path)) for path in paths if path != "/"]
    with suppress(Exception):  # in some containers a user has no name
        # not after a word or a colon, where it is part of an address
        known.append(rf"(?<!:)(?:/|~|[A-Za-z]:/)(?:[\w.+@-]+/)*{re.escape(getpass.getuser())}")
    return re.compile(rf"(?<![\w.])(?:{'|'.join(sorted(known, reverse=True))})(?![\w-])")


def _with_single_slashes(text: str) -> str:
    return re.sub(r"[\\/]+", "/", text)


def _unescape(found: re.Match[str]) -> str:
    return " " if found[1] in "bfnrt" else found[1]


def _texts(name: str, content: Path | bytes) -> Iterator[tuple[str, str]]:
    """Yield (where, text) for all text in a file."""
    if name.endswith(".safetensors"):
        yield f"{name} (its header)", json.dumps(_header(content))
        return
    raw = content if isinstance(content, bytes) else content.read_bytes()
    for number, line in enumerate(raw.decode("utf-8", errors="replace").splitlines(), start=1):
        yield f"{name}:{number}", line


def _header(content: Path | bytes) -> dict[str, str]:
    """Return the free text in the header of a safetensors file."""
    assert isinstance(content, Path), "weights are never made in memory"
    try:
        with safetensors.safe_open(content, framework="np") as opened:
            return dict(opened.metadata() or {}) | dict.fromkeys(opened.keys(), "")
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(
            "unreadable weights",
            where=str(content),
            expected="safetensors",
            got=error,
            hint="run the same mega-hf merge command to make them again",
        ) from None
