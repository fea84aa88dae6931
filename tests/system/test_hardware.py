"""Facts about the machine."""

import os
import platform
import re
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from picogpt.system import hardware


def test_the_machine_has_cores_and_memory() -> None:
    assert 1 <= hardware.physical_cores() <= (psutil.cpu_count() or 1)
    assert 0 < hardware.available_memory() <= hardware.total_memory()
    assert 1 << 20 < hardware.resident_memory() <= hardware.peak_memory() + (16 << 20)
    line = hardware.machine()
    assert re.fullmatch(r".+, \d+ cores?, \d+ GB, .+", line) and line.endswith(platform.system())


def test_the_peak_remembers_what_was_given_back() -> None:
    before = hardware.peak_memory()
    block = bytearray(b"x") * (hardware.resident_memory() + (64 << 20))
    size = len(block)
    del block
    assert hardware.peak_memory() >= max(before, size)


@pytest.mark.parametrize(
    ("physical", "logical", "allowed", "cores"),
    [(4, 8, 8, 4), (4, 8, 2, 2), (None, 6, 64, 6), (None, None, 64, 1), (0, 3, 64, 3)],
)
def test_cores_are_those_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, physical: int | None, logical: int | None, allowed: int, cores: int
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True, many=logical: many if logical else physical)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    monkeypatch.setattr(hardware, "_quota", lambda: 100)
    assert hardware.physical_cores() == cores
    monkeypatch.delattr(os, "sched_getaffinity")
    assert hardware.physical_cores() == (physical or logical or 1)


@pytest.mark.parametrize(("percent", "free"), [(0.0, 2.0), (50.0, 1.0), (100.0, 0.0), (75.0, 0.5)])
def test_free_cores_are_physical_ones(monkeypatch: pytest.MonkeyPatch, percent: float, free: float) -> None:
    """Two cores with two threads each; this process has used next to nothing of them."""
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 4 if logical else 2)
    monkeypatch.setattr(psutil, "cpu_percent", lambda: percent)
    monkeypatch.setattr(psutil.Process, "cpu_times", lambda self: (0.0, 0.0))
    assert hardware.free_cores() == free


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000\n", 8), ("250000 100000\n", 2), ("50000 100000\n", 1), ("", 8)]
)
def test_cores_keep_to_the_quota_of_a_container(monkeypatch: pytest.MonkeyPatch, text: str, cores: int) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert hardware.physical_cores() == cores


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({"memory.max": "1000", "memory.current": "700", "memory.stat": "file 9\ninactive_file 200\n"}, 500),
        ({"memory.max": "1000", "memory.current": "700", "memory.stat": ""}, 300),
        ({"memory.max": "max", "memory.current": "700"}, 4000),
        ({"memory.max": "9000", "memory.current": "0", "memory.stat": ""}, 4000),
        ({}, 4000),
    ],
)
def test_memory_keeps_to_the_limit_of_a_container(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], available: int
) -> None:
    def read(path: Path, **_: object) -> str:
        if path.name not in files:
            raise FileNotFoundError
        return files[path.name]

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4000))
    assert hardware.available_memory() == available


def test_the_watch_looks_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, free, looks = 100.0, 1000, 0

    def available() -> int:
        nonlocal looks
        looks += 1
        return free

    monkeypatch.setattr(hardware, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(hardware, "total_memory", lambda: 10_000)
    monkeypatch.setattr(hardware, "available_memory", available)
    watch = hardware.MemoryWatch()
    assert [watch.is_short(), watch.is_short(), looks] == [False, False, 1]
    now, free = now + 3, 299
    assert [watch.is_short(), watch.is_short(), looks] == [True, False, 2]
    now += 3  # what was done about it needs some time
    assert [watch.is_short(), looks] == [False, 2]
    now += 15
    assert [watch.is_short(), looks] == [True, 3]
