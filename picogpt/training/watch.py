"""All who look at a run: the screen, the notices of its log, its picture, TensorBoard and the live page."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from picogpt.config import RunConfig, WatchConfig
from picogpt.data.feed import Feed
from picogpt.engine.lanes import Lanes
from picogpt.model.parameters import flops_per_token
from picogpt.training.dashboard import Dashboard
from picogpt.training.device import gpu_in_words, lanes_in_words, trained_in_words
from picogpt.training.events import EventFile, require_library
from picogpt.training.gauges import Gauges
from picogpt.training.panel import Panel
from picogpt.training.plot import Plotter
from picogpt.training.roof import roof_of
from picogpt.training.runlog import RunLog
from picogpt.training.screen import Screen
from picogpt.training.status import Status

EVENTS = "tensorboard"  # folder of a run
Work = Callable[[int], float]
_SEND_SECONDS = 1.0


class Watch:
    """Told of everything as it happens; hands it on to whoever is there, and costs training next to nothing."""

    def __init__(self, asked: WatchConfig, run_dir: Path, screen: Screen, log: RunLog) -> None:
        """Raises UserError where a package is missing."""
        self._asked, self._dir, self.screen, self._log = asked, run_dir, screen, log
        if asked.tensorboard:
            require_library()
        self._plotter = Plotter(run_dir / "log.pkl", run_dir / "log.png")
        self._page: Dashboard | None = None
        self._events: EventFile | None = None
        self._status: Status | None = None
        self._sent = 0.0

    def measure(self, lanes: Lanes, fitted: RunConfig) -> Callable[[], float | None]:
        """What measures the roof, where somebody would see it: a task, made before the lanes begin."""
        shown = self.screen.interactive or self._asked.dashboard
        if not shown or fitted.train.device != "cpu" or fitted.train.train != "all":
            return lambda: None
        return roof_of(lanes)

    def serve(self) -> None:
        """Open the live page, where it is asked for. Raises UserError where it cannot be."""
        if self._asked.dashboard:
            self._page = Dashboard.open(self._asked.dashboard, self._dir, self.notice)

    def begin(self, config: RunConfig, source: str, step: int, work: Work, gflops: float | None) -> None:
        """The run goes on after `step`. source: of its text. work: of so many first steps. gflops: the roof."""
        self._config, self._source = config, source

        def share(depth: int) -> float | None:  # of the roof, that a token a second takes
            return flops_per_token(replace(config.model, n_layer=depth)) / (gflops * 1e9) if gflops else None

        self._gauges = Gauges(config, work, share)
        if self._asked.tensorboard:
            self._events = EventFile(self._dir / EVENTS, step, self.tell)
        self.screen.start()

    def step(
        self, step: int, loss: float, took: float, seconds: float, progress: float, factor: float, depth: int, data: str
    ) -> None:
        """A step is done, in `took` of the run's `seconds`. data: what the text is doing."""
        train = self._config.train
        self._gauges.step(step, loss, train.batch_size * self._config.context, took, seconds)
        sends = self._page is not None and (progress >= 1 or time.monotonic() - self._sent >= _SEND_SECONDS)
        if sends or self.screen.is_due():
            data = ", ".join(filter(None, [self._source, data]))
            status = self._gauges.status(step, seconds, progress, factor * train.learning_rate, depth, data)
            self._show(status, sends)

    def pausing(self, why: str) -> None:
        """Training pauses just now; or it goes on: ""."""
        if self._status:
            self._show(replace(self._status, pausing=why), self._page is not None)

    def _show(self, status: Status, sends: bool) -> None:
        self._status = status
        self.screen.draw(Panel(self._dir.name, self._config.data.unit, status, self._log.evaluations))
        if self._page and sends:
            self._sent = time.monotonic()
            self._page.send(status)

    def evaluation(self, entry: dict[str, Any]) -> None:
        """An evaluation, with the fields of the run's log."""
        eta = self._gauges.eta(entry["step"], entry["seconds"])
        self.screen.evaluation(entry, self._config.train.steps, eta, self._config.data.unit)
        if self._events:
            self._events.evaluation(entry)

    def went_back(self, step: int) -> None:
        """The run goes on after this step again, and makes what came after anew."""
        if self._events:
            self._events.start(step)

    def notice(self, text: str) -> None:
        """What the user should know now."""
        self.screen.notice(text)

    def tell(self, text: str) -> None:
        """What the user should know now, and find in the log again."""
        self.screen.notice(text)
        self._log.notice(text)

    def warn(self, text: str) -> None:
        """What nobody may miss."""
        self.screen.warning(text)
        self._log.notice(text)

    def saved(self) -> None:
        """The log is on the disk, with something new in it."""
        self._plotter.redraw()

    def close(self, at_once: bool) -> None:
        """Let the picture be finished, and everything else end; one who interrupts does not want to wait."""
        self.screen.close()
        if self._page:
            self._page.close()
        self._plotter.close(0.0 if at_once else 60.0)
        if self._plotter.problem and not at_once:
            self.screen.notice(self._plotter.problem)


def announcement(config: RunConfig, fitted: RunConfig, feed: Feed, micro_batch: int) -> str:
    """What is trained on what, and how."""
    train = config.train
    place = gpu_in_words(fitted) if fitted.train.device == "cuda" else lanes_in_words(fitted.train.lanes)
    trains = "" if train.train == "all" else f", which trains {trained_in_words(config)}"
    micro = f"{micro_batch} at a time" + (", recomputed" if fitted.train.recompute else "")
    sequences = f"{train.batch_size} sequences of {config.context}"
    return f"{feed.describe()}; a step is {sequences}, {micro}, on {place}{trains}"
