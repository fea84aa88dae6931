"""The page of a report: nothing in a log breaks out of it, nothing is loaded by it, and it says what the log says."""

import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.errors import UserError
from picogpt.monitoring.server import page_html, status_html
from picogpt.monitoring.status import Status
from picogpt.reports.chart import Curve, chart
from picogpt.reports.page import page, report, write_page
from picogpt.reports.summary import Summary
from picogpt.runs.log import DivergenceEvent, Evaluation, LogContent
from tests.support.logfiles import summary_of

STATUS = Status(
    step=120,
    steps=400,
    progress=0.3,
    seconds=33.0,
    eta_seconds=77.0,
    train_loss=2.345,
    learning_rate=0.01,
    tokens_per_second=23_456.0,
    peak_share=0.52,
    process_memory=80 << 20,
    machine_memory=3 << 30,
    total_memory=8 << 30,
    load=0.71,
    temperature=61.0,
    battery=74,
    plugged=False,
    data="streaming",
    pausing="",
)


class Parsed(HTMLParser):
    """The tags of a page with the names of their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[Any] = []
        self.links: list[str | None] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, [name for name, _ in attrs]))
        self.links += [value for name, value in attrs if name in ("href", "src", "action", "srcset", "data", "style")]

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.tags.append("comment")


def runs_that_say(text: str) -> list[Summary]:
    """Two runs of whose logs all text is this."""
    point = Evaluation(5, 2.0, 2.5, sample=text, text=text)
    config: dict[str, object] = {"machine": text, "data": {"data": text, "tokenizer": text}, "model": {text: text}}
    log = LogContent(
        {"train": [2.0], "val": [2.5]},
        evaluations=[point, replace(point, step=10)],
        divergence=[DivergenceEvent(1, text)],
        notices=[text],
        config=config,
    )
    return [Summary(text, log), Summary(text, replace(log, config={**config, "model": {}}))]


HOSTILE = [
    "<script>alert(1)</script>",
    "</pre></section><img src=x onerror=alert(1)>",
    "\"'><svg/onload=alert(1)>",
    "</title><b>",
    "{{ 7 * 7 }}{% include 'page.html' %}",
    "&lt;b&gt;&amp;",
    "<!--",
    "]]>",
    "\u202eevil\u2066\u200f\x00\x1b[31m\x85\u2028\ud800",
]
TEXT = st.one_of(
    st.sampled_from(HOSTILE),
    st.lists(st.sampled_from([*HOSTILE, *"<>&'\"/`=-! \n\r\t", "é"]), min_size=1).map("".join),
    st.text(st.characters(exclude_categories=[]), min_size=1),
).filter(lambda text: text not in ("-", "text") and text.strip() != "")


@given(TEXT)
@settings(max_examples=80, deadline=None)
def test_no_text_of_a_log_breaks_out_of_the_page(text: str) -> None:
    for made in (
        lambda text: page(runs_that_say(text)),
        lambda text: page(runs_that_say(text)[:1]),
        lambda text: page_html(text, status_html(None, 0, False), report([], text), 1),
        lambda text: status_html(Status(**{**vars(STATUS), "data": text, "pausing": text}), 0, False),
    ):
        hostile, harmless = Parsed(made(text)), Parsed(made("harmless"))
        assert hostile.tags == harmless.tags and hostile.links == harmless.links
        assert all(c.isprintable() or c == "\n" for part in hostile.text for c in part)


def test_a_sample_is_shown_with_its_lines_and_what_is_hidden_in_it() -> None:
    text = "".join(Parsed(page(runs_that_say("one\ntwo\t<b>\u202e & \x07"))).text)
    assert "one\ntwo\\t<b>\\u202e & \\x07" in text


def test_the_page_loads_nothing_and_allows_nothing(tmp_path: Path) -> None:
    html = page([summary_of(tmp_path / "a", [3.0, 2.0]), summary_of(tmp_path / "b", [3.0, 1.9])])
    assert Parsed(html).links == ["data:,"]
    assert not re.search(r"https?:|[\"' (]//\w|@import|url\(|<script", html)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None and policy[1].startswith("default-src &#39;none&#39;") and "script-src" not in policy[1]
    assert "unsafe" not in policy[1]


def test_the_page_says_what_the_logs_say(tmp_path: Path) -> None:
    runs = [summary_of(tmp_path / "a", [3.0, 2.0]), summary_of(tmp_path / "b", [3.0, 2.1], n_head=4, batch_size=8)]
    runs[1].log.divergence.append(DivergenceEvent(7, "step 7 is left out"))
    text = " ".join(" ".join(Parsed(page(runs)).text).split())
    for told in (
        "2.0000",
        "+5.00 % worse, beside a",
        "Old i3, 2 cores",
        "step 7: step 7 is left out",
        "model.n_head 8 4",
    ):
        assert told in text, told
    assert "over tokens" in text and "not trained on equally many tokens" in text
    assert "He is a sea shell. 1" in text and "He is a sea shell. 2" in text
    alone = " ".join(" ".join(Parsed(page(runs[:1])).text).split())
    assert "beside" not in alone and "Comparison" not in alone and "train.steps 100" in alone


@pytest.mark.parametrize("losses", [[], [None], [2.0], [float("nan"), 2.0, float("inf")]])
def test_a_page_of_hardly_anything(tmp_path: Path, losses: list[float | None]) -> None:
    html = page([summary_of(tmp_path / "a", losses, sample="")])
    assert ("no finite loss yet" in html) == (2.0 not in losses)
    assert page([Summary("old", replace(summary_of(tmp_path / "a", []).log, config={}))])


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, path = [summary_of(tmp_path / "a", [2.0])], tmp_path / "report.html"
    write_page(runs, path)
    before = path.read_bytes()
    assert before.decode() == page(runs)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    others = [summary_of(tmp_path / "a", [1.0])]
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*report\.html \(No space left on device\)"):
        write_page(others, path)
    assert path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["a", "report.html"]


@given(
    st.lists(st.tuples(st.integers(0, 1 << 62), st.floats(-1e29, 1e29)), min_size=1, max_size=20),
)
@settings(max_examples=100, deadline=None)
def test_a_chart_of_any_numbers_stays_in_its_box(points: list[tuple[int, float]]) -> None:
    steps, values = np.array(sorted(points), dtype=np.float64).T
    drawn = chart([Curve("run", (steps, values), "c0"), Curve("empty", (np.zeros(0), np.zeros(0)), "c1")], "step")
    assert drawn is not None and len(drawn.paths) == 1
    for point in drawn.paths[0].points.split():
        x, y = map(float, point.split(","))
        assert -1 <= x <= 1001 and -1001 <= y <= 1001
    assert all(-0.01 <= tick.percent <= 100.01 for tick in drawn.left + drawn.below)


def test_a_long_curve_keeps_its_lowest_and_its_last_point() -> None:
    steps = np.arange(10_000.0)
    values = np.where(steps == 1234, 1.0, 3.0 - steps / 1e4)
    drawn = chart([Curve("run", (steps, values), "c0")], "step")
    assert drawn is not None
    points = [tuple(map(float, point.split(","))) for point in drawn.paths[0].points.split()]
    assert len(points) <= 401 and max(y for _, y in points) > 950 and drawn.paths[0].end == "992.1,500.0"


def test_a_steep_beginning_is_cut_off_and_that_is_said(tmp_path: Path) -> None:
    losses: list[float | None] = [20.0, *(2.0 - i / 100 for i in range(30))]
    html = page([summary_of(tmp_path / "a", losses)])
    assert "The beginning, above 1.98, is cut off." in html
    assert "is cut off" not in page([summary_of(tmp_path / "b", losses[1:])])


@pytest.mark.parametrize(
    ("changes", "age", "ended", "told"),
    [
        ({}, 0, False, ["Training", "step 120 of 400, 30 %", "0:00:33, 0:01:17 to go", "23,456", "52 % of the peak"]),
        ({}, 0, False, ["80 MB", "3.0 of 8.0 GB", "71 %", "61 °C", "74 %", "discharging", "streaming"]),
        ({"pausing": "61 degrees"}, 0, False, ["Pausing: 61 degrees"]),
        ({}, 60, False, ["No news for 60 seconds"]),
        ({}, 0, True, ["Training has stopped after step 120"]),
        ({"progress": 1.2, "step": 400}, 0, True, ["The run has ended after step 400", "100 %"]),
    ],
)
def test_the_panel(changes: dict[str, Any], age: float, ended: bool, told: list[str]) -> None:
    text = " ".join("".join(Parsed(status_html(Status(**{**vars(STATUS), **changes}), age, ended)).text).split())
    assert all(part in text for part in told), text


def test_the_panel_without_what_is_not_known() -> None:
    unknown = dict.fromkeys(("eta_seconds", "train_loss", "peak_share", "temperature", "battery"))
    html = status_html(Status(**{**vars(STATUS), **unknown, "data": ""}), 0, False)
    assert not any(part in html for part in ("None", "to go", "°C", "battery", "of the peak", "training loss"))
    assert "Training begins" in status_html(None, 0, False)
