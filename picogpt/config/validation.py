"""What the field of a configuration may hold, and how it is said where it does not."""

from typing import Any, Literal, get_args, get_origin, get_type_hints

from picogpt.errors import UserError, require, shown


def not_a_configuration(error: Exception) -> UserError:
    return UserError(f"this is not a configuration of picogpt: {shown(str(error))[1:-1]}")


def check_limits(config: object, most: dict[str, int]) -> None:
    """Refuse what no machine could hold or finish: a config also arrives from files, and fingers slip."""
    for name, limit in most.items():
        value = getattr(config, name)
        if isinstance(value, int):
            require(value <= limit, f"{name} must be at most {limit:,}, not {shown(value)}")
        elif value is not None:
            require(len(value) <= limit, f"{name} must not be longer than {limit:,}")


def check_types(config: object) -> None:
    """Refuse a value that is not of its field's type: a config also arrives from files."""
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


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint))
