"""The loss curve as a picture, drawn by a process of its own: matplotlib's memory never enters the trainer.

python -m picogpt.training.plot LOG.pkl LOG.png
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from picogpt.config import UserError
from picogpt.files import replace
from picogpt.training.background import give_way, start
from picogpt.training.runlog import Values, entries, is_finite, read_log, series, visible

_COLOURS, _DASHES = ("#c8501e", "#2f6fb0", "#2d8a4e", "#8a4fb5", "#b08900", "#5b6770"), ("-", "--", "-.", ":")
_TRAIN_COLOUR, _VAL_COLOUR, _INK = "#8fb3d9", "#c8501e", "#333333"
_REDRAW_SECONDS = 60.0


class Plotter:
    """Redraws the picture of one log in the background, one process at a time.

    A redraw asked for while one runs is remembered and made by the next `redraw` or by `close`.
    """

    def __init__(self, log_path: Path, png_path: Path) -> None:
        self._paths = log_path, png_path
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting = False
        self._next = 0.0
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the last finished redraw failed, as one line for the user, or None."""
        self._running()
        return self._problem

    def redraw(self) -> None:
        """Start drawing the log as it is on the disk, without waiting for the picture.

        Not more than once a minute: a small model is evaluated every second, and a picture takes as long to draw.
        """
        self._waiting = True
        if not self._running() and time.monotonic() >= self._next:
            self._start()

    def close(self, seconds: float = 60.0) -> None:
        """Wait until the last redraw asked for is done, but no longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while self._running() or self._waiting:
            if self._process is None:
                self._start()
                continue
            try:
                self._process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                self._process, self._waiting = None, False
                self._problem = f"{self._paths[1]} was given up, it was not drawn within {seconds:.0f} seconds"

    def _start(self) -> None:
        self._waiting, self._next = False, time.monotonic() + _REDRAW_SECONDS
        try:
            self._process = start_plot(*self._paths)
        except OSError as error:
            self._problem = f"{self._paths[1]} is not drawn, no process can be started ({error.strerror or error})"

    def _running(self) -> bool:
        """Whether a process is drawing; takes note of how a finished one ended."""
        if self._process is None:
            return False
        status = self._process.poll()
        if status is None:
            return True
        self._process = None
        log_path, png_path = self._paths
        why = f'run "python -m picogpt.training.plot {log_path} {png_path}" to see why'
        self._problem = f"{png_path} could not be drawn (exit status {status}): {why}" if status else None
        return False


def start_plot(log_path: Path, png_path: Path) -> subprocess.Popen[bytes]:
    """Draw `png_path` in a background process of low priority that Ctrl-C in the terminal does not reach."""
    return start("picogpt.training.plot", str(log_path), str(png_path))


@dataclass(frozen=True)
class _Curve:
    label: str
    values: Values
    colour: str
    dashes: str = "-"


def draw(log: dict[str, Any], name: str, path: Path) -> None:
    """Draw a log from `read_log` under the title `name`, 900 x 540 pixels. Raises OSError as the disk does."""
    axis, points = entries(log)
    val = _Curve("validation", series(points, "val_loss"), _VAL_COLOUR)
    curves = [_Curve("train", series(points, "train_loss"), _TRAIN_COLOUR), val]
    _draw(path, name, _facts(log["config"]), axis, curves, best=val.values)


def draw_comparison(losses: Sequence[tuple[str, Values]], title: str, axis: str, path: Path) -> None:
    """Draw the losses of several runs, by name, each in a colour and with dashes of its own. Raises OSError."""
    curves = [
        _Curve(name, values, _COLOURS[i % len(_COLOURS)], _DASHES[(i + i // len(_COLOURS)) % len(_DASHES)])
        for i, (name, values) in enumerate(losses)
    ]
    _draw(path, title, "", axis, curves)


def _draw(path: Path, title: str, facts: str, axis: str, curves: Sequence[_Curve], best: Values | None = None) -> None:
    """A .png or .svg, by the name of `path`. best: values whose lowest is marked."""
    import matplotlib  # only here: who asks for a Plotter does not pay for it
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(9, 5.4), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    axes = figure.add_subplot()
    for curve in curves:
        steps, values = curve.values
        if steps.size:
            look: dict[str, Any] = {"marker": "o" if steps.size <= 30 else "", "markersize": 3.5}
            look |= {"linewidth": 1.8 if steps.size <= 1000 else 0.9, "linestyle": curve.dashes}
            axes.plot(steps, values, color=curve.colour, label=_plain(curve.label), **look)
    if axes.lines:
        if best:
            _mark_best(axes, axis, *best)
        axes.legend(loc="upper right", frameon=False, fontsize=10, labelcolor=_INK)
    else:
        axes.text(0.5, 0.5, "no finite loss yet", transform=axes.transAxes, ha="center", color=_INK)
    axes.set_title(_plain(title), loc="left", fontsize=13, fontweight="bold", color=_INK)
    axes.set_title(_plain(facts), loc="right", fontsize=10, color="#777777")
    axes.set_xlabel(axis, color=_INK)
    axes.set_ylabel("loss, nats a token", color=_INK)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", integer=True)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(colors="#555555", labelsize=9)
    temporary = path.with_name(f".{path.name}.tmp")
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text that can be searched
        figure.savefig(temporary, format="svg" if path.suffix.lower() == ".svg" else "png")
    replace(temporary, path)


def _plain(text: str) -> str:
    """Text as it is, in which matplotlib is not to see mathematics, or a label to leave out."""
    shown = visible(text, "utf-8").replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _mark_best(axes: Any, axis: str, steps: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> None:
    if not values.size:
        return
    step, value = steps[values.argmin()], values.min()
    axes.plot(step, value, "o", color=_VAL_COLOUR, markersize=7, markeredgecolor="white", markeredgewidth=1.2)
    if steps[0] == steps[-1]:  # one point has no scale of its own
        axes.set_xlim(step - 1, step + 1)
        axes.set_ylim(value - 1, value + 1)
    late = step > (steps[0] + steps[-1]) / 2
    axes.annotate(
        f"best {value:.4f} at {axis} {step:,.0f}",
        (step, value),
        xytext=(6 if late else -6, 26),
        textcoords="offset points",
        ha="right" if late else "left",
        color=_VAL_COLOUR,
        fontweight="bold",
        arrowprops={"arrowstyle": "-", "color": _VAL_COLOUR, "linewidth": 0.8, "shrinkB": 4},
    )


def _facts(config: dict[str, Any]) -> str:
    """What a config says of itself that fits in a title."""
    parameters = config.get("parameters")
    return f"{float(parameters) / 1e6:.2f}M parameters" if type(parameters) is int and is_finite(parameters) else ""


def main(arguments: list[str]) -> int:
    """Draw `LOG.pkl LOG.png`; returns the exit status."""
    if len(arguments) != 2:
        print("usage: python -m picogpt.training.plot LOG.pkl LOG.png", file=sys.stderr)
        return 2
    log_path, png_path = map(Path, arguments)
    try:
        draw(read_log(log_path), log_path.absolute().parent.name, png_path)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"cannot write {png_path}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    give_way()
    sys.exit(main(sys.argv[1:]))
