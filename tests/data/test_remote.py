"""Ranges of remote files, whatever the network does meanwhile."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.data.sources import remote
from picogpt.data.sources.remote import ChangedError, MissingError, RemoteFile, TroubleError, Web, redirected
from picogpt.errors import UserError
from tests.support.hubserver import Hub, serving

CONTENT = bytes(i * i % 251 for i in range(300_000))
REPO = "some/body"
FEW = settings(max_examples=100, deadline=None)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)
    (tmp_path / REPO).mkdir(parents=True)
    (tmp_path / REPO / "file").write_bytes(CONTENT)
    with serving(Hub(tmp_path)) as hub:
        yield hub


@pytest.fixture
def waits() -> list[str]:
    return []


@pytest.fixture
def file(hub: Hub, waits: list[str]) -> RemoteFile:
    return RemoteFile(Web(waits.append), f"{hub.url}/datasets/{REPO}/resolve/main/file")


def test_it_is_a_file(file: RemoteFile) -> None:
    assert file.size == len(CONTENT) and file.readable() and file.seekable()
    assert file.seek(-10, io.SEEK_END) == len(CONTENT) - 10 and file.read(100) == CONTENT[-10:] and file.read(5) == b""
    file.seek(1000)
    assert file.read(7) == CONTENT[1000:1007] and file.tell() == 1007
    assert file.seek(3, io.SEEK_CUR) == 1010 and file.fetch(5, 5) == b""


def test_the_signed_address_is_asked_for_once(hub: Hub, file: RemoteFile) -> None:
    for start in range(0, 5000, 1000):
        assert file.fetch(start, start + 1000) == CONTENT[start : start + 1000]
    assert sum(path.startswith("/datasets") for path in hub.requests) == 1


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (["reset"], ""),
        (["truncate"], ""),
        (["truncate", "reset", "truncate"], ""),
        (["slow"], None),
        (["500", "503"], "answers 503"),
        (["429"], "answers 429; trying again in 1 s"),
        (["no ranges"], None),
    ],
)
def test_trouble_passes(hub: Hub, file: RemoteFile, waits: list[str], faults: list[str], said: str | None) -> None:
    hub.faults += faults
    assert file.fetch(100_000, 250_000) == CONTENT[100_000:250_000]
    assert not hub.faults
    assert not waits if said is None else said in waits[-1] if waits else said == ""


def test_what_came_before_a_break_is_not_asked_for_again(hub: Hub, file: RemoteFile) -> None:
    hub.headers.clear()
    hub.faults.append("truncate")
    assert file.fetch(0, 200_000) == CONTENT[:200_000]
    starts = [int(headers["Range"].removeprefix("bytes=").split("-")[0]) for headers in hub.headers]
    assert starts[0] == 0 and 0 < starts[1] <= 100_000


def test_an_expired_address_is_asked_for_again(hub: Hub, file: RemoteFile) -> None:
    hub.expire()
    assert file.fetch(10, 20) == CONTENT[10:20]
    hub.faults.append(hub.expire)  # while the request is under way
    assert file.fetch(10, 20) == CONTENT[10:20]


def test_a_changed_file_is_noticed(hub: Hub, file: RemoteFile, tmp_path: Path) -> None:
    (tmp_path / REPO / "file").write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(ChangedError):
        file.fetch(0, 10)


def test_what_no_repetition_mends(hub: Hub, waits: list[str]) -> None:
    with pytest.raises(MissingError):
        RemoteFile(Web(waits.append), f"{hub.url}/datasets/{REPO}/resolve/main/none")
    with pytest.raises(UserError, match=r"not there or not public \(401\): look at the name, or set HF_TOKEN"):
        remote.refuse(401, "address")
    with pytest.raises(UserError, match=r"refused \(451\)"):
        remote.refuse(451, "address")
    assert not waits


def test_pauses_grow_and_shrink_again(monkeypatch: pytest.MonkeyPatch, waits: list[str]) -> None:
    slept: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", slept.append)
    answers: list[Exception | bool] = [TroubleError("no")] * 7 + [False, TroubleError("no", 99.0), True]

    def action() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    Web(waits.append).persistently(action)
    assert slept == [1, 2, 4, 8, 10, 10, 10, 99]
    assert waits[0] == "no; trying again in 1 s"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *[("7", 7), ("", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("99999999", 3600)],
        *[("nan", 0), ("-5", 0), ("-inf", 0), ("inf", 3600), ("1e999", 3600), ("9" * 5000, 3600)],
        *[("Wed, 21 Oct 99999 07:28:00 GMT", 0), ("Wed, 31 Feb 2030 99:28:00 GMT", 0), ("1 Jan 9999 0:0:0 -9999", 0)],
    ],
)
def test_retry_after(value: str, seconds: float) -> None:
    assert remote._retry_after({"Retry-After": value}) == seconds


def test_a_proxy_of_the_environment_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch, waits: list[str]) -> None:
    monkeypatch.setenv("http_proxy", hub.url)
    monkeypatch.delenv("no_proxy", raising=False)
    with Web(waits.append).get("http://far.away/datasets/some/body/resolve/main/file") as response:
        assert response.status == 302
    assert hub.requests[-1] == "/datasets/some/body/resolve/main/file"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert RemoteFile(Web(waits.append), f"{hub.url}/datasets/{REPO}/resolve/main/file").size == len(CONTENT)


def test_a_token_stays_at_home_wherever_a_redirect_leads(hub: Hub, tmp_path: Path) -> None:
    with serving(Hub(tmp_path)) as other:
        hub.faults = []
        hub.redirect = f"{other.url}/datasets/{REPO}/resolve/main/file"
        web = Web(print, hub.url, "secret")
        assert RemoteFile(web, f"{hub.url}/datasets/{REPO}/resolve/main/file").fetch(0, 9) == CONTENT[:9]
        assert not any("Authorization" in headers for headers in other.headers)
        assert all("Authorization" in headers for headers in hub.headers)


def test_a_circle_of_redirects_is_an_error(hub: Hub, waits: list[str]) -> None:
    address = f"{hub.url}/datasets/{REPO}/resolve/main/file"
    hub.redirect = address
    for ask in (lambda: RemoteFile(Web(waits.append), address), lambda: Web(waits.append).hub(address)):
        with pytest.raises(UserError, match="redirects in a circle"):
            ask()
    assert len(hub.requests) < 40


def test_a_fresh_address_that_is_always_refused_is_an_error(hub: Hub, waits: list[str]) -> None:
    hub.faults = ["403"] * 50
    with pytest.raises(UserError, match=r"not public \(403\)"):
        RemoteFile(Web(waits.append), f"{hub.url}/datasets/{REPO}/resolve/main/file")


def test_less_than_there_was_is_another_file(hub: Hub, file: RemoteFile) -> None:
    hub.faults = ["416"]
    with pytest.raises(ChangedError):
        file.fetch(0, 10)
    hub.faults = ["416"]
    with pytest.raises(MissingError):
        RemoteFile(Web(print), f"{hub.url}/datasets/{REPO}/resolve/main/file")


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://[bad"])
def test_a_proxy_that_cannot_be_used_is_an_error(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(UserError, match="cannot be requested"), Web(print).get("http://far.away/file"):
        pass


def test_a_proxy_is_told_name_and_password(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", hub.url.replace("//", "//me:se%3Acret@"))
    monkeypatch.setenv("no_proxy", "")
    with Web(print).get("http://far.away/file"):
        pass
    assert hub.headers[-1]["proxy-authorization"] == "Basic bWU6c2U6Y3JldA=="


# Answers that are made to do harm


@FEW
@given(st.text(st.characters(codec="latin-1")) | st.from_regex(r"[0-9A-Za-z,: +-]{0,40}"))
def test_any_retry_after_is_a_pause(value: str) -> None:
    assert 0 <= remote._retry_after({"Retry-After": value}) <= 3600


@FEW
@given(st.text(st.characters(codec="latin-1")) | st.from_regex(r"(https?://|//|/)[a-z0-9:@\[\]/.#?%-]{0,30}"))
def test_any_location_is_an_address_or_refused(value: str) -> None:
    try:
        target = redirected("http://hub/file", {"Location": value})
    except UserError as told:
        assert str(told).isprintable() and len(str(told)) < 300
    else:
        assert remote.is_address(target)


@pytest.mark.parametrize(
    "location",
    [
        "",
        "file:///etc/passwd",
        "ftp://host/file",
        "http://[bad",
        "http://host:port/",
        "http://host:99999/",
        "javascript:1",
        "http://host/" + "x" * 20_000,
        "https:///file",
    ],
)
def test_a_redirect_to_nowhere_is_an_error(hub: Hub, waits: list[str], location: str) -> None:
    path = f"/datasets/{REPO}/resolve/main/file"
    hub.answers[path] = 302, b"", {"Location": location} if location else {}
    for ask in (lambda: RemoteFile(Web(waits.append), hub.url + path), lambda: Web(waits.append).hub(hub.url + path)):
        with pytest.raises(UserError, match="which is no address: look at the name") as told:
            ask()
        assert "\n" not in str(told.value)
    assert len(hub.requests) == 2 and not waits


def test_a_listing_without_end_is_an_error(hub: Hub, waits: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LISTING", 1 << 20)
    hub.answers["/much"] = 200, bytes(3 << 20), {}
    with pytest.raises(UserError, match="sends more than 1 MB: look at HF_ENDPOINT"):
        Web(waits.append).hub(f"{hub.url}/much")
    hub.answers["/less"] = 200, bytes(1 << 20), {}
    assert Web(waits.append).hub(f"{hub.url}/less")[0] == bytes(1 << 20)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "bytes 0-0/*",
        "bytes 1-1/9",
        "bytes -1-0/9",
        "bytes 0-0/" + "9" * 5000,
        "0-0/9",
        "bytes 0-0/\xb2",
        "x" * 9000,
    ],
)
def test_a_range_that_makes_no_sense_is_trouble(said: str) -> None:
    file = RemoteFile.__new__(RemoteFile)
    response = urllib3.HTTPResponse(status=206, headers={"Content-Range": said} if said else {})
    with pytest.raises(TroubleError, match="sends another range") as told:
        file._recognise(response, 0)
    assert str(told.value).isprintable() and len(str(told.value)) < 200


@pytest.mark.parametrize("said", ["", "many", "-5", "1.5", "9" * 5000])
def test_a_size_that_makes_no_sense_is_trouble(said: str) -> None:
    file = RemoteFile.__new__(RemoteFile)
    response = urllib3.HTTPResponse(status=200)
    response.headers["Content-Length"] = said
    with pytest.raises(TroubleError, match="without its size"):
        file._recognise(response, 0)
