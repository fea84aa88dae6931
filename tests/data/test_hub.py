"""Names of data sets, the files they are made of, and what the user is told where the hub refuses."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.hf_api import RepoFile
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.data.sources import hub, remote
from picogpt.data.sources.datasets import Dataset, Pin, dataset_named, is_offline
from picogpt.data.sources.hub import Found, Hub, HubFile
from picogpt.data.sources.remote import ChangedError, MissingError
from picogpt.errors import UserError
from tests.support.hubserver import WIKI, serving, wiki_files, write_parquet
from tests.support.hubserver import Hub as Server

REPO = Dataset("a/b")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    with serving(Server(tmp_path / "hub")) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
        yield server


def put(server: Server, *paths: str, repo: str = "a/b") -> None:
    for path in paths:
        write_parquet(server.root / repo / path, 0, 1, 1)


def found(dataset: Dataset = REPO) -> Found:
    return Hub(print).find(dataset)


def names(dataset: Dataset = REPO) -> list[str]:
    return [file.path for file in found(dataset).files]


def refusal(dataset: Dataset = REPO) -> str:
    with pytest.raises(UserError) as told:
        found(dataset)
    assert str(told.value).isprintable()
    return str(told.value)


def test_the_hubs_own_client_takes_the_test_hub_for_one(server: Server, tmp_path: Path) -> None:
    wiki_files(server.root, files=3)
    server.page = 2
    api = HfApi(endpoint=server.url)
    about = api.dataset_info(WIKI)
    tree = list(api.list_repo_tree(WIKI, recursive=True, repo_type="dataset", revision=about.sha))
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    assert about.sha == server.commits(WIKI)[-1] and len(files) == 3 and len(tree) == 4
    got = hf_hub_download(
        WIKI, files[1].path, repo_type="dataset", endpoint=server.url, cache_dir=tmp_path / "cache", revision=about.sha
    )
    assert Path(got).read_bytes() == (server.root / WIKI / files[1].path).read_bytes()


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("wiki", Dataset(WIKI, "20231101.en")),
        ("wiki-simple", Dataset(WIKI, "20231101.simple")),
        ("wiki:de", Dataset(WIKI, "20231101.de")),
        ("hf:Open-Orca/OpenOrca", Dataset("Open-Orca/OpenOrca")),
        ("hf:a/b.c:de_1/x", Dataset("a/b.c", "de_1/x")),
        ("hf:a/b@v1.0", Dataset("a/b", "", "v1.0")),
        ("hf:a/b:c@refs/pr/1", Dataset("a/b", "c", "refs/pr/1")),
        ("sample", None),
        ("wiki.txt", None),
    ],
)
def test_names(name: str, dataset: Dataset | None) -> None:
    assert dataset_named(name) == dataset


@pytest.mark.parametrize("name", ["hf:", "hf:one", "hf:a/b/c", "hf:a/b:", "wiki:", "wiki:../x", "hf:a/b c", "hf:a/b@"])
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(UserError, match="write --data"):
        dataset_named(name)


def test_a_configuration_is_a_folder(server: Server) -> None:
    put(server, "en/train-0.parquet", "de/train-0.parquet", "en/notes.txt")
    assert names(Dataset("a/b", "en")) == ["en/train-0.parquet"]
    assert names(Dataset("a/b", "de")) == ["de/train-0.parquet"]
    assert names() == ["de/train-0.parquet", "en/train-0.parquet"]
    size = (server.root / "a/b/en/train-0.parquet").stat().st_size
    assert found(Dataset("a/b", "en")).files[0] == HubFile("en/train-0.parquet", size)


def test_a_configuration_may_be_the_beginning_of_a_name(server: Server) -> None:
    put(server, "1M-GPT4.parquet", "3M-GPT3.parquet")
    assert names(Dataset("a/b", "1M")) == ["1M-GPT4.parquet"]
    assert names() == ["1M-GPT4.parquet", "3M-GPT3.parquet"]


@pytest.mark.parametrize(
    ("paths", "training", "validating"),
    [
        (["train-0", "test-0", "validation-0"], ["train-0"], ["validation-0"]),
        (["data/train-0", "data/test-0"], ["data/train-0"], ["data/test-0"]),
        (["c/train/0", "c/partial-train/1", "c/valid/0"], ["c/partial-train/1", "c/train/0"], ["c/valid/0"]),
        (["a", "b", "dev"], ["a", "b"], ["dev"]),
        (["a", "b"], ["a", "b"], []),
        (["test/a-train", "latest"], ["test/a-train"], []),
        (["validation"], ["validation"], []),
    ],
)
def test_splits(server: Server, paths: list[str], training: list[str], validating: list[str]) -> None:
    put(server, *[f"{path}.parquet" for path in paths])
    files = found().files
    assert [file.path.removesuffix(".parquet") for file in files if not file.validates] == training
    assert [file.path.removesuffix(".parquet") for file in files if file.validates] == validating


def test_pages_of_a_listing_are_followed(server: Server) -> None:
    put(server, *[f"part-{i:02d}.parquet" for i in range(7)])
    server.page = 3
    assert len(names()) == 7


def test_all_requests_name_the_commit_that_was_found_first(server: Server) -> None:
    put(server, "x.parquet")
    asked = Hub(print)
    first = asked.find(REPO)
    server.version += 1
    assert asked.find(REPO, first.pin).pin == first.pin != asked.find(REPO).pin
    server.requests.clear()
    asked.open(first, first.files[0])
    assert server.requests == [f"/datasets/a/b/resolve/{first.pin.commit}/x.parquet"]


def test_a_revision_can_be_asked_for(server: Server) -> None:
    put(server, "x.parquet")
    server.version = 1
    old = server.commits("a/b")[0]
    assert found(Dataset("a/b", "", old)).pin == Pin(old)
    assert f"{server.url} has no 'v9' of a/b: look at the name" in refusal(Dataset("a/b", "", "v9"))


def test_a_data_set_without_parquet_is_read_from_the_hubs_conversion(server: Server) -> None:
    put(server, "notes.txt")
    assert "has no parquet files of a/b, nor made any: look at the name" in refusal()
    put(server, "default/train/0000.parquet", "default/test/0000.parquet", repo="a/b@convert")
    converted = found()
    assert converted.pin.is_conversion and [file.validates for file in converted.files] == [False, True]
    content = (server.root / "a/b@convert/default/train/0000.parquet").read_bytes()
    assert Hub(print).open(converted, converted.files[0]).read() == content
    assert "has no parquet files of a/b@main: look" in refusal(Dataset("a/b", "", "main"))


def test_a_renamed_data_set_is_found(server: Server) -> None:
    put(server, "x.parquet", repo="new/name")
    server.renamed["a/b"] = "new/name"
    renamed = found()
    assert Hub(print).open(renamed, renamed.files[0]).read() == (server.root / "new/name/x.parquet").read_bytes()


def test_what_is_not_there_or_private(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "has no data set a/b, or it is private: look at the name, or log in with `hf auth login`" in refusal()
    put(server, "x.parquet")
    server.private.add("a/b")
    assert "or it is private" in refusal()
    server.token = "right"
    monkeypatch.setenv("HF_TOKEN", "right")
    assert names() == ["x.parquet"]


def test_a_gated_data_set_says_where_to_ask(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    put(server, "x.parquet")
    server.gated.add("a/b")
    listed = found()
    with pytest.raises(UserError) as told:
        Hub(print).open(listed, listed.files[0])
    assert "(Access to dataset a/b is restricted.)" in str(told.value)
    assert f"ask for access at {server.url}/datasets/a/b, and log in" in str(told.value)
    server.token = "right"
    monkeypatch.setenv("HF_TOKEN", "right")
    assert Hub(print).open(listed, listed.files[0]).read(4) == b"PAR1"


def test_a_token_that_is_not_valid_any_more_is_said_to_be_that(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    put(server, "x.parquet")
    monkeypatch.setenv("HF_TOKEN", "stale")
    assert "does not accept your token (Invalid credentials in Authorization header)" in refusal()


def test_a_token_is_found_where_the_hubs_client_keeps_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server, "x.parquet")
    server.private.add("a/b")
    server.token = "kept"
    (tmp_path / "token").write_text("kept\n", encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    listed = found()
    server.headers.clear()
    assert Hub(print).open(listed, listed.files[0]).read(4) == b"PAR1"
    sent = ["authorization" in map(str.lower, headers) for headers in server.headers]
    assert sent[0] and not any(sent[1:])  # to the hub, and never to the store


def test_a_rate_limit_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    put(server, "x.parquet")
    said: list[str] = []
    server.refusals = [429, 503, 0, 502]  # the last is for the listing
    assert Hub(said.append).find(REPO).files
    assert said[0].endswith("answers 429; trying again in 1 s") and "answers 503; trying again" in said[1]
    assert len(said) == 3 and "answers 502; trying again" in said[2]


def test_open_reads_the_file(server: Server) -> None:
    put(server, "c d.parquet")
    content = (server.root / "a/b/c d.parquet").read_bytes()
    listed = found()
    assert Hub(print).open(listed, listed.files[0]).read() == content
    with pytest.raises(MissingError):
        Hub(print).open(listed, HubFile("none.parquet", 5))


def test_the_stores_own_names_for_a_file_may_differ(server: Server) -> None:
    put(server, "x.parquet")
    content = (server.root / "a/b/x.parquet").read_bytes()
    listed = found()
    file = Hub(print).open(listed, listed.files[0])
    assert b"".join(file.fetch(i, i + 100) for i in range(0, 1000, 100)) == content[:1000]


def test_another_version_of_a_file_is_noticed(server: Server) -> None:
    put(server, "x.parquet")
    listed = found()
    file = Hub(print).open(listed, listed.files[0])
    write_parquet(server.root / "a/b/x.parquet", 5, 1, 1)
    server.expire()
    with pytest.raises(ChangedError, match="another version"):
        file.fetch(0, 10)


@pytest.mark.parametrize("endpoint", ["huggingface.example", "http://[bad", "ftp://huggingface.example", "https://"])
def test_an_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(UserError, match=rf"HF_ENDPOINT is '{re.escape(endpoint.rstrip('/'))}': set it"):
        Hub(print)


@pytest.mark.parametrize("proxy", ["teapot://127.0.0.1:9", "http://host:port", "socks5://127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_is_an_error(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(UserError, match="the proxy that the environment names cannot be used"):
        Hub(print)


# Answers that are made to do harm


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b"null", b'{"id": 5, "sha": "zz"}', b'{"id": "a/b", "sha": null}', b"\xff" * 99]
)
def test_what_is_no_hub_is_told(server: Server, body: bytes) -> None:
    server.answers["/api/datasets/a/b"] = 200, body, {}
    assert "look at HF_ENDPOINT" in refusal()


@pytest.mark.parametrize("body", [b"", b"5", b"[5]", b'[{"type": "file"}]', b'{"a": 1}'])
def test_a_listing_that_is_none_is_told(server: Server, body: bytes) -> None:
    put(server, "x.parquet")
    server.answers[f"/api/datasets/a/b/tree/{server.commits('a/b')[0]}"] = 200, body, {}
    assert "look at HF_ENDPOINT" in refusal() or "has no parquet files" in refusal()


def test_a_listing_without_end_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    put(server, "x.parquet")
    monkeypatch.setattr(hub, "_MOST_FILES", 20)
    tree = f"/api/datasets/a/b/tree/{server.commits('a/b')[0]}"
    body = b'[{"type": "file", "path": "x.parquet", "size": 5, "oid": "0"}]'
    server.answers[tree] = 200, body, {"Link": f'<{server.url}{tree}>; rel="next"'}
    assert set(names()) == {"x.parquet"} and server.requests.count(tree) == 20


def entry(path: Any, size: Any) -> RepoFile:
    return RepoFile(path=path, size=size, oid="0")


@pytest.mark.parametrize(
    ("path", "size"),
    [
        *[(path, 5) for path in ("../x.parquet", "/x.parquet", "a//x.parquet", "a/../x.parquet", "")],
        *[(path, 5) for path in ("a\nx.parquet", "\ud800.parquet", "a" * 2000 + ".parquet", 5, None, [])],
        *[("x.parquet", size) for size in (-5, 0, True, 1.5, "5", None, 10**400)],
    ],
)
def test_entries_that_are_no_files_are_left_out(path: Any, size: Any) -> None:
    assert hub._sound([entry(path, size), object(), entry("x.parquet", 5)]) == [HubFile("x.parquet", 5)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("atrinevlds/_-.", max_size=12)), st.text("ab/", max_size=3))
def test_any_names_give_files_or_none(paths: list[str], config: str) -> None:
    files = hub._of_config([HubFile(f"{path}.parquet", 1) for path in paths], config)
    assert all(file.path.endswith(".parquet") for file in files)
    assert len({file.path for file in files}) == len(files) or len(set(paths)) < len(paths)
    assert not files or any(not file.validates for file in files)


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("TRUE", True), ("", False), ("0", False)])
def test_offline(monkeypatch: pytest.MonkeyPatch, value: str, offline: bool) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert is_offline() == offline
