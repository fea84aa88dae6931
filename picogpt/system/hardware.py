"""Facts about the machine, from psutil and the operating system."""

import multiprocessing
import os
import platform
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_LEAST_FREE = 0.03  # of the machine's memory: with less, systems begin to swap
_PROCESSOR_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal", "acpitz")
_PLAUSIBLE = 0.0, 150.0  # degrees Celsius; broken sensors report thousands
_LOOK, _AFTER_SHORTAGE = 2.0, 15.0  # seconds until the next look


def physical_cores() -> int:
    """Return the number of physical cores, at most the processors this process may use, and at least one."""
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    return max(1, min(cores, _quota()))


def free_cores() -> float:
    """Return how many physical cores no other program has been using since this one began."""
    process, count = psutil.Process(), psutil.cpu_count() or 1
    own = sum(process.cpu_times()[:2]) / max(1e-3, time.time() - process.create_time())
    free = count - max(0.0, psutil.cpu_percent() / 100 * count - own)  # since psutil was imported
    return free * (psutil.cpu_count(logical=False) or count) / count


def _quota() -> int:
    """Return the whole processors a container's cgroup grants; more than any machine has if there is no limit."""
    unlimited = 1 << 20
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):  # not Linux, or not the second version of cgroups
        return unlimited
    return unlimited if quota == "max" else int(quota) // int(period)


def total_memory() -> int:
    """Return the bytes of memory in the machine, or those that a container's cgroup grants if that is less."""
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # not Linux, not the second version of cgroups, or no limit: "max"
        return total


def available_memory() -> int:
    """Return the bytes available without swapping, or those that a container's cgroup has left if that is less."""
    available, group = int(psutil.virtual_memory().available), Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        cached = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, ValueError):  # as in total_memory
        return available
    return min(available, limit - used + (int(cached[1]) if cached else 0))


class MemoryWatch:
    """Checks every few seconds whether the machine is about to swap."""

    def __init__(self) -> None:
        self._next = 0.0

    def is_short(self) -> bool:
        """Return whether free memory has just been found short; False between two checks."""
        if (now := time.monotonic()) < self._next:
            return False
        short = available_memory() < _LEAST_FREE * total_memory()
        self._next = now + (_AFTER_SHORTAGE if short else _LOOK)
        return short


def resident_memory() -> int:
    """Return the bytes of memory this process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """Return the most bytes this process has ever held, plus those its lanes hold now; shared pages count once."""
    return _own_peak() - resident_memory() + held_memory()


def held_memory() -> int:
    """Return the bytes this process and its lanes hold now; shared pages count once where the system reports them."""
    lanes = multiprocessing.active_children()
    if not lanes:
        return resident_memory()
    return sum(int(psutil.Process(pid).memory_full_info().pss) for pid in (os.getpid(), *(lane.pid for lane in lanes)))


def processor_load() -> float:
    """Return the share of all processors that was busy since the last call, with all other programs."""
    return float(psutil.cpu_percent()) / 100


@dataclass(frozen=True)
class Temperature:
    """The reading of a processor's sensor, in degrees Celsius."""

    degrees: float
    critical: float | None
    """What the sensor calls critical; None if it does not say, or says something implausible."""


def temperature() -> Temperature | None:
    """Return the temperature of the processor; None if there is no sensor, or none that works."""
    if not hasattr(psutil, "sensors_temperatures"):  # Windows, macOS
        return None
    sensors = psutil.sensors_temperatures()
    readings = next((sensors[chip] for chip in _PROCESSOR_SENSORS if sensors.get(chip)), [])
    hottest = max(readings, key=lambda reading: float(reading.current), default=None)
    if hottest is None or not _PLAUSIBLE[0] < hottest.current < _PLAUSIBLE[1]:
        return None
    critical = hottest.critical or hottest.high or 0.0
    return Temperature(float(hottest.current), float(critical) if 60 <= critical < _PLAUSIBLE[1] else None)


@dataclass(frozen=True)
class Battery:
    """The charge of a battery."""

    percent: int
    plugged: bool
    """Whether the machine runs on mains power."""


def battery() -> Battery | None:
    """Return the charge of the battery; None if there is none."""
    if not hasattr(psutil, "sensors_battery") or (found := psutil.sensors_battery()) is None:
        return None
    return Battery(round(found.percent), found.power_plugged is not False)  # None: not known, so nothing to wait for


def _own_peak() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        # not getrusage: there, a process starts with the peak of the one that started it
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        return int(match[1]) * 1024 if match else resident_memory()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def machine() -> str:
    """Describe the machine in one line such as "AMD EPYC, 2 cores, 24 GB, Linux"."""
    cores = physical_cores()
    plural = "" if cores == 1 else "s"
    return f"{_processor()}, {cores} core{plural}, {total_memory() / 2**30:.0f} GB, {platform.system()}"


def _processor() -> str:
    model = ""
    with suppress(OSError):  # Linux on Intel and AMD has it here
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        model = match[1] if match else ""
    model = re.sub(r"\((R|TM)\)", "", model or platform.processor() or platform.machine())
    return " ".join(model.split()) or "unknown processor"
