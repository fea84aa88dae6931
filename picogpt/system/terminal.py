"""Text for a terminal, and lines to its user where there is no screen."""

import sys

from picogpt.errors import escaped


def to_stderr(notice: str) -> None:
    """Print a line to the user where there is no screen."""
    print(f"picogpt: {notice}", file=sys.stderr)


def visible(text: str, encoding: str) -> str:
    """Return `text` on one line that any terminal of `encoding` can print: other characters become escapes."""
    return escaped(text).encode(encoding, "backslashreplace").decode(encoding)
