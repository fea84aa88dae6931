"""JSON files that another program wrote, config.json above all. A value may be of any type until it is checked."""

import json
from pathlib import Path

from picogpt.errors import UserError, shown

_JSON_MOST = 64 << 20  # bytes; the index of the largest model has some 100 KB

_INTEGER_MOST = 1 << 32


def read_json(path: Path) -> dict[str, object]:
    """Return the object in a JSON file. Raises UserError where the file cannot be read or holds something else."""
    try:
        if path.stat().st_size > _JSON_MOST:
            raise ValueError
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): it belongs beside the weights") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not JSON as it should be: get it again")
    return found


class ConfigFile:
    """The fields of a config.json. A field that is not there counts as the default that is asked for with it."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises UserError as `read_json` does."""
        self.path = path
        self._fields = read_json(path)

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def get(self, name: str, default: object = None) -> object:
        """Return the value of a field, whatever its type is."""
        return self._fields.get(name, default)

    def positive_integer(self, name: str, default: int | None = None) -> int:
        """Return the value of a field. Raises UserError where it is not a positive integer of a sane size."""
        found = self.get(name, default)
        if type(found) is not int or not 0 < found < _INTEGER_MOST:  # type: True is an int to isinstance
            raise UserError(f"{self.path}: {name} is {shown(found)}, where a number is expected: get it again")
        return found

    def require(self, name: str, value: object) -> None:
        """Raise UserError where a field has another value than the one that all of picogpt's models have."""
        found = self.get(name, value)
        if found != value:
            raise UserError(f"{self.path}: {name} is {shown(found)}, and picogpt's models have {value} there alone")

    def end_of_text(self, vocab_size: int) -> int | None:
        """Return the token that ends a text; None where the file names none, or one that is not in the vocabulary."""
        found = self.get("eos_token_id")
        return found if type(found) is int and 0 <= found < vocab_size else None
