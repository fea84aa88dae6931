"""All who look at a run: the screen, the notices of its log, its picture, TensorBoard and the live page."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from picogpt.config import MonitoringConfig, RunConfig
from picogpt.engine.lanes import Lanes
from picogpt.engine.peak_flops import peak_flops_on
from picogpt.model.flops import flops_per_token
from picogpt.monitoring.dashboard import Dashboard
from picogpt.monitoring.gauges import Gauges
from picogpt.monitoring.panel import Panel
from picogpt.monitoring.plotter import Plotter
from picogpt.monitoring.screen import Screen
from picogpt.monitoring.status import Status
from picogpt.monitoring.tensorboard import TensorBoardWriter, require_library
from picogpt.runs.layout import TENSORBOARD
from picogpt.runs.log import RunLog

Work = Callable[[int], float]

_SEND_SECONDS = 1.0


class Observers:
    """Told of everything as it happens; hands it on to whoever is there, and costs training next to nothing."""

    def __init__(self, asked: MonitoringConfig, run_dir: Path, screen: Screen, log: RunLog) -> None:
        """Raises UserError where a package is missing."""
        self._asked, self._dir, self.screen, self._log = asked, run_dir, screen, log
        if asked.tensorboard:
            require_library()
        self._plotter = Plotter(run_dir / "log.pkl", run_dir / "log.png")
        self._page: Dashboard | None = None
        self._events: TensorBoardWriter | None = None
        self._status: Status | None = None
        self._sent = 0.0

    def measure(self, lanes: Lanes, fitted: RunConfig) -> Callable[[], float | None]:
        """What measures the roof, where somebody would see it: a task, made before the lanes begin."""
        shown = self.screen.interactive or self._asked.dashboard
        if not shown or fitted.train.device != "cpu" or fitted.train.train != "all":
            return lambda: None
        return peak_flops_on(lanes)

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
            self._events = TensorBoardWriter(self._dir / TENSORBOARD, step, self.tell)
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
