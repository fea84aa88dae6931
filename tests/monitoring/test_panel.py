"""What stays at the foot of a terminal."""

import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from picogpt.monitoring.panel import Panel, sparkline
from picogpt.monitoring.status import Status
from picogpt.reports.number_format import duration, rate, size
from picogpt.runs.log import Evaluation

STATUS = Status(
    step=840,
    steps=2000,
    progress=0.42,
    seconds=252.0,
    eta_seconds=348.0,
    train_loss=1.6123,
    learning_rate=0.01,
    tokens_per_second=4310.4,
    peak_share=0.713,
    process_memory=407 << 20,
    machine_memory=3 << 30,
    total_memory=8 << 30,
    load=0.98,
    temperature=62.4,
    battery=81,
    plugged=True,
    data="wiki, 12M tokens here",
    pausing="",
)
EVALUATIONS = [
    Evaluation(50 * i, 3.0 - i / 10, 3.1 - i / 10, 2.164, 1.25, 0.031, sample=f"He is a man {i}\n[x]")
    for i in range(1, 17)
]


def shown(status: Status = STATUS, width: int = 100, encoding: str = "utf-8", evaluations: Any = EVALUATIONS) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=stream, width=width).print(Panel("mine", status, evaluations))
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode(encoding)


def test_everything_is_said() -> None:
    text = shown()
    assert "mine" in text and "0:04:12 trained, 0:05:48 to go" in text
    for part in ("840 of 2,000", "42.0% done", "lr 0.0100", "4,310 tokens/s", "71% of the machine's matrix products"):
        assert part in text
    for part in ("407 MB here", "3.0 GB of 8.0 GB in use", "98% busy", "62 °C", "battery 81 %, on mains power"):
        assert part in text
    assert "wiki, 12M tokens here" in text and r"He is a man 16\n[x]" in text
    assert "1.612" in text and "1.500  █" in text and "best so far" in text
    assert "2.164 bits/char  1.250 bits/byte  3.1% unknown" in text


def test_what_is_not_known_is_left_out() -> None:
    nothing = replace(STATUS, eta_seconds=None, train_loss=None, peak_share=None, temperature=None, battery=None)
    text = shown(nothing, evaluations=[])
    assert "? to go" in text and text.count("not yet") == 2
    assert "products" not in text and "°" not in text and "battery" not in text


def test_a_loss_that_was_better_before_is_told() -> None:
    worse = [*EVALUATIONS, Evaluation(850, 1.0, 2.25, sample="")]
    text = shown(evaluations=worse)
    assert "2.250" in text and "best 1.500" in text and "He is a man 16" in text  # the last that wrote anything


def test_a_pause_is_seen() -> None:
    assert "waiting for mains power" in shown(replace(STATUS, pausing="waiting for mains power"))
    assert "discharging" in shown(replace(STATUS, plugged=False))


@pytest.mark.parametrize("width", [20, 60, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_it_fits(width: int, encoding: str) -> None:
    status = replace(STATUS, data="/a/long/path" * 30, pausing="resting: the processor has 99 degrees, and may have 95")
    long = [replace(EVALUATIONS[0], sample="ä→\x1b[2J" + "word " * 400)]
    lines = shown(status, width, encoding, long).splitlines()
    assert max(map(len, lines)) <= min(width - 2, 100)  # what a terminal echoes at the end of a line has room
    assert len(lines) <= 22 if width == 20 else len(lines) <= 14
    assert "\x1b[2J" not in "\n".join(lines)


@given(st.lists(st.floats(-1e6, 1e6), max_size=60), st.booleans())
def test_a_sparkline_is_short_and_touches_both_ends(values: list[float], plain: bool) -> None:
    line = sparkline(values, 24, plain)
    assert len(line) == min(24, len(values)) and line.isascii() >= plain
    if 1 < len(values) <= 24 and max(values) > min(values):
        assert line[values.index(max(values))] == ("#" if plain else "█")
        assert line[values.index(min(values))] == ("_" if plain else "▁")


def test_numbers() -> None:
    assert [rate(value) for value in (0.04, 0.0, 3e-5)] == ["0.0400", "0.0000", "3.0e-05"]
    assert [size(count) for count in (407 << 20, 1 << 30)] == ["407 MB", "1.0 GB"]
    assert [duration(seconds) for seconds in (None, 59.6, 86_399)] == ["-", "0:01:00", "23:59:59"]
    assert [duration(seconds) for seconds in (90_061.4, 172_800)] == ["1 day, 1:01:01", "2 days, 0:00:00"]
