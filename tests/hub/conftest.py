"""A Hub, and a process that runs commands against it: pushes need no model in memory, but seconds
of imports."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator

import pytest

from mega_hf import MergeResult
from tests.hub.checks import READER, TOKEN
from tests.hub_server.server import Hub, serve
from tests.tools.commands import Commands, commands


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    with serve() as hub:
        hub.add_user("me", token=TOKEN, orgs=("team",))
        hub.add_user("reader", token=READER, role="read")
        yield hub


@pytest.fixture(scope="session")
def process(
    hub: Hub, finished: MergeResult, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Commands]:
    folder = tmp_path_factory.mktemp("push")
    shutil.copytree(finished.folder, folder / "run")
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "home"),
        "MEGA_HF_HUB_TIMEOUT": "0.5",
    }
    with commands(folder, settings) as run:
        yield run


@pytest.fixture
def run(process: Commands, hub: Hub) -> Iterator[Commands]:
    """Commands of someone who is logged in, on a Hub that behaves."""
    hub.behave()
    process.set(HF_TOKEN=TOKEN)
    yield process
    hub.behave()
    assert TOKEN not in process.said and READER not in process.said


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository's name of this test's own."""
    return "me/" + hashlib.sha1(request.node.name.encode()).hexdigest()[:12]
