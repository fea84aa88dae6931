"""The live page: who may read it, that it lives and dies with the trainer, and that it costs the trainer nothing."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from picogpt.errors import UserError
from picogpt.monitoring import server
from picogpt.monitoring.dashboard import Dashboard, parse_address
from picogpt.monitoring.server import App, LivePage
from picogpt.runs.log import read_log
from tests.reports.test_page import STATUS
from tests.support.commands import ROOT
from tests.support.folders import snapshot
from tests.support.logfiles import write_log

Open = Callable[..., tuple[Dashboard, str]]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_log(tmp_path / "my run", [3.0, 2.5]).parent


@pytest.fixture
def opened(run_dir: Path) -> Iterator[Open]:
    """`opened(address)`: a dashboard and where its page is."""
    all: list[Dashboard] = []

    def open(address: str = "0", folder: Path = run_dir) -> tuple[Dashboard, str]:
        said: list[str] = []
        all.append(Dashboard.open(address, folder, said.append))
        [line] = said
        assert line.startswith("live page: http://") and line.endswith("/")
        return all[-1], line.removeprefix("live page: ")

    yield open
    for dashboard in all:
        dashboard._process.kill()  # not to tell those who look of the end
        dashboard.close()


def ask(url: str, what: str = "", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 0, timeout=30)
    connection.request(method, parts.path + what, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), text


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process is about to do."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen within 30 seconds")


def test_the_page_shows_the_log_and_how_the_run_stands(opened: Open) -> None:
    dashboard, url = opened()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
    status, headers, text = ask(url)
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert "<h1>my run</h1>" in text and "Training begins" in text and "2.5000" in text
    dashboard.send(STATUS)
    until(lambda: "step 120 of 400" in ask(url, "live")[2])


def test_a_new_evaluation_makes_a_new_report(opened: Open, run_dir: Path) -> None:
    _, url = opened()
    version = ask(url, "live")[1]["Report-Version"]
    assert ask(url, "report")[1]["Report-Version"] == version
    write_log(run_dir, [3.0, 2.5, 2.25])
    _, headers, text = ask(url, "report")
    assert headers["Report-Version"] != version and "2.2500" in text
    assert ask(url, "live")[1]["Report-Version"] == headers["Report-Version"]


def test_a_run_without_a_log_yet_and_with_a_damaged_one(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    _, url = opened(folder=tmp_path / "new")
    assert "No evaluation yet" in ask(url)[2]
    (tmp_path / "new" / "log.pkl").write_bytes(b"<b>")
    assert "is damaged or not a log" in ask(url)[2]


def test_head_is_get_without_the_page(opened: Open) -> None:
    _, url = opened()
    for what in ("", "report"):
        _, headers, text = ask(url, what)
        status, same, nothing = ask(url, what, "HEAD")
        assert status == 200 and nothing == "" and text
        assert {**same, "Date": ""} == {**headers, "Date": ""} and int(same["Content-Length"]) == len(text.encode())


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_it_can_only_be_read(opened: Open, method: str) -> None:
    _, url = opened()
    status, headers, _ = ask(url, "", method)
    assert status == 405 and headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "what", ["favicon.ico", "log.pkl", "../log.pkl", "%2e%2e/", "live/", "Live", "%ff", "?x", "live?y"]
)
def test_there_is_nothing_else(opened: Open, what: str) -> None:
    _, url = opened()
    assert ask(url, what)[0] == (200 if "?" in what else 404)


def test_what_a_browser_may_do_with_it(opened: Open) -> None:
    _, url = opened()
    for what in ("", "live", "report", "nothing"):
        headers = ask(url, what)[1]
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer" and "Server" not in headers
        assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("address", ["0", "127.0.0.1:0"])
def test_a_name_that_was_made_to_point_here_is_refused(opened: Open, address: str) -> None:
    _, url = opened(address)
    port = urlsplit(url).port
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "127.0.0.1", ""):
        status, _, text = ask(url, "", Host=host)
        assert status == 403 and "my run" not in text
    for host in (f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}"):
        assert ask(url, "", Host=host)[0] == 200


def test_an_address_that_was_asked_for_has_a_token(opened: Open) -> None:
    _, url = opened("127.0.0.1:0")
    token = urlsplit(url).path.strip("/")
    assert len(token) >= 20
    assert ask(url)[0] == ask(url, "live")[0] == 200
    root = url.removesuffix(f"{token}/")
    for path in (
        "",
        "live",
        "report",
        token,
        f"{token[:-1]}/",
        f"x{token}/",
        f"{token}x/",
        f"{token}//",
        "é".encode().hex(),
    ):
        status, headers, text = ask(root, path)
        assert status == 404 and "my run" not in text and "Report-Version" not in headers
    assert urlsplit(opened("127.0.0.1:0")[1]).path != urlsplit(url).path


def test_every_address_of_the_machine(opened: Open) -> None:
    _, url = opened("0.0.0.0:0")
    parts = urlsplit(url)
    assert parts.hostname not in ("0.0.0.0", None)
    here = f"http://127.0.0.1:{parts.port}{parts.path}"
    assert ask(here)[0] == 200 and ask(f"http://127.0.0.1:{parts.port}/")[0] == 404
    assert ask(here, "", Host="my-computer.local")[0] == 200  # whoever has the token was given it


def test_a_port_that_is_taken_is_one_line(opened: Open, run_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"cannot serve a page at --dashboard {port} \(.*[Aa]ddress already in use.*\): give"
        ):
            Dashboard.open(str(port), run_dir, pytest.fail)
    with pytest.raises(UserError, match=r"cannot serve a page at --dashboard 192\.0\.2\.77:0 \("):
        Dashboard.open("192.0.2.77:0", run_dir, pytest.fail)


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("8050", "", "8050"),
        ("0", "", "0"),
        ("0.0.0.0:9000", "0.0.0.0", "9000"),
        ("[::1]:9000", "::1", "9000"),
        ("my-computer.local:80", "my-computer.local", "80"),
    ],
)
def test_addresses(address: str, host: str, port: str) -> None:
    assert parse_address(address) == (host, port)


@pytest.mark.parametrize(
    "address", ["", "x", "65536", "-1", "::1:80", "[::1]", "a b:80", "http://x:80", "80\n", "[x]:1", "٣"]
)
def test_what_is_no_address_is_one_line(address: str, run_dir: Path) -> None:
    with pytest.raises(UserError, match="must be a port or ADDRESS:PORT") as told:
        Dashboard.open(address, run_dir, pytest.fail)
    assert "\n" not in str(told.value)


def test_closing_ends_the_process_and_twice_is_fine(opened: Open) -> None:
    dashboard, url = opened()
    dashboard.close()
    dashboard.close()
    with pytest.raises(ConnectionRefusedError):
        ask(url)


def test_an_open_page_is_told_of_the_end(opened: Open) -> None:
    dashboard, url = opened()
    dashboard.send(STATUS)
    until(lambda: "step 120" in ask(url, "live")[2])
    assert dashboard._process.stdin is not None
    os.write(dashboard._process.stdin.fileno(), b"\nend\n")
    until(lambda: "data-ended" in ask(url, "live")[2])
    dashboard.close()
    assert dashboard._process.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_no_orphan_is_left_when_the_trainer_is_killed(run_dir: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from picogpt.monitoring.dashboard import Dashboard\n"
        "dashboard = Dashboard.open('0', Path(sys.argv[1]), lambda line: print(line, flush=True))\n"
        "print(dashboard._process.pid, flush=True); time.sleep(600)"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", program, str(run_dir)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert trainer.stdout is not None
    url, pid = trainer.stdout.readline().split()[-1], int(trainer.stdout.readline())
    assert ask(url)[0] == 200 and pid
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    trainer.stdout.close()

    def refused() -> bool:
        try:
            ask(url)
        except OSError:
            return True
        return False

    until(refused)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_page_that_died_is_told_once(opened: Open) -> None:
    dashboard, _ = opened()
    said: list[str] = []
    dashboard._notify = said.append
    dashboard._process.kill()
    dashboard._process.wait()
    for _ in range(3):
        dashboard.send(STATUS)
    assert said == ["the live page has ended, training continues without it"]
    dashboard.close()


@pytest.mark.skipif(sys.platform == "win32", reason="stops a process as POSIX does")
def test_a_server_that_does_not_read_is_not_waited_for(opened: Open) -> None:
    dashboard, url = opened()
    dashboard._process.send_signal(signal.SIGSTOP)
    for _ in range(2000):  # far more than a pipe holds
        dashboard.send(STATUS)
    dashboard._process.send_signal(signal.SIGCONT)

    def later() -> bool:
        dashboard.send(STATUS)
        return "step 120 of 400" in ask(url, "live")[2]

    until(later)


def test_what_is_cut_off_in_the_pipe_is_left_out(run_dir: Path) -> None:
    page = LivePage(run_dir)
    for line in (b"\n", b'{"step": 1', b"[1]\n", b'{"step": 1}\n', b"\xff\n", b"null\n"):
        page.receive(line)
    assert "Training begins" in page.state()


def test_the_report_is_made_once_for_a_log(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []

    def reading(path: Path) -> Any:
        reads.append(path)
        return original(path)

    original = read_log
    monkeypatch.setattr(server, "read_log", reading)
    app = App(LivePage(run_dir), "", frozenset())
    for path in ("/", "/live", "/report", "/"):
        assert app({"PATH_INFO": path, "REQUEST_METHOD": "GET"}, lambda *_: lambda data: data)
    assert len(reads) == 1
    write_log(run_dir, [1.0])
    app({"PATH_INFO": "/live", "REQUEST_METHOD": "GET"}, lambda *_: lambda data: data)
    assert len(reads) == 2


def test_it_writes_nothing(opened: Open, run_dir: Path) -> None:
    before = snapshot(run_dir)
    dashboard, url = opened()
    dashboard.send(STATUS)
    ask(url)
    dashboard.close()
    assert snapshot(run_dir) == before
