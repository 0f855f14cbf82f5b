"""The faults of the test Hub, and its restart from a folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session, httpx

from tests.hub_server.server import Hub, serve
from tests.hub_server.store import Repository

# The client's own way of sending large files makes its HTTP library complain.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

LARGE = bytes(range(256)) * 400
SHA256 = hashlib.sha256(LARGE).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as hub:
        hub.add_user("me", token="hf_me")
        yield hub


@pytest.fixture
def me(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """A client that retries without waiting."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    api = HfApi(endpoint=hub.url, token="hf_me")
    api.create_repo("me/x")
    return api


def push(api: HfApi, content: bytes = LARGE, path: str = "m.bin") -> str:
    return api.create_commit("me/x", [CommitOperationAdd(path, content)], commit_message="Add").oid


def repository(hub: Hub) -> Repository:
    return hub.repositories["models", "me/x"]


def count(hub: Hub, start: str) -> int:
    return len([request for request in hub.requests if request.startswith(start)])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_error_that_passes(hub: Hub, me: HfApi, status: int) -> None:
    hub.misbehave("status", "preupload", times=2, status=status, retry_after=0)
    push(me)
    assert count(hub, "POST /api/models/me/x/preupload") == 3
    hub.misbehave("status", "whoami", times=None, status=status, retry_after=7)
    for _ in range(2):
        with pytest.raises(HfHubHTTPError) as refused:
            me.whoami()
        assert refused.value.response.status_code == status
        assert refused.value.response.headers["Retry-After"] == "7"
    hub.behave()
    assert me.whoami()["name"] == "me"


def test_an_upload_that_is_cut(hub: Hub, me: HfApi) -> None:
    hub.misbehave("cut", "^PUT", after=1000)
    push(me)
    assert count(hub, "PUT") == 2
    assert len([body for body in hub.bodies if body == LARGE[:1000]]) == 1
    assert repository(hub).files()["m.bin"] == LARGE


def test_a_connection_that_is_cut_at_once(hub: Hub, me: HfApi) -> None:
    hub.misbehave("cut", "GET /api/models/me/x")
    with pytest.raises(httpx.TransportError):
        me.model_info("me/x")
    assert me.model_info("me/x").sha == repository(hub).head


def test_a_download_that_is_cut_is_taken_up_again(hub: Hub, me: HfApi, tmp_path: Path) -> None:
    push(me)
    hub.misbehave("cut", r"^GET .*/resolve/", times=2, after=30_000)
    file = me.hf_hub_download("me/x", "m.bin", cache_dir=tmp_path)
    assert Path(file).read_bytes() == LARGE
    assert count(hub, "GET /me/x/resolve/") == 3
    hub.misbehave("cut", r"^GET .*/resolve/", after=30_000)
    with (
        pytest.raises(httpx.RemoteProtocolError),
        get_session().stream("GET", f"{hub.url}/me/x/resolve/main/m.bin") as r,
    ):
        assert r.status_code == 200
        r.read()


def test_a_commit_that_is_lost(hub: Hub, me: HfApi) -> None:
    head = repository(hub).head
    hub.misbehave("lose_commit")
    with pytest.raises(HfHubHTTPError) as refused:
        push(me)
    assert refused.value.response.status_code == 500
    assert repository(hub).head == head
    made = push(me)
    assert count(hub, "PUT") == 1, "what was uploaded stayed"
    assert repository(hub).head == made


def test_an_answer_that_is_lost(hub: Hub, me: HfApi) -> None:
    head = repository(hub).head
    hub.misbehave("lose_answer")
    with pytest.raises(httpx.RemoteProtocolError):
        push(me)
    assert repository(hub).head != head
    assert push(me) == repository(hub).head
    assert len(repository(hub).commits) == 2


def test_an_upload_that_arrives_damaged(hub: Hub, me: HfApi) -> None:
    head = repository(hub).head
    hub.misbehave("corrupt")
    with pytest.raises(RuntimeError, match=r"Error while uploading 'm\.bin'") as refused:
        push(me)
    assert isinstance(refused.value.__cause__, HfHubHTTPError)
    assert refused.value.__cause__.response.status_code == 422
    assert repository(hub).head == head
    assert repository(hub).files(push(me))["m.bin"] == LARGE


def test_damage_that_nobody_tells(hub: Hub, me: HfApi) -> None:
    hub.misbehave("corrupt", silent=True)
    push(me)
    (listed,) = me.get_paths_info("me/x", "m.bin")
    arrived = repository(hub).files()["m.bin"]
    assert listed.lfs.sha256 == hashlib.sha256(arrived).hexdigest() != SHA256
    assert len(arrived) == listed.size == len(LARGE)
    push(me)
    assert repository(hub).files()["m.bin"] == LARGE


def test_damage_to_regular_files_and_downloads(hub: Hub, me: HfApi, tmp_path: Path) -> None:
    hub.misbehave("corrupt", "/commit/", file="a.txt")
    operations = [CommitOperationAdd("a.txt", b"text"), CommitOperationAdd("b.txt", b"text")]
    me.create_commit("me/x", operations, commit_message="Add")
    files = repository(hub).files()
    assert files["a.txt"] != files["b.txt"] == b"text"
    hub.misbehave("corrupt", "GET .*/resolve/main/b.txt")
    file = me.hf_hub_download("me/x", "b.txt", cache_dir=tmp_path)
    assert Path(file).read_bytes() not in (b"text", b"")


def test_an_answer_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as hub:
        hub.misbehave("stall", skip=1)
        assert get_session().get(f"{hub.url}/api/models").status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            get_session().get(f"{hub.url}/api/models", timeout=0.05)
        hub.misbehave("stall", seconds=0.05)
        assert get_session().get(f"{hub.url}/api/models").status_code == 200
        hub.misbehave("stall")
        with pytest.raises(httpx.ReadTimeout):
            get_session().get(f"{hub.url}/api/models", timeout=0.05)
        began = time.monotonic()
    assert time.monotonic() - began < 2


def test_a_fault_must_be_known(hub: Hub) -> None:
    for kind, options in {"vanish": {}, "cut": {"seconds": 1}}.items():
        with pytest.raises(AssertionError):
            hub.misbehave(kind, **options)


def test_a_mistake_of_the_server_is_told() -> None:
    with pytest.raises(AssertionError, match="ValueError"), serve() as hub:
        hub.add_user("me", token="hf_me")
        HfApi(endpoint=hub.url, token="hf_me").create_repo("me/x")
        assert get_session().get(f"{hub.url}/api/models/me/x/commits/main?p=one").status_code == 500


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(tmp_path) as hub:
        hub.add_user("me", token="hf_me")
        api = HfApi(endpoint=hub.url, token="hf_me")
        api.create_repo("me/x", private=True)
        first = push(api)
        api.create_commit(
            "me/x", [CommitOperationAdd("b", b"2")], commit_message="Propose", create_pr=True
        )
        api.create_tag("me/x", tag="v1")
        before = repository(hub)
    with serve(tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token="hf_me")
        after = repository(hub)
        assert {k: v for k, v in vars(after).items() if k != "objects"} == {
            k: v for k, v in vars(before).items() if k != "objects"
        }
        assert after.files("v1")["m.bin"] == LARGE
        assert push(api) == first, "all is there already"
        api.merge_pull_request("me/x", 1)
        assert after.files()["b"] == b"2"
