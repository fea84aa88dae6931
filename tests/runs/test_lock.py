"""One process a run: refused while another has it, and free as soon as that one dies, whatever files it left."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from picogpt.errors import UserError
from picogpt.runs.layout import LOCK, OWNER
from picogpt.runs.lock import run_lock
from tests.support.paths import ROOT

HOLD = """
import sys
from pathlib import Path
from picogpt.runs.lock import run_lock
with run_lock(Path(sys.argv[1]), print):
    print("mine", flush=True)
    sys.stdin.read()
"""


def hold(run_dir: Path, program: str = HOLD) -> "subprocess.Popen[bytes]":
    """Start a process that holds the run until its input ends."""
    root = str(ROOT)
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(run_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert owner.stdout is not None and owner.stdout.readline() == b"mine\n"
    return owner


def test_a_second_one_is_told_who_has_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "logs" / "mine"
    with (
        run_lock(run_dir, pytest.fail),
        pytest.raises(UserError, match=rf"run mine is being trained by process {os.getpid()} on .+ since \d{{4}}-"),
        run_lock(run_dir, pytest.fail),
    ):
        pytest.fail("two have it")
    assert not (run_dir / OWNER).exists()
    with run_lock(run_dir, pytest.fail):
        pass


def test_one_that_was_killed_leaves_no_lock(tmp_path: Path) -> None:
    owner = hold(tmp_path)
    with pytest.raises(UserError, match=f"by process {owner.pid} on "), run_lock(tmp_path, pytest.fail):
        pass
    owner.kill()
    owner.communicate()
    assert json.loads((tmp_path / OWNER).read_text(encoding="utf-8"))["pid"] == owner.pid  # the note is no lock
    with run_lock(tmp_path, pytest.fail):
        assert json.loads((tmp_path / OWNER).read_text(encoding="utf-8"))["pid"] == os.getpid()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="lanes are threads here")
def test_a_child_of_one_that_ended_holds_nothing(tmp_path: Path) -> None:
    """A lane outlives a trainer that is killed, for as long as its micro-batch takes."""
    ours, theirs = multiprocessing.Pipe()
    with run_lock(tmp_path, pytest.fail):
        child = multiprocessing.get_context("fork").Process(target=theirs.recv, daemon=True)
        child.start()
    with run_lock(tmp_path, pytest.fail):
        assert child.is_alive()
    ours.send(None)
    child.join()


FORK = "if not os.fork():\n        os.read(0, 1)\n    "
WITH_A_CHILD = "import os" + HOLD.replace("print(", f"{FORK}print(", 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="lanes are threads here")
def test_a_child_of_one_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    owner = hold(tmp_path, WITH_A_CHILD)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    with run_lock(tmp_path, pytest.fail):
        pass
    owner.communicate()


@pytest.mark.parametrize("note", [b"", b"\xff", b"[]", b"[" * 5000, b'{"pid": 1}', b"x" * 100_000])
def test_a_note_that_says_nothing(tmp_path: Path, note: bytes) -> None:
    with run_lock(tmp_path, pytest.fail):
        (tmp_path / OWNER).write_bytes(note)
        with pytest.raises(UserError, match="by another process: wait for it"), run_lock(tmp_path, pytest.fail):
            pass


def test_without_locks_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: FileLock, timeout: float) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", none)
    told: list[str] = []
    with run_lock(tmp_path, told.append):
        assert len(told) == 1 and "a file system without locks" in told[0]


def test_a_folder_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot write .*file"), run_lock(tmp_path / "file" / "run", pytest.fail):
        pass

    def refused(self: FileLock, timeout: float) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", refused)
    with pytest.raises(UserError, match="Read-only file system"), run_lock(tmp_path, pytest.fail):
        pass


def test_errors_of_the_one_who_has_it_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), run_lock(tmp_path, pytest.fail):
        raise OSError("mine")
    assert (tmp_path / LOCK).exists()
    with run_lock(tmp_path, pytest.fail):
        pass
