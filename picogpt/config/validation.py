"""Checks of what the fields of a configuration hold, and configurations made of what a file says."""

from collections.abc import Callable
from typing import Literal, TypeVar, get_args, get_origin, get_type_hints

from picogpt.errors import UserError, one_line, require, shown

Config = TypeVar("Config")


def from_fields(kind: Callable[..., Config], fields: object, *sequences: str) -> Config:
    """Return a configuration of this kind with fields as JSON has them: lists stand for tuples in `sequences`.

    Raises UserError for a field that is foreign or of another type, and for a sequence that is missing.
    """
    try:
        if not isinstance(fields, dict):
            raise TypeError("its fields have no names")
        values = {name: fields[name] for name in sequences}
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return kind(**{**fields, **tuples})
    except (KeyError, TypeError) as error:
        raise not_a_configuration(error) from None


def not_a_configuration(error: KeyError | TypeError) -> UserError:
    """Return the error for fields that make no configuration."""
    reason = f"{one_line(error)} is missing" if isinstance(error, KeyError) else one_line(error)
    return UserError(f"this is not a configuration of picogpt: {reason}")


def check_limits(config: object, most: dict[str, int]) -> None:
    """Refuse what no machine could hold or finish: a configuration may come from a file, or have a typing error.

    most: the largest number, or the greatest length, of each field. Raises UserError.
    """
    for name, limit in most.items():
        value = getattr(config, name)
        if isinstance(value, int):
            require(value <= limit, f"{name} must be at most {limit:,}, not {shown(value)}")
        elif value is not None:
            require(len(value) <= limit, f"{name} must not be longer than {limit:,}")


def check_types(config: object) -> None:
    """Refuse a value that is not of its field's type: a configuration may come from a file. Raises UserError."""
    for name, hint in get_type_hints(type(config)).items():
        value, choices = getattr(config, name), get_args(hint)
        if get_origin(hint) is Literal:
            require(
                type(value) is str and value in choices,
                f"{name} must be one of {', '.join(choices)}, not {shown(value)}",
            )
        elif get_origin(hint) is tuple:
            require(type(value) is tuple, f"{name} must be a tuple, not {shown(value)}")
        elif hint is float:
            require(
                type(value) in (int, float) and -1e300 < value < 1e300,
                f"{name} must be a finite number, not {shown(value)}",
            )
        else:  # int, bool, str, or one of several
            kinds = [get_origin(choice) or choice for choice in choices or (hint,)]
            require(type(value) in kinds, f"{name} must be of type {_type_name(hint)}, not {shown(value)}")


def _type_name(hint: object) -> str:
    return getattr(hint, "__name__", str(hint))
