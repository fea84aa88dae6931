"""The loss curve as a picture, drawn by a process of its own: matplotlib's memory never enters the trainer.

python -m picogpt.training.plot LOG.pkl LOG.png
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from picogpt.errors import UserError
from picogpt.runs.log import LogContent, Values, is_finite, read_log, series
from picogpt.system.files import replace
from picogpt.system.processes import give_way
from picogpt.system.terminal import visible

_COLOURS, _DASHES = ("#c8501e", "#2f6fb0", "#2d8a4e", "#8a4fb5", "#b08900", "#5b6770"), ("-", "--", "-.", ":")

_TRAIN_COLOUR, _VAL_COLOUR, _INK = "#8fb3d9", "#c8501e", "#333333"


@dataclass(frozen=True)
class _Curve:
    label: str
    values: Values
    colour: str
    dashes: str = "-"


def draw(log: LogContent, name: str, path: Path) -> None:
    """Draw a log from `read_log` under the title `name`, 900 x 540 pixels. Raises OSError as the disk does."""
    axis, points = log.axis, log.points
    val = _Curve("validation", series(points, "val_loss"), _VAL_COLOUR)
    curves = [_Curve("train", series(points, "train_loss"), _TRAIN_COLOUR), val]
    _draw(path, name, _facts(log.config), axis, curves, best=val.values)


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


def _facts(config: dict[str, object]) -> str:
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
