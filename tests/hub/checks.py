"""What tests of pushes look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.hub_server.server import Hub
from tests.tools.commands import Answer, Commands

TOKEN, READER = "hf_" + "Writer" * 6, "hf_" + "Reader" * 6
MIT = ("--license", "mit")


def folder(run: Commands) -> Path:
    return run.folder / "run"


def content(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def commits(hub: Hub, name: str) -> int:
    """How many commits a repository has beside the Hub's own first one; 0 if there is none."""
    repository = hub.repositories.get(("models", name))
    return len(repository.commits) - 1 if repository else 0


def refused(answer: Answer, *words: str) -> None:
    assert answer.code == 2, answer.out + answer.err
    missing = [word for word in (*words, "expected:", "got:", "hint:") if word not in answer.err]
    assert not missing, f"{missing} not in:\n{answer.err}"


def front_of(hub: Hub, name: str, revision: str = "main") -> dict[str, Any]:
    return yaml.safe_load(
        hub.repositories["models", name].files(revision)["README.md"].decode().split("---\n")[1]
    )
