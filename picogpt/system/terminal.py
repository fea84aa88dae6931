"""Text for a terminal, and lines to its user where there is no screen."""

import sys


def to_stderr(notice: str) -> None:
    """Tell of something where there is no screen."""
    print(f"picogpt: {notice}", file=sys.stderr)


def visible(text: str, encoding: str) -> str:
    """`text` on one line that any terminal of `encoding` can print: what it cannot show becomes an escape."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)
