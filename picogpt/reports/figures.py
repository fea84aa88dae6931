"""Numbers as people read them."""

from datetime import timedelta


def count(number: float | None) -> str:
    """Three digits of a large number: 6.34M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if number is not None and abs(number) >= 0.9995 * size:  # what would be rounded up to it
            return f"{number / (1e3 if unit == 'k' else size):.3g}{unit}"
    return "-" if number is None else f"{number:,.0f}"


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def signed(percent: float | None) -> str:
    """Always with its sign, but for what is no difference in two decimals."""
    if percent is None:
        return "-"
    return "0.00 %" if abs(percent) < 0.005 else f"{percent:+.2f} %"


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def rate(value: float) -> str:
    """A learning rate in a few characters."""
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def size(count: int) -> str:
    """Bytes in MB or GB."""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:,.0f} MB"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, with days where there are some."""
    return str(timedelta(seconds=round(seconds)))
