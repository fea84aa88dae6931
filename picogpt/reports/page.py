"""Reports of runs as one HTML page that needs nothing else: no network, no other file.

The text comes from logs, which anybody may have written. So the templates escape it, characters that a browser would
not show become visible escapes, and the page's policy lets nothing run or load but the page's own few lines.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from picogpt.reports.chart import Chart, Curve, chart
from picogpt.reports.comparison import all_settings, common_axis, difference, differing_settings, notes
from picogpt.reports.comparison_view import COLUMNS, LEGEND, axis_in_words, drawn_loss, row
from picogpt.reports.number_format import duration, number, signed
from picogpt.reports.summary import Summary
from picogpt.system.files import write_durably, write_error
from picogpt.system.terminal import visible


def _readable(value: object) -> object:
    """Return a value as a template may show it: in text, no character hides others or changes their direction."""
    if not isinstance(value, str) or hasattr(value, "__html__"):  # a number, or HTML that is safe
        return value
    return "\n".join(visible(line, "utf-8") for line in value.split("\n"))


_FOLDER = Path(__file__).parent / "templates"
_TEMPLATES = Environment(
    loader=FileSystemLoader(_FOLDER),
    autoescape=True,
    finalize=_readable,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
STYLE, SCRIPT = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "live.js"))
_COLOURS, _DASHES = 6, 5  # how many the style sheet has
_SAMPLE_CHARACTERS, _EVENTS = 5_000, 40  # at most on a page: of a sample, and of a run


def csp_hash(text: str) -> str:
    """Return the source that allows this style or script in a Content-Security-Policy (W3C CSP level 3)."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


POLICY = f"default-src 'none'; style-src {csp_hash(STYLE)}; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class PageRun:
    """A run as the template shows it."""

    run: Summary
    look: str
    """Classes of its curves in the style sheet: colour and dashes."""
    figures: list[tuple[str, str]]
    """Its key figures, by name."""
    settings: dict[str, str]
    samples: list[tuple[str, str]]
    """The first and the last, each with the step it was written at."""
    events: list[str]
    """What was done about divergence, the last ones."""
    notices: list[str]
    """The last ones."""
    left_out: int
    """How many events and notices came before these."""
    verdict: str
    """"better" or "worse" than the first run, or nothing."""
    difference: str
    """By how many percent its loss is above the first run's, or nothing."""


def write_page(runs: Sequence[Summary], path: Path) -> None:
    """Write the page of these runs. Raises UserError if the file cannot be written."""
    try:
        write_durably(path, page(runs).encode())
    except OSError as error:
        raise write_error(path, error) from error


def page(runs: Sequence[Summary]) -> str:
    """Return the page of these runs, as they are now."""
    title = " · ".join(run.name for run in runs[:4]) + (f" and {len(runs) - 4} more" if runs[4:] else "")
    return render("page.html", title=title, policy=POLICY, style=STYLE, script="", report=report(runs), live="")


def report(runs: Sequence[Summary], problem: str = "") -> str:
    """Return the part of a page that comes from logs. problem: why there is nothing to show, if so."""
    several = len(runs) > 1
    return render(
        "report.html",
        runs=[_page_run(i, run, runs[0]) for i, run in enumerate(runs)],
        problem=problem,
        chart=_loss_chart(runs) if runs else None,
        chart_title=axis_in_words(runs) if several else "training and validation loss in nats a token",
        columns=COLUMNS if several else (),
        rows=[row(run, runs) for run in runs] if several else [],
        is_validation_alone=bool(runs) and drawn_loss(runs)[0] != "val_loss",
        legend=LEGEND,
        notes=notes(runs) if several else [],
        differing=differing_settings(runs) if runs else {},
    )


def render(template: str, **variables: object) -> str:
    """Return the text of a template with these variables."""
    return _TEMPLATES.get_template(template).render(**variables)


def _page_run(i: int, run: Summary, first: Summary) -> PageRun:
    """Return run `i` of a page, beside the first one."""
    best, percent = run.best, difference(run, first) if i else None
    events = [f"step {event.step:,}: {event.text}" for event in run.log.divergence]
    notices = run.log.notices
    whole = f" ({100 * run.share:.0f} % of the run)" if run.share is not None and run.share < 1 else ""
    figures = {
        "best": best and f"{best[1]:.4f} nats a token at {run.axis} {best[0]:,.0f}",
        "training loss": number(run.train_loss, ".4f") + " nats a token" * (run.train_loss is not None),
        "bits a character": number(run.bits_per_char, ".3f"),
        "bits a byte": number(run.bits_per_byte, ".3f"),
        "unknown characters": run.unknown and f"{run.unknown:.1%}",
        "parameters": number(run.parameters, ",.0f"),
        "steps": number(run.steps, ",.0f") + whole,
        "tokens": number(run.tokens, ",.0f"),
        "time": duration(run.seconds),
        "tokens/s": number(run.tokens_per_second, ",.0f"),
        "peak memory": run.memory_mb and f"{run.memory_mb:,.0f} MB",
        "machine": run.machine,
    }
    return PageRun(
        run,
        _look(i),
        [(name, value) for name, value in figures.items() if value and value != "-"],
        all_settings(run),
        _samples(run),
        events[-_EVENTS:],
        notices[-_EVENTS:],
        max(0, len(events) - _EVENTS) + max(0, len(notices) - _EVENTS),
        "" if percent is None or abs(percent) < 0.005 else "worse" if percent > 0 else "better",
        signed(percent) if percent is not None else "",
    )


def _samples(run: Summary) -> list[tuple[str, str]]:
    """Return the first sample and the last, each with the step it was written at."""
    written = [(point.step, point.sample) for point in run.points if point.sample]
    ends = written[:1] + written[1:][-1:]
    return [(f"{run.axis} {step:,}", _shortened(sample)) for step, sample in ends]


def _shortened(text: str) -> str:
    return text[:_SAMPLE_CHARACTERS] + ("..." if len(text) > _SAMPLE_CHARACTERS else "")


def _loss_chart(runs: Sequence[Summary]) -> Chart | None:
    axis, field = common_axis(runs), drawn_loss(runs)[0]
    kinds = [("validation", field, "")]
    if field == "val_loss":
        kinds = [("training", "train_loss", " train"), *kinds]
    curves = [
        Curve(f"{run.name}: {name}", run.curve(field, axis), _look(i) + look)
        for name, field, look in kinds
        for i, run in enumerate(runs)
    ]
    return chart(curves, axis)


def _look(i: int) -> str:
    """Return the classes of run `i`: no two of the first thirty runs share both colour and dashes."""
    return f"c{i % _COLOURS} d{i % _DASHES}"
