"""The loss curve as a picture, drawn by a process of its own: matplotlib's memory never enters the trainer.

python -m picogpt.training.plot LOG.pkl LOG.png
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from picogpt.config import UserError
from picogpt.files import replace
from picogpt.training.runlog import entries, is_finite, read_log, series, visible

_ROOT = Path(__file__).parents[2]  # the folder picogpt is imported from
_TRAIN_COLOUR, _VAL_COLOUR, _INK = "#8fb3d9", "#c8501e", "#333333"


class Plotter:
    """Redraws the picture of one log in the background, one process at a time.

    A redraw asked for while one runs is remembered and made by the next `redraw` or by `close`.
    """

    def __init__(self, log_path: Path, png_path: Path) -> None:
        self._paths = log_path, png_path
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting = False
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the last finished redraw failed, as one line for the user, or None."""
        self._running()
        return self._problem

    def redraw(self) -> None:
        """Start drawing the log as it is on the disk, without waiting for the picture."""
        self._waiting = True
        if not self._running():
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
        self._waiting = False
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
    search = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP
    return subprocess.Popen(
        [sys.executable, "-m", "picogpt.training.plot", str(log_path), str(png_path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
        start_new_session=True,
        creationflags=flags,
    )


def draw(log: dict[str, Any], name: str, png_path: Path) -> None:
    """Draw a log from `read_log` under the title `name`, 900 x 540 pixels. Raises OSError as the disk does."""
    from matplotlib.figure import Figure  # only here: who asks for a Plotter does not pay for matplotlib
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    axis, points = entries(log)
    figure = Figure(figsize=(9, 5.4), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    axes = figure.add_subplot()
    for field, label, colour in (("train_loss", "train", _TRAIN_COLOUR), ("val_loss", "validation", _VAL_COLOUR)):
        steps, values = series(points, field)
        if steps.size:
            marker = "o" if steps.size <= 30 else ""
            width = 1.8 if steps.size <= 1000 else 0.9
            axes.plot(steps, values, color=colour, linewidth=width, marker=marker, markersize=3.5, label=label)
    if axes.lines:
        _mark_best(axes, axis, *series(points, "val_loss"))
        axes.legend(loc="upper right", frameon=False, fontsize=10, labelcolor=_INK)
    else:
        axes.text(0.5, 0.5, "no finite loss yet", transform=axes.transAxes, ha="center", color=_INK)
    axes.set_title(visible(name, "utf-8").replace("$", r"\$"), loc="left", fontsize=13, fontweight="bold", color=_INK)
    axes.set_title(_facts(log["config"]).replace("$", r"\$"), loc="right", fontsize=10, color="#777777")
    axes.set_xlabel(axis, color=_INK)
    axes.set_ylabel("loss, nats a token", color=_INK)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", integer=True)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(colors="#555555", labelsize=9)
    temporary = png_path.with_name(f".{png_path.name}.tmp")
    figure.savefig(temporary, format="png")
    replace(temporary, png_path)


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
    if sys.platform == "win32":
        psutil.Process().nice(psutil.IDLE_PRIORITY_CLASS)
    else:
        os.nice(10)
    sys.exit(main(sys.argv[1:]))
