"""The observers of a run: the screen, its picture, TensorBoard and the live page."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from picogpt.config import MonitoringConfig
from picogpt.model.flops import flops_per_token
from picogpt.monitoring.dashboard import Dashboard
from picogpt.monitoring.gauges import Gauges
from picogpt.monitoring.panel import Panel
from picogpt.monitoring.plotter import Plotter
from picogpt.monitoring.screen import Screen
from picogpt.monitoring.status import Status
from picogpt.monitoring.tensorboard import TensorBoardWriter, require_library
from picogpt.runs.layout import LOG, PICTURE, TENSORBOARD
from picogpt.runs.log import Evaluation
from picogpt.training.observer import RunInfo, StepInfo

_SEND_SECONDS = 1.0


class Observers:
    """An `Observer` that passes on to all others what training tells it; training/observer.py describes its methods."""

    def __init__(
        self,
        config: MonitoringConfig,
        run_dir: Path,
        should_continue: Callable[[Evaluation], bool] = lambda _: True,
        screen: Screen | None = None,
    ) -> None:
        """config: which observers there are. should_continue: decides after each evaluation whether training continues.

        Raises UserError if a package is missing.
        """
        self._config, self._dir, self._should_continue = config, run_dir, should_continue
        self.screen = screen or Screen()
        if config.tensorboard:
            require_library()
        self._plotter = Plotter(run_dir / LOG, run_dir / PICTURE)
        self._page: Dashboard | None = None
        self._tensorboard: TensorBoardWriter | None = None
        self._info: RunInfo | None = None
        self._gauges: Gauges | None = None
        self._status: Status | None = None
        self._sent = 0.0

    @property
    def wants_peak_flops(self) -> bool:
        return bool(self.is_attended or self._config.dashboard)

    @property
    def is_attended(self) -> bool:
        return self.screen.interactive

    def notice(self, text: str, loud: bool = False) -> None:
        if loud:
            self.screen.warning(text)
        else:
            self.screen.notice(text)

    def interrupted(self, text: str) -> None:
        self.screen.interrupt(text)

    def open(self) -> None:
        if self._config.dashboard:
            self._page = Dashboard.open(self._config.dashboard, self._dir, self.notice)

    def begin(self, info: RunInfo) -> None:
        self._info = info
        self._gauges = Gauges(info.config, info.work, lambda depth: _least_seconds(info, depth))

        if self._config.tensorboard:
            self._tensorboard = TensorBoardWriter(self._dir / TENSORBOARD, info.step, info.notify)
        self.screen.start()

    def step(self, info: StepInfo) -> None:
        assert self._gauges is not None and self._info is not None
        self._gauges.step(info)
        sends = self._page is not None and (info.progress >= 1 or time.monotonic() - self._sent >= _SEND_SECONDS)
        if sends or self.screen.is_due():
            data = ", ".join(filter(None, [self._info.source, info.data]))
            self._show(self._gauges.status(info, data), sends)

    def pausing(self, why: str) -> None:
        if self._status:
            self._show(replace(self._status, pausing=why), self._page is not None)

    def _show(self, status: Status, sends: bool) -> None:
        assert self._info is not None
        self._status = status
        self.screen.draw(Panel(self._dir.name, status, self._info.log.evaluations))
        if self._page and sends:
            self._sent = time.monotonic()
            self._page.send(status)

    def evaluation(self, evaluation: Evaluation) -> None:
        assert self._gauges is not None and self._info is not None
        config, eta = self._info.config, self._gauges.eta(evaluation.step, evaluation.seconds or 0.0)
        self.screen.evaluation(evaluation, config.train.steps, eta)
        if self._tensorboard:
            self._tensorboard.evaluation(evaluation)

    def should_continue(self, evaluation: Evaluation) -> bool:
        return self._should_continue(evaluation)

    def went_back(self, step: int) -> None:
        if self._tensorboard:
            self._tensorboard.start(step)

    def saved(self) -> None:
        self._plotter.redraw()

    def close(self, at_once: bool) -> None:
        self.screen.close()
        if self._page:
            self._page.close()
        self._plotter.close(0.0 if at_once else 60.0)
        if self._plotter.problem and not at_once:
            self.screen.notice(self._plotter.problem)


def _least_seconds(info: RunInfo, depth: int) -> float | None:
    """Return the seconds for a token with `depth` blocks if only matrix products took time; None if not known."""
    if not info.peak_gflops:
        return None
    return flops_per_token(replace(info.config.model, n_layer=depth)) / (info.peak_gflops * 1e9)
