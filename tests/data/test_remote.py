"""Ranges of remote files, whatever the network does meanwhile."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.data.sources import remote
from picogpt.data.sources.remote import ChangedError, Location, RemoteFile, TroubleError, Web
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


def located(hub: Hub, identity: str = "one") -> Location:
    """Return where the file is, as the hub would say."""
    hub.requests.append("where")
    return Location(f"{hub.store}/signed/{hub.generation}/{REPO}/file", len(CONTENT), identity)


@pytest.fixture
def file(hub: Hub, waits: list[str]) -> RemoteFile:
    return RemoteFile(Web(waits.append), lambda: located(hub))


def test_it_is_a_file(file: RemoteFile) -> None:
    assert file.size == len(CONTENT) and file.readable() and file.seekable()
    assert file.seek(-10, io.SEEK_END) == len(CONTENT) - 10 and file.read(100) == CONTENT[-10:] and file.read(5) == b""
    file.seek(1000)
    assert file.read(7) == CONTENT[1000:1007] and file.tell() == 1007
    assert file.seek(3, io.SEEK_CUR) == 1010 and file.fetch(5, 5) == b""


def test_the_signed_address_is_asked_for_once(hub: Hub, file: RemoteFile) -> None:
    for start in range(0, 5000, 1000):
        assert file.fetch(start, start + 1000) == CONTENT[start : start + 1000]
    assert hub.requests.count("where") == 1


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
    hub.faults.append("truncate")
    assert file.fetch(0, 200_000) == CONTENT[:200_000]
    ranges = [{name.lower(): value for name, value in headers.items()}["range"] for headers in hub.headers]
    starts = [int(value.removeprefix("bytes=").split("-")[0]) for value in ranges]
    assert starts[0] == 0 and 0 < starts[1] <= 100_000


def test_an_expired_address_is_asked_for_again(hub: Hub, file: RemoteFile) -> None:
    hub.expire()
    assert file.fetch(10, 20) == CONTENT[10:20]
    hub.faults.append(hub.expire)  # while the request is under way
    assert file.fetch(10, 20) == CONTENT[10:20]
    assert hub.requests.count("where") == 3


def test_another_version_is_noticed(hub: Hub, waits: list[str]) -> None:
    identities = iter(["one", "two"])
    file = RemoteFile(Web(waits.append), lambda: located(hub, next(identities)))
    hub.expire()
    with pytest.raises(ChangedError, match="another version of the file"):
        file.fetch(0, 10)


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_file_of_another_size_is_noticed(hub: Hub, waits: list[str], size: int) -> None:
    file = RemoteFile(Web(waits.append), lambda: Location(located(hub).address, size, ""))
    with pytest.raises(ChangedError, match=f"has 300,000 bytes where the hub says {size:,}"):
        file.fetch(0, 10)


def test_less_than_the_hub_says_is_another_file(hub: Hub, file: RemoteFile) -> None:
    hub.faults = ["416"]
    with pytest.raises(ChangedError, match="has less of the file than the hub says"):
        file.fetch(0, 10)


@pytest.mark.parametrize(("status", "asked"), [("403", 4), ("451", 1)])
def test_an_address_that_is_always_refused_is_an_error(hub: Hub, file: RemoteFile, status: str, asked: int) -> None:
    hub.faults = [status] * 50
    with pytest.raises(UserError, match=rf"refuses the file \({status}\): try again later"):
        file.fetch(0, 10)
    assert hub.requests.count("where") == asked


def test_the_hub_itself_is_never_asked_for_a_part(hub: Hub, waits: list[str]) -> None:
    address = f"{hub.url}/datasets/{REPO}/resolve/main/file"
    hub.answers[f"/datasets/{REPO}/resolve/main/file"] = 200, CONTENT, {}
    place = Location(address, len(CONTENT), "", {"Authorization": "Bearer it"})
    assert RemoteFile(Web(waits.append), lambda: place).fetch(7, 70_000) == CONTENT[7:70_000]
    sent = {name.lower(): value for name, value in hub.headers[-1].items()}
    assert "range" not in sent and sent["authorization"] == "Bearer it"


def test_a_redirect_is_followed_without_credentials(hub: Hub, waits: list[str]) -> None:
    hub.answers["/moved"] = 302, b"", {"Location": located(hub).address}
    place = Location(f"{hub.url}/moved", len(CONTENT), "", {"Authorization": "Bearer it"})
    assert RemoteFile(Web(waits.append), lambda: place).fetch(0, 9) == CONTENT[:9]
    sent = [{name.lower() for name in headers} for headers in hub.headers]
    assert "authorization" in sent[0] and "authorization" not in sent[1]


@pytest.mark.parametrize("location", ["", "file:///etc/passwd", "http://[bad", "http://host:99999/", "http://a b/"])
def test_a_redirect_to_nowhere_is_trouble(hub: Hub, location: str) -> None:
    hub.answers["/moved"] = 302, b"", {"Location": location} if location else {}
    with pytest.raises((TroubleError, UserError)) as told:
        RemoteFile(_Impatient(), lambda: Location(f"{hub.url}/moved", 9, "")).fetch(0, 9)
    assert str(told.value).isprintable()


class _Impatient(Web):
    """Tries nothing twice."""

    def __init__(self) -> None:
        super().__init__(print)

    def persistently(self, action: object) -> None:
        assert callable(action)
        action()


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


@pytest.mark.parametrize(
    ("value", "seconds"), [('"api";r=0;t=55', 55), ('"api"; r=0; t=7', 7), ('"api";r=10;t=55', 0), ("r=0", 0)]
)
def test_a_rate_limit_that_is_used_up_is_a_pause(value: str, seconds: float) -> None:
    assert remote._retry_after({"RateLimit": value}) == seconds
    assert remote._retry_after({"RateLimit": value, "Retry-After": "3"}) == 3


def test_a_proxy_of_the_environment_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch, waits: list[str]) -> None:
    monkeypatch.setenv("http_proxy", hub.store.replace("//", "//me:se%3Acret@"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Web(waits.append).get(f"http://far.away/signed/0/{REPO}/file") as response:
        assert response.status_code == 200
    sent = {name.lower(): value for name, value in hub.headers[-1].items()}
    assert sent["host"] == "far.away" and sent["proxy-authorization"] == "Basic bWU6c2U6Y3JldA=="
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert RemoteFile(Web(waits.append), lambda: located(hub)).fetch(0, 3) == CONTENT[:3]


# Answers that are made to do harm


@FEW
@given(st.text(st.characters(codec="latin-1")) | st.from_regex(r"[0-9A-Za-z,: +-]{0,40}"))
def test_any_retry_after_is_a_pause(value: str) -> None:
    assert 0 <= remote._retry_after({"Retry-After": value, "RateLimit": value}) <= 3600


def answered(status: int, **headers: str) -> None:
    file = RemoteFile(Web(print), lambda: Location("http://hub/file", 9, ""))
    file._check(status, {name.replace("_", "-"): value for name, value in headers.items()}, 0)


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
    with pytest.raises(TroubleError, match="sends another range") as told:
        answered(206, Content_Range=said)
    assert str(told.value).isprintable() and len(str(told.value)) < 200
    answered(206, Content_Range="bytes 0-0/9")


@pytest.mark.parametrize("said", ["", "many", "-5", "1.5", "9" * 5000])
def test_a_size_that_makes_no_sense_is_trouble(said: str) -> None:
    with pytest.raises(TroubleError, match="without its size"):
        answered(200, Content_Length=said)
    answered(200, Content_Length="9")
