"""The test Hub answers the real client as the real Hub does."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_session

from tests.hub_server.server import Hub, serve

# The client's own way of sending large files makes its HTTP library complain.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CARD = b"---\nlicense: mit\nbase_model: [u/a, u/b]\nbase_model_relation: merge\n---\n# A model\n"
LARGE = bytes(range(256)) * 20


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as hub:
        hub.add_user("me", token="hf_me", orgs=("team",))
        hub.add_user("you", token="hf_you")
        hub.add_user("reader", token="hf_reader", orgs=("team",), role="read", access=("me/gated",))
        yield hub


@pytest.fixture
def me(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_me")


@pytest.fixture
def you(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_you")


def add(api: HfApi, name: str, files: dict[str, bytes], **arguments: Any) -> Any:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(name, operations, commit_message="Add", **arguments)


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_a_repository_from_its_creation_to_its_end(hub: Hub, me: HfApi) -> None:
    assert me.whoami()["name"] == "me"
    url = me.create_repo("model", private=True)
    assert (url.repo_id, str(url)) == ("me/model", f"{hub.url}/me/model")
    assert me.create_repo("me/model", exist_ok=True) == url
    with pytest.raises(HfHubHTTPError) as taken:
        me.create_repo("me/model")
    assert status(taken) == 409
    data = me.create_repo("team/data", repo_type="dataset")
    assert (data.repo_id, data.repo_type) == ("team/data", "dataset")
    repository = hub.repositories["models", "me/model"]
    assert repository.private
    assert [one.title for one in repository.commits.values()] == ["initial commit"]
    assert b"*.safetensors filter=lfs" in repository.files()[".gitattributes"]
    me.update_repo_settings("me/model", private=False, gated="manual")
    assert (repository.private, repository.gated) == (False, "manual")
    assert me.repo_exists("team/data", repo_type="dataset")
    assert [one.id for one in me.list_models(author="me")] == ["me/model"]
    me.delete_repo("team/data", repo_type="dataset")
    assert not me.repo_exists("team/data", repo_type="dataset")
    me.delete_repo("team/data", repo_type="dataset", missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        me.delete_repo("team/data", repo_type="dataset")


def test_who_may_create(hub: Hub) -> None:
    for token, name, expected in [
        ("hf_you", "me/x", 403),
        ("hf_reader", "reader/x", 403),
        (False, "me/x", 401),
    ]:
        with pytest.raises(HfHubHTTPError) as refused:
            HfApi(endpoint=hub.url, token=token).create_repo(name)
        assert status(refused) == expected, (token, name)
    assert not hub.repositories


def test_a_folder_is_uploaded_once(hub: Hub, me: HfApi, tmp_path: Path) -> None:
    files = {
        "README.md": CARD,
        "model.safetensors": LARGE,
        "deep/er/a.json": b"{}",
        "deep/none.bin": b"",
    }
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    me.create_repo("me/x")
    first = me.upload_folder(repo_id="me/x", folder_path=tmp_path)
    repository = hub.repositories["models", "me/x"]
    assert repository.head == first.oid
    assert {k: v for k, v in repository.files().items() if k != ".gitattributes"} == files
    assert LARGE in hub.bodies
    assert not any(b"hf_me" in body for body in hub.bodies)
    assert (
        repository.commits[first.oid].files["model.safetensors"].sha256
        == hashlib.sha256(LARGE).hexdigest()
    )
    asked = len(hub.requests)
    assert me.upload_folder(repo_id="me/x", folder_path=tmp_path).oid == first.oid
    assert not any(
        request.startswith("PUT") or "/commit/" in request for request in hub.requests[asked:]
    )
    info = me.model_info("me/x", files_metadata=True)
    assert info.card_data.base_model == ["u/a", "u/b"]
    assert "base_model:merge:u/a" in info.tags
    sizes = {one.rfilename: (one.size, one.lfs is not None) for one in info.siblings}
    assert sizes["model.safetensors"] == (len(LARGE), True)
    assert sizes["deep/none.bin"] == (0, False)
    (tmp_path / "deep" / "er" / "a.json").unlink()
    second = me.upload_folder(repo_id="me/x", folder_path=tmp_path, delete_patterns="deep/*")
    assert second.oid != first.oid
    assert "deep/er/a.json" not in repository.files()
    assert repository.files(first.oid)["deep/er/a.json"] == b"{}"


def test_commits_that_are_refused(hub: Hub, me: HfApi, you: HfApi) -> None:
    me.create_repo("me/x")
    first = hub.repositories["models", "me/x"].head
    add(me, "me/x", {"a": b"1"}, parent_commit=first)
    head = hub.repositories["models", "me/x"].head
    with pytest.raises(HfHubHTTPError) as stale:
        add(me, "me/x", {"a": b"2"}, parent_commit=first)
    assert status(stale) == 412
    with pytest.raises(HfHubHTTPError) as foreign:
        add(you, "me/x", {"a": b"2"})
    assert status(foreign) == 403
    with pytest.raises(RepositoryNotFoundError):
        add(HfApi(endpoint=hub.url, token=False), "me/x", {"a": b"2"})
    with pytest.raises(RemoteEntryNotFoundError, match="A file with this name doesn't exist"):
        me.create_commit("me/x", [CommitOperationDelete("b")], commit_message="Remove")
    with pytest.raises(HfHubHTTPError) as clash:
        add(me, "me/x", {"a/b": b"3"})
    assert status(clash) == 400
    with pytest.raises(RevisionNotFoundError):
        add(me, "me/x", {"a": b"2"}, revision="nowhere")
    assert hub.repositories["models", "me/x"].head == head
    assert (
        post(me, "commit/main", {"path": "m.bin", "algo": "sha256", "oid": "0" * 64, "size": 1})
        == 400
    )
    assert hub.repositories["models", "me/x"].head == head


def test_what_is_ignored_and_what_is_not_asked_for(hub: Hub, me: HfApi, tmp_path: Path) -> None:
    me.create_repo("me/x")
    for name in ("a.json", "a.log", "kept.log"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".gitignore").write_text("# not these\n*.log\n!kept.log\n")
    me.upload_folder(repo_id="me/x", folder_path=tmp_path)
    assert set(hub.repositories["models", "me/x"].files()) == {
        ".gitattributes",
        ".gitignore",
        "a.json",
        "kept.log",
    }
    unsigned = get_session().put(f"{hub.url}/lfs/models/me/x/{'0' * 64}", content=b"1")
    assert unsigned.status_code == 403
    assert get_session().get(f"{hub.url}/api/spaces").status_code == 404
    for name in ("nothing", "me/nothing"):
        with pytest.raises(RepositoryNotFoundError):
            me.model_info(name)


def test_what_a_client_began_to_say_is_not_done() -> None:
    """A commit that ends in the middle, at the end of a line, because its client was killed."""
    lines = [
        {"key": "header", "value": {"summary": "by hand"}},
        {"key": "file", "value": {"path": "a", "content": ""}},
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    head = (
        "POST /api/models/me/x/commit/main HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer hf_me\r\n"
    )
    with serve() as hub:
        hub.add_user("me", token="hf_me")
        HfApi(endpoint=hub.url, token="hf_me").create_repo("me/x")
        address = ("127.0.0.1", int(hub.url.rpartition(":")[2]))
        for size, commits in [(len(content) + 1, 1), (len(content), 2)]:
            with socket.create_connection(address) as client:
                client.sendall(f"{head}Content-Length: {size}\r\n\r\n{content}".encode())
                client.shutdown(socket.SHUT_WR)
                while client.recv(4096):
                    continue
            assert len(hub.repositories["models", "me/x"].commits) == commits


def post(api: HfApi, place: str, value: dict[str, Any], key: str = "lfsFile") -> int:
    """Send a commit of one operation by hand and return the answer's status."""
    lines = [{"key": "header", "value": {"summary": "by hand"}}, {"key": key, "value": value}]
    content = "\n".join(map(json.dumps, lines)).encode()
    headers = {"authorization": f"Bearer {api.token}", "content-type": "application/x-ndjson"}
    return (
        get_session()
        .post(f"{api.endpoint}/api/models/me/x/{place}", content=content, headers=headers)
        .status_code
    )


def test_a_pull_request(hub: Hub, me: HfApi, you: HfApi) -> None:
    me.create_repo("me/x")
    made = add(you, "me/x", {"new.bin": LARGE}, create_pr=True)
    assert made.pr_url == f"{hub.url}/me/x/discussions/1"
    repository = hub.repositories["models", "me/x"]
    (pull,) = repository.pulls
    assert (pull.number, pull.title, pull.author, pull.status, pull.head) == (
        1,
        "Add",
        "you",
        "open",
        made.oid,
    )
    later = add(you, "me/x", {"b": b"2"}, revision="refs/pr/1")
    assert "new.bin" not in repository.files()
    assert repository.files("refs/pr/1")["b"] == b"2"
    (listed,) = me.get_repo_discussions(
        "me/x", discussion_type="pull_request", discussion_status="open"
    )
    assert (listed.num, listed.author, listed.git_reference) == (1, "you", "refs/pr/1")
    assert [
        one.target_commit
        for one in me.list_repo_refs("me/x", include_pull_requests=True).pull_requests
    ] == [later.oid]
    with pytest.raises(HfHubHTTPError) as foreign:
        you.merge_pull_request("me/x", 1)
    assert status(foreign) == 403
    add(me, "me/x", {"c": b"3"})
    me.merge_pull_request("me/x", 1)
    assert {"new.bin", "b", "c"} < set(repository.files())
    details = me.get_discussion_details("me/x", 1)
    assert (details.status, details.merge_commit_oid) == ("merged", repository.head)
    assert [event.type for event in details.events] == [
        "comment",
        "commit",
        "commit",
        "status-change",
    ]


def test_a_pull_request_by_hand(hub: Hub, me: HfApi) -> None:
    me.create_repo("me/x")
    draft = me.create_pull_request("me/x", title="Try", description="What for")
    assert (draft.status, draft.git_reference) == ("draft", "refs/pr/1")
    add(me, "me/x", {"a": b"theirs"}, revision="refs/pr/1")
    add(me, "me/x", {"a": b"ours"})
    me.change_discussion_status("me/x", 1, "open")
    assert me.get_discussion_details("me/x", 1).conflicting_files == ["a"]
    with pytest.raises(HfHubHTTPError) as clash:
        me.merge_pull_request("me/x", 1)
    assert status(clash) == 409
    me.comment_discussion("me/x", 1, comment="never mind")
    me.change_discussion_status("me/x", 1, "closed")
    assert hub.repositories["models", "me/x"].pulls[0].status == "closed"
    assert not list(me.get_repo_discussions("me/x", discussion_status="open"))
    assert hub.repositories["models", "me/x"].files()["a"] == b"ours"


def test_branches_and_tags(hub: Hub, me: HfApi) -> None:
    me.create_repo("me/x")
    first = hub.repositories["models", "me/x"].head
    me.create_branch("me/x", branch="try/1")
    me.create_branch("me/x", branch="try/1", exist_ok=True)
    made = add(me, "me/x", {"a": b"1"}, revision="try/1")
    me.create_tag("me/x", tag="v1", revision="try/1")
    with pytest.raises(HfHubHTTPError) as taken:
        me.create_tag("me/x", tag="v1")
    assert status(taken) == 409
    refs = me.list_repo_refs("me/x")
    assert {one.name: one.target_commit for one in refs.branches} == {
        "main": first,
        "try/1": made.oid,
    }
    assert {one.name: one.target_commit for one in refs.tags} == {"v1": made.oid}
    for revision in ("try/1", "v1", made.oid, made.oid[:8]):
        assert me.model_info("me/x", revision=revision).sha == made.oid
    assert [one.commit_id for one in me.list_repo_commits("me/x", revision="v1")] == [
        made.oid,
        first,
    ]
    assert me.resolve_revision("me/x", revision="v1").resolved == made.oid
    me.delete_branch("me/x", branch="try/1")
    me.delete_tag("me/x", tag="v1")
    with pytest.raises(RevisionNotFoundError):
        me.model_info("me/x", revision="v1")


def test_listings(hub: Hub, me: HfApi) -> None:
    me.create_repo("me/x")
    made = add(me, "me/x", {f"deep/{i:02}.bin": b"%d" % i for i in range(7)} | {"README.md": CARD})
    hub.door.page_size = 3
    entries = list(me.list_repo_tree("me/x", recursive=True, expand=True))
    assert [one.path for one in entries] == sorted(
        [".gitattributes", "README.md", "deep", *_seven()]
    )
    assert {one.last_commit.oid for one in entries if one.path != ".gitattributes"} == {made.oid}
    assert len([request for request in hub.requests if "/tree/main" in request]) == 4
    assert [one.path for one in me.list_repo_tree("me/x", "deep")] == _seven()
    with pytest.raises(RemoteEntryNotFoundError):
        list(me.list_repo_tree("me/x", "nowhere"))
    deep, file = me.get_paths_info("me/x", ["deep", "deep/01.bin", "nowhere"])
    assert not isinstance(deep, RepoFile)
    assert isinstance(file, RepoFile) and file.lfs.sha256 == hashlib.sha256(b"1").hexdigest()


def _seven() -> list[str]:
    return [f"deep/{i:02}.bin" for i in range(7)]


def test_downloads(hub: Hub, me: HfApi, tmp_path: Path) -> None:
    me.create_repo("me/x")
    made = add(me, "me/x", {"m.bin": LARGE, "deep/a.json": b"{}"})
    folder = Path(me.snapshot_download("me/x", cache_dir=tmp_path))
    assert folder.name == made.oid
    assert (folder / "m.bin").read_bytes() == LARGE
    assert (folder / "m.bin").resolve().name == hashlib.sha256(LARGE).hexdigest()
    assert (folder / "deep" / "a.json").read_bytes() == b"{}"
    with pytest.raises(RemoteEntryNotFoundError):
        me.hf_hub_download("me/x", "nothing.json", cache_dir=tmp_path)
    assert list(tmp_path.rglob(f".no_exist/{made.oid}/nothing.json"))
    url = f"{hub.url}/me/x/resolve/main/m.bin"
    for asked, first, last in [
        ("5-9", 5, 9),
        ("5000-", 5000, len(LARGE) - 1),
        ("-3", len(LARGE) - 3, len(LARGE) - 1),
    ]:
        answer = get_session().get(url, headers={"Range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, LARGE[first : last + 1])
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(LARGE)}"
    assert get_session().get(url, headers={"Range": f"bytes={len(LARGE)}-"}).status_code == 416
