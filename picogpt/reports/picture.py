"""Pictures of loss curves, PNG or SVG: of one run, or of several compared.

During training a process of its own draws them, so that matplotlib's memory never enters the trainer:

    python -m picogpt.reports.picture LOG.pkl LOG.png
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from picogpt.errors import UserError
from picogpt.runs.log import LogContent, Values, is_finite, read_log, series
from picogpt.system.files import replace, write_error
from picogpt.system.processes import lower_priority
from picogpt.system.terminal import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS, _DASHES = ("#c8501e", "#2f6fb0", "#2d8a4e", "#8a4fb5", "#b08900", "#5b6770"), ("-", "--", "-.", ":")
_TRAIN_COLOUR, _VAL_COLOUR, _INK = "#8fb3d9", "#c8501e", "#333333"


@dataclass(frozen=True)
class _Curve:
    """A curve to draw."""

    label: str
    values: Values
    colour: str
    dashes: str = "-"


def draw(log: LogContent, name: str, path: Path) -> None:
    """Draw a log from `read_log` under the title `name`, 900 x 540 pixels. Raises OSError if it cannot be written."""
    axis, points = log.axis, log.points
    val = _Curve("validation", series(points, "val_loss"), _VAL_COLOUR)
    curves = [_Curve("train", series(points, "train_loss"), _TRAIN_COLOUR), val]
    _draw(path, name, _subtitle(log.config), axis, "nats a token", curves, best=val.values)


def draw_comparison(losses: Sequence[tuple[str, Values]], title: str, unit: str, axis: str, path: Path) -> None:
    """Draw the losses of several runs, by name, each with its own colour and dashes.

    unit: of the losses. Raises OSError if the picture cannot be written.
    """
    curves = [
        _Curve(name, values, _COLOURS[i % len(_COLOURS)], _DASHES[(i + i // len(_COLOURS)) % len(_DASHES)])
        for i, (name, values) in enumerate(losses)
    ]
    _draw(path, title, "", axis, unit, curves)


def _draw(
    path: Path, title: str, subtitle: str, axis: str, unit: str, curves: Sequence[_Curve], best: Values | None = None
) -> None:
    """Draw a .png or .svg, by the name of `path`. best: a curve whose lowest value is marked."""
    import matplotlib  # only here: importing this module stays quick
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(9, 5.4), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    axes = figure.add_subplot()
    for curve in curves:
        steps, values = curve.values
        if steps.size:
            axes.plot(
                steps,
                values,
                color=curve.colour,
                linestyle=curve.dashes,
                linewidth=1.8 if steps.size <= 1000 else 0.9,
                marker="o" if steps.size <= 30 else "",
                markersize=3.5,
                label=_plain(curve.label),
            )
    if axes.lines:
        if best:
            _mark_best(axes, axis, *best)
        axes.legend(loc="upper right", frameon=False, fontsize=10, labelcolor=_INK)
    else:
        axes.text(0.5, 0.5, "no finite loss yet", transform=axes.transAxes, ha="center", color=_INK)
    axes.set_title(_plain(title), loc="left", fontsize=13, fontweight="bold", color=_INK)
    axes.set_title(_plain(subtitle), loc="right", fontsize=10, color="#777777")
    axes.set_xlabel(axis, color=_INK)
    axes.set_ylabel(f"loss, {unit}", color=_INK)
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
    """Return text in which matplotlib sees neither mathematics ($) nor a label to leave out (_)."""
    shown = visible(text, "utf-8").replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _mark_best(axes: "Axes", axis: str, steps: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> None:
    """Mark the lowest of the values (N,) at the steps (N,) and write it beside the mark."""
    if not values.size:
        return
    step, value = steps[values.argmin()], values.min()
    axes.plot(step, value, "o", color=_VAL_COLOUR, markersize=7, markeredgecolor="white", markeredgewidth=1.2)
    if steps[0] == steps[-1]:  # a single point has no scale
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


def _subtitle(config: dict[str, object]) -> str:
    """Return the number of parameters in words, if the log's config holds it."""
    parameters = config.get("parameters")
    return f"{float(parameters) / 1e6:.2f}M parameters" if type(parameters) is int and is_finite(parameters) else ""


def main(arguments: list[str]) -> int:
    """Draw the log of the first argument as the picture of the second. Returns the exit status."""
    if len(arguments) != 2:
        print("usage: python -m picogpt.reports.picture LOG.pkl LOG.png", file=sys.stderr)
        return 2
    log_path, png_path = map(Path, arguments)
    try:
        draw(read_log(log_path), log_path.absolute().parent.name, png_path)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(write_error(png_path, error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    lower_priority()
    sys.exit(main(sys.argv[1:]))
