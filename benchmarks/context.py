"""`python -m benchmarks.context`: what each way to continue after the first window is worth.

Reads the same sequences of ten windows with every `--context` and several overlaps as a decoder would, but a window at
once, and prints the loss over the tokens after the first window. The picture shows it by the distance from a border.

B sequences   T tokens   W tokens of a window
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from picogpt import UserError, load
from picogpt.commands.options import parse
from picogpt.config import DataConfig
from picogpt.data.loader import validation_windows
from picogpt.data.prepare import prepare
from picogpt.engine import no_grad
from picogpt.evaluation.loss import token_losses
from picogpt.inference.language_model import LanguageModel
from picogpt.inference.windows import REACH
from picogpt.runs.layout import DATASET
from picogpt.system.terminal import to_stderr

Ids = npt.NDArray[np.integer]
Losses = npt.NDArray[np.float64]
Span = tuple[int, int]

PROGRAM = "python -m benchmarks.context"
WINDOW = "window"
SHARES = (0, 1 / 8, 1 / 4, 1 / 2)  # of a window, which the next one reads again
CUTS = 4  # of the W places where `original` cuts a sequence: every W/4th is measured
EDGES = (0, 1, 2, 4, 8, 16, 32, 64)  # between the points of the picture, in tokens


@dataclass(frozen=True)
class Context:
    """Measure the loss after the first window, for each --context and --overlap."""

    runs: tuple[str, ...]
    """Trained runs in logs/, or paths of checkpoints."""
    data: str = "sample"
    """The text; its validation part is read."""
    sequences: int = 16
    """Sequences of ten windows."""
    plot: str = ""
    """Draw the loss by the distance from the last border into this file (.png, .svg), for the first run."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Setting:
    """A context and an overlap, and the loss with them: a row of the report."""

    context: str
    overlap: int
    loss: float
    """In nats a token, over all tokens after the first window."""
    curve: list[float]
    """The loss by the number of tokens since the last border."""


def measure(model: LanguageModel, x: Ids, y: Ids) -> list[Setting]:  # (B, T), (B, T)
    """Measure every context and overlap on sequences x, whose next tokens are y."""
    T, W, slot = x.shape[1], model.config.context_len, model.config.context_slot
    settings = []
    for overlap in [int(share * W) for share in SHARES]:
        spans = [(start, start + W) for start in range(0, T - W + 1, W - overlap)]
        for rolling in (True, False) if slot else (False,):
            losses = [loss[:, overlap:] for loss in list(read(model, x, y, spans, rolling))[1:]]
            curve = np.mean(losses, axis=(0, 1))
            settings.append(Setting("rolling" if rolling else WINDOW, overlap, float(curve.mean()), curve.tolist()))
    for rolling in (True, False) if slot else (False,):
        losses = []
        for cut in range(1, W, max(1, W // CUTS)):
            spans = [(0, cut), *((start, start + W) for start in range(cut, T - W + 1, W))]
            losses += [loss[:, -1] for loss in list(read(model, x, y, spans, rolling))[1:]]
        loss = float(np.mean(losses))
        settings.append(Setting("original" if rolling else WINDOW, W - 1, loss, [loss]))
    return settings


def read(model: LanguageModel, x: Ids, y: Ids, spans: list[Span], rolling: bool) -> Iterator[Losses]:
    """Yield the losses (B, stop - start) of each window, one after the other."""
    context = None
    for start, stop in spans:
        with no_grad():
            hidden = model.model.hidden(x[:, start:stop], context)
            logits = model.model.logits(hidden).data[:, int(model.config.context_slot) :]
        context = hidden.mean(axis=1) if rolling else None
        yield token_losses(logits, y[:, start:stop])


def sequences(model: LanguageModel, args: Context) -> tuple[Ids, Ids]:  # -> (B, T), (B, T)
    """Return sequences of the validation text, and their next tokens."""
    data = prepare(DataConfig(args.data), DATASET, to_stderr, model.tokenizer)
    return validation_windows(data.val, REACH * model.config.context_len, args.sequences)


def draw(settings: list[Setting], title: str, path: Path) -> None:
    """Draw the loss by the distance from the last border into a file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    colours = {overlap: f"C{i}" for i, overlap in enumerate(dict.fromkeys(setting.overlap for setting in settings))}
    for setting in settings:
        colour, line = colours[setting.overlap], "--" if setting.context == WINDOW else "-"
        label = f"{setting.context}, overlap {setting.overlap}: {setting.loss:.3f}"
        if len(setting.curve) == 1:
            axes.axhline(setting.loss, label=label, linewidth=1, color=colour, linestyle=line)
            continue
        edges = [edge for edge in EDGES if edge < len(setting.curve)] + [len(setting.curve)]
        places = [(first + last) / 2 + 0.5 for first, last in pairwise(edges)]
        means = [float(np.mean(setting.curve[first:last])) for first, last in pairwise(edges)]
        axes.plot(places, means, label=label, marker=".", color=colour, linestyle=line)
    axes.set(xlabel="tokens that the window has written", ylabel="loss, nats a token", title=title, xscale="log")
    axes.set_xticks([1, *EDGES[2:], 128], labels=[str(tick) for tick in (1, *EDGES[2:], 128)], minor=False)
    axes.minorticks_off()
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str]) -> int:
    """Measure and print. Returns the exit status: 2 for what the user can put right."""
    try:
        report(parse(Context, PROGRAM, argv))
    except UserError as error:
        print(f"context: {error}", file=sys.stderr)
        return 2
    return 0


def report(args: Context) -> None:
    """Measure the runs and print the result. Raises UserError."""
    measured: dict[str, list[Setting]] = {}
    for run in args.runs:
        model = load(run)
        if not model.config.n_layer:
            raise UserError(f"{run} is a bigram table, which has no window")
        measured[run] = measure(model, *sequences(model, args))
    if args.plot:
        draw(measured[args.runs[0]], f"{args.runs[0]} on {args.data}", Path(args.plot))
    if args.json:
        print(json.dumps({run: [asdict(setting) for setting in settings] for run, settings in measured.items()}))
        return
    table = Table(title=f"loss after the first window of {args.data}", title_justify="left", box=None)
    table.add_column("run", overflow="fold")
    table.add_column("context")
    for column in ("overlap", "nats a token", "with an empty slot", "gain"):
        table.add_column(column, justify="right")
    for run, settings in measured.items():
        empty = {setting.overlap: setting.loss for setting in settings if setting.context == WINDOW}
        for setting in settings:
            if setting.context != WINDOW or len(empty) == len(settings):
                gain = empty[setting.overlap] - setting.loss
                losses = (f"{setting.loss:.4f}", f"{empty[setting.overlap]:.4f}", f"{gain:+.4f}")
                table.add_row(run, setting.context, str(setting.overlap), *losses)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
