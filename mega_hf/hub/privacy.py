"""What must not leave this machine: paths and tokens, in whatever is about to be pushed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors

from mega_hf.errors import HubError, RunError

# path in the repository -> a file here, or what is to stand in it
Files = Mapping[str, Path | bytes]

_TOKEN = re.compile(r"\bhf_\w{20,}|\bapi_org_\w{20,}")
# Two parts at least, not inside a word, an address or a relative path.
_PATH = re.compile(r"(?<![\w./@~+%-])(?!(?<=:)//)(/+[\w.+@-]+(?:/+[\w.+@~ -]+)+)")
_OTHER_PATH = re.compile(r"(?<![\w/])(~\w*/[\w.]+|file:/+[\w.]+|[A-Za-z]:[\\/]\w\w+|\\\\\w+\\\w+)")
_ESCAPED = re.compile(r"\\(.)")  # in JSON
_USUAL = """
    home Users root mnt tmp var media Volumes private scratch content kaggle workspace data work opt srv usr etc
    gpfs lustre nfs"""  # noqa: E501
_ROOTS = frozenset(_USUAL.split())
_HOMES = frozenset(("home", "Users", "users"))


def check_no_private_paths(files: Files, token: str | None) -> None:
    """Raise HubError, naming file and line, where a path of some machine or a token stands in a
    file.

    Args:
        files: what is about to be sent; of weights the header is looked at.
        token: the one that is in use, if there is one.
    """
    check_no_tokens(files, token)
    for name, content in files.items():
        # those bytes may look like one
        for where, text in _texts(name, content) if not name.endswith(".png") else ():
            found = _path_in(_ESCAPED.sub(_unescaped, text) if ".json" in name else text)
            if found:
                raise HubError(
                    "a path of a machine stands there",
                    where=where,
                    expected="names and digests",
                    got=found,
                    hint=(
                        "take it out where it comes from (a parent's configuration, a class name),"
                        " and merge again"
                    ),
                )


def check_no_tokens(files: Files, token: str | None) -> None:
    """Raise HubError where a token stands in a file. Args: as `refuse_private`."""
    for name, content in files.items():
        for where, text in _texts(name, content):
            # A token of a few letters is none of the Hub's, and would be found everywhere.
            if (token and len(token) >= 8 and token in text) or _TOKEN.search(text):
                raise HubError(
                    "a token stands there",
                    where=where,
                    expected="no token in anything that is pushed",
                    got="a token",
                    hint="take it out where it comes from, and revoke it: others may have seen it",
                )


def _unescaped(found: re.Match[str]) -> str:
    return " " if found[1] in "bfnrt" else found[1]


def _path_in(text: str) -> str | None:
    other = _OTHER_PATH.search(text)
    if other:
        return other[1]
    # a class may be called /m/0abc: only what is a folder here, or often is
    for match in _PATH.finditer(text):
        first, *more = [part for part in match[1].split("/") if part]
        if (
            first in _ROOTS
            or _HOMES.intersection([first, *more[:-1]])
            or Path(f"/{first}").exists()
        ):
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
    """Return the free text of a safetensors file's header, once the library has checked header and
    length."""
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
            hint="the same mega-hf merge command makes them again",
        ) from None
