"""Numbers as people read them: counts, durations, percentages, learning rates and sizes."""

from picogpt.config.training import NO_LIMIT


def count(number: float | None) -> str:
    """Return a count, a large one in three digits with its unit, as 6.34M; "-" for None."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if number is not None and abs(number) >= 0.9995 * size:  # what would be rounded up to it
            return f"{number / (1e3 if unit == 'k' else size):.3g}{unit}"
    return "-" if number is None else f"{number:,.0f}"


def duration(seconds: float | None) -> str:
    """Return days, where there are some, hours, minutes and seconds, as 1 day, 2:03:04; "-" for None."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    in_words = f"{days} day{'' if abs(days) == 1 else 's'}, " if days else ""
    return f"{in_words}{hours}:{minutes:02}:{rest:02}"


def signed(percent: float | None) -> str:
    """Return percent with a sign, as +1.14 %; "0.00 %" for what rounds to it, "-" for None."""
    if percent is None:
        return "-"
    return "0.00 %" if abs(percent) < 0.005 else f"{percent:+.2f} %"


def number(value: float | None, form: str) -> str:
    """Return a value in a format such as ",.0f"; "-" for None."""
    return "-" if value is None else format(value, form)


def rate(value: float) -> str:
    """Return a learning rate in a few characters."""
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def steps_done(step: int, total: int, between: str) -> str:
    """Return the steps that are done, and all that there are; only the first where its minutes end a run."""
    return f"{step:,}" if total >= NO_LIMIT else f"{step:,}{between}{total:,}"


def size(count: int) -> str:
    """Return a number of bytes in MB or GB."""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:,.0f} MB"
