"""Names of data sets, and the files they are made of."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hubserver import WIKI, serving, write_parquet
from hubserver import Hub as Server

from picogpt.config import UserError
from picogpt.data.hub import Dataset, Hub, HubFile, dataset_named, is_offline


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


def test_an_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.example")
    with pytest.raises(UserError, match=r"HF_ENDPOINT is 'huggingface.example': set it"):
        Hub(print)


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("TRUE", True), ("", False), ("0", False)])
def test_offline(monkeypatch: pytest.MonkeyPatch, value: str, offline: bool) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert is_offline() == offline
