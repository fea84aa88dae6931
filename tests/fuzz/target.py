"""What a target is, and how JSON is changed value by value."""

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picogpt.errors import UserError


class Finding(BaseException):
    """Nothing in between may take it for an error of its own."""


@dataclass(frozen=True)
class Target:
    """`run` is given a folder of its own and an input; `seeds` makes valid ones."""

    run: Callable[[Path, bytes], None]
    seeds: Callable[[Path], list[bytes]]
    errors: tuple[type[Exception], ...] = (UserError,)
    is_json: bool = False  # inputs are changed value by value

    def __call__(self, folder: Path, data: bytes) -> None:
        try:
            self.run(folder, data)
        except self.errors as error:
            if isinstance(error, UserError) and "\n" in str(error):
                raise Finding(f"more than one line: {error}") from error


def parsed(data: bytes) -> Any:
    """What an input is as JSON; those that are none are not what the target is about."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def as_json(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


STRANGE: list[Any] = [-1, 0, 1, 7, 1 << 31, 1 << 64, 10**400, 0.5, -1e308, float("nan")]
STRANGE += ["", "x", "\n", "\ud800", "../x", "x" * 2000, "3", "picogpt", "fp32", None, True, [], {}, [[]]]


def changed(data: bytes, chance: random.Random) -> bytes:
    """JSON with one of its values replaced, left out or doubled."""
    whole = [parsed(data)]
    places: list[tuple[Any, Any]] = [(whole, 0)]
    for place, key in places:  # which grows meanwhile
        inner = place[key]
        if isinstance(inner, dict | list):
            places += [(inner, within) for within in (inner if isinstance(inner, dict) else range(len(inner)))]
    place, key = chance.choice(places)
    match chance.randrange(4):
        case 0 if place is not whole:
            del place[key]
        case 1 if isinstance(place, list) and place is not whole:
            place.append(place[key])
        case _:
            other, where = chance.choice(places)
            place[key] = json.loads(json.dumps(other[where])) if chance.random() < 0.2 else chance.choice(STRANGE)
    return json.dumps(whole[0]).encode()


_HARM = ("os.", "subprocess.", "import", "exec", "compile", "ctypes.", "socket.", "marshal.", "pickle.", "shutil.")
_watching = False
"".encode("raw_unicode_escape")  # its codec is imported when it is first used, by protocol 0


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event.startswith(_HARM):
        raise Finding(f"{event} {arguments}")


sys.addaudithook(_audit)


def watched(run: Callable[[], object]) -> None:
    """Nothing may be imported, run or started meanwhile."""
    global _watching
    _watching = True
    try:
        run()
    finally:
        _watching = False
