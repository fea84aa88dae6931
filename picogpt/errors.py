"""The errors a user can put right, and how values are shown in a message."""


class UserError(Exception):
    """Something the user can put right: one line that says what is wrong and what to do."""


def install_extra(name: str) -> str:
    """Tell how to get an extra: from picogpt's own folder, since the registry's `picogpt` is another program."""
    return f"in picogpt's folder run: python -m pip install --editable '.[{name}]'"


def require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def shown(value: object) -> str:
    """A value of any origin for a message: short, on one line, in characters that every terminal takes."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or what is nested as deeply
        text = f"a {type(value).__name__} beyond all sense"
    return text if len(text) <= 80 else f"{text[:77]}..."
