"""Names of data sets, and the files they are made of."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.data.sources import hub
from picogpt.data.sources.hub import Dataset, Hub, HubFile, dataset_named, is_offline
from picogpt.errors import UserError
from tests.support.hubserver import WIKI, serving, write_parquet
from tests.support.hubserver import Hub as Server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(Server(tmp_path)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
        yield server


def names(dataset: Dataset) -> list[str]:
    return [file.path for file in Hub(print).files(dataset)]


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("wiki", Dataset(WIKI, "20231101.en")),
        ("wiki-simple", Dataset(WIKI, "20231101.simple")),
        ("wiki:de", Dataset(WIKI, "20231101.de")),
        ("hf:Open-Orca/OpenOrca", Dataset("Open-Orca/OpenOrca")),
        ("hf:a/b.c:de_1/x", Dataset("a/b.c", "de_1/x")),
        ("sample", None),
        ("wiki.txt", None),
    ],
)
def test_names(name: str, dataset: Dataset | None) -> None:
    assert dataset_named(name) == dataset


@pytest.mark.parametrize("name", ["hf:", "hf:one", "hf:a/b/c", "hf:a/b:", "wiki:", "wiki:../x", "hf:a/b c"])
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(UserError, match="write --data"):
        dataset_named(name)


def test_a_configuration_is_a_folder(server: Server, tmp_path: Path) -> None:
    for path in ("en/train-0.parquet", "en/test-0.parquet", "de/train-0.parquet", "en/notes.txt"):
        write_parquet(tmp_path / "a/b" / path, 0, 1, 1)
    assert names(Dataset("a/b", "en")) == ["en/train-0.parquet"]
    assert names(Dataset("a/b", "de")) == ["de/train-0.parquet"]
    assert names(Dataset("a/b")) == ["de/train-0.parquet", "en/train-0.parquet"]
    assert Hub(print).files(Dataset("a/b", "en"))[0].size == (tmp_path / "a/b/en/train-0.parquet").stat().st_size


def test_a_configuration_may_be_the_beginning_of_a_name(server: Server, tmp_path: Path) -> None:
    for path in ("1M-GPT4.parquet", "3M-GPT3.parquet"):
        write_parquet(tmp_path / "a/b" / path, 0, 1, 1)
    assert names(Dataset("a/b", "1M")) == ["1M-GPT4.parquet"]
    assert names(Dataset("a/b")) == ["1M-GPT4.parquet", "3M-GPT3.parquet"]


def test_a_hub_without_listings(server: Server) -> None:
    server.listing = False
    assert len(names(Dataset(WIKI, "20231101.en"))) == 41
    assert names(Dataset(WIKI, "20231101.simple")) == ["20231101.simple/train-00000-of-00001.parquet"]
    assert names(Dataset(WIKI, "20231101.als")) == ["20231101.als/train-00000-of-00001.parquet"]
    with pytest.raises(UserError, match=r"has no parquet files of a/b \(c\)"):
        names(Dataset("a/b", "c"))


def test_a_hub_that_keeps_its_listings_to_itself(server: Server) -> None:
    server.listing = False
    server.unlisted = 401  # what the real one answers for data sets that do not exist
    assert len(names(Dataset(WIKI, "20231101.en"))) == 41
    with pytest.raises(UserError, match=r"not there or not public \(401\)"):
        names(Dataset("a/b"))


def test_open_reads_the_file(server: Server, tmp_path: Path) -> None:
    write_parquet(tmp_path / "a/b/c d.parquet", 0, 1, 1)
    content = (tmp_path / "a/b/c d.parquet").read_bytes()
    assert Hub(print).open(Dataset("a/b"), HubFile("c d.parquet", 0)).read() == content


@pytest.mark.parametrize("endpoint", ["huggingface.example", "http://[bad", "ftp://huggingface.example", "https://"])
def test_an_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(UserError, match=rf"HF_ENDPOINT is '{re.escape(endpoint.rstrip('/'))}': set it"):
        Hub(print)


# Listings that are made to do harm

TREE = "/api/datasets/a/b/tree/main"
GOOD = {"type": "file", "path": "x.parquet", "size": 5}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    "entry",
    [
        *[{**GOOD, "path": path} for path in ("../x.parquet", "/x.parquet", "a//x.parquet", "a/../x.parquet", "")],
        *[{**GOOD, "path": path} for path in ("a\nx.parquet", "\ud800.parquet", "a" * 2000 + ".parquet", 5, None, [])],
        *[{**GOOD, "size": size} for size in (-5, 0, True, 1.5, "5", None, 10**400)],
        {**GOOD, "type": "directory"},
        *[{}, [], "x", 5, None],
    ],
)
def test_entries_that_are_no_files_are_left_out(server: Server, entry: object) -> None:
    server.answers[TREE] = 200, json.dumps([entry, GOOD]).encode(), {}
    assert Hub(print).files(Dataset("a/b")) == [HubFile("x.parquet", 5)]


@settings(max_examples=100, deadline=None)
@given(entries=JSON | st.lists(st.fixed_dictionaries({"type": JSON | st.just("file"), "path": JSON, "size": JSON})))
def test_any_listing_gives_files_or_none(entries: object) -> None:
    for file in hub._files(json.dumps(entries).encode()):
        assert type(file.path) is str and type(file.size) is int and file.size > 0


def test_pages_are_followed_on_the_hub_alone(server: Server) -> None:
    link = '<{}>; rel="next"'
    server.answers[TREE] = 200, json.dumps([GOOD]).encode(), {"Link": link.format(server.url + "/more")}
    server.answers["/more"] = 200, json.dumps([{**GOOD, "path": "y.parquet"}]).encode(), {}
    assert names(Dataset("a/b")) == ["x.parquet", "y.parquet"]
    for target in ("http://else.where/more", "https://127.0.0.1/", "file:///etc/passwd", "http://[bad"):
        server.answers[TREE] = 200, json.dumps([GOOD]).encode(), {"Link": link.format(target)}
        with pytest.raises(UserError, match=r"continues at .*, another place: look at HF_ENDPOINT"):
            names(Dataset("a/b"))


def test_pages_without_end(server: Server) -> None:
    server.answers[TREE] = 200, json.dumps([GOOD]).encode(), {"Link": f'<{server.url}{TREE}>; rel="next"'}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "_PAGES", 20)
        with pytest.raises(UserError, match="lists a/b without end: name a configuration"):
            names(Dataset("a/b"))
    assert sum(path == TREE for path in server.requests) == 20


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="latin-1")) | st.from_regex(r'<[a-z:/.\[\]]{0,20}>; rel="next"'))
def test_any_link_is_on_the_hub_or_refused(link: str) -> None:
    try:
        target = hub._next_page("http://hub/first", link)
    except UserError as told:
        assert str(told).isprintable()
    else:
        assert target == "" or target.startswith("http://hub")


def test_a_link_takes_no_longer_for_being_strange() -> None:
    assert hub._next_page("http://hub/first", "<" * 1_000_000) == ""


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("TRUE", True), ("", False), ("0", False)])
def test_offline(monkeypatch: pytest.MonkeyPatch, value: str, offline: bool) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert is_offline() == offline
