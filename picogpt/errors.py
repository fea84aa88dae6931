"""The error of a problem the user can solve, and how values and other errors are shown in a message."""


class UserError(Exception):
    """A problem the user can solve: one line that says what is wrong and what to do."""


def install_extra(name: str) -> str:
    """Return how to install an extra: from picogpt's own folder, since the registry's `picogpt` is another program."""
    return f"in picogpt's folder run: python -m pip install --editable '.[{name}]'"


def require(condition: bool, message: str) -> None:
    """Raise UserError with this message unless the condition holds."""
    if not condition:
        raise UserError(message)


def shown(value: object) -> str:
    """Return a value of any origin for a message: short, on one line, all printable."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists nested too deeply
        text = f"a value of type {type(value).__name__}, too large to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


def one_line(error: object, limit: int = 120) -> str:
    """Return the text of an error for a message: on one line, at most `limit` characters of it, all printable."""
    return escaped(" ".join(str(error).split())[:limit])


def escaped(text: str) -> str:
    """Return the text with an escape for every character that is not printable, line ends included."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
