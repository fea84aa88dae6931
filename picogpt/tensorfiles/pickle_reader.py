"""Pickles of plain data, read without Python's own unpickler, which can run code.

Python's unpickler imports and calls what a pickle names. This one knows the opcodes that CPython writes for None,
numbers, text, bytes, lists, tuples, and dicts with text or small numbers for keys, in protocols 0 to 5, and no others.
The result is a tree that is at most as large as the pickle: no list, dict or long tuple is in two places, so a walk
over it ends. If the caller gives names, the pickle may call those; nothing is imported for it.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

_OPCODE_LIMIT = 4_000_000  # each may make an object, so this bounds memory
_INT_LIMIT = 1 << 8192  # beyond, arithmetic and printing take long
_DEPTH_LIMIT = 100
_KEY_LIMIT = 1 << 31  # larger numbers can be made to have the same hash
_FEW_ITEMS = 16

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = {"INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
_MARKED = {"LIST", "TUPLE", "DICT", "APPENDS", "SETITEMS"}  # they take all that came after a mark
_FEW = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}  # they take so many
_PUT, _GET = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
_OTHERS = {"PROTO", "FRAME", "MARK", "STOP"}
_NAMING = {"GLOBAL", "INST", "STACK_GLOBAL"}  # known also to say which class a foreign pickle names
_CALLING = {"REDUCE", "NEWOBJ", "BUILD", "BINPERSID"}  # what a pickle does with what is named
_KNOWN = {*_CONSTANTS, *_NUMBERS, *_TEXTS, *_EMPTY, *_MARKED, *_FEW, *_PUT, *_GET, *_OTHERS, *_NAMING, *_CALLING}
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes if opcode.name in _KNOWN}

Container = TypeVar("Container", list[object], dict[object, object])


class ClassNamedError(ValueError):
    """The pickle names something to import, which is the one argument."""


@dataclass(frozen=True)
class Names:
    """The names that a pickle may use. Nothing else is called for it."""

    known: Mapping[str, object]
    """By "module.name": functions that it may call, and values that it may pass to them. They raise ValueError."""
    persistent: Callable[[object], object]
    """Makes an object that lies outside the pickle from the id that the pickle has for it. Raises ValueError."""
    keys: tuple[type, ...] = ()
    """Types of made objects that may be keys of a dict, because each object is equal to itself alone."""


def loads(data: bytes, names: Names | None = None) -> object:
    """Return the value of a pickle that fills `data`. Raises ValueError for all that is not plain data.

    With names, a pickle may use these too; the state it sets on an object (BUILD) is left out.
    """
    value, end = loads_first(data, names)
    if end != len(data):
        raise ValueError("there is something after its end")
    return value


def loads_first(data: bytes, names: Names | None = None) -> tuple[object, int]:
    """Return the value of a pickle that other data may follow, and the pickle's length. Raises as `loads` does."""
    machine = _Machine(data, names)
    try:
        value = machine.run()
    except (IndexError, KeyError):
        raise ValueError("it takes something that is not there") from None
    _check_depth(value)
    return value, machine.position


class _Machine:
    """The pickle machine: a stack, the stacks that marks set aside, and the memo."""

    def __init__(self, data: bytes, names: Names | None) -> None:
        self._file, self._size, self._names = io.BytesIO(data), len(data), names
        self._stack: list[object] = []
        self._aside: list[list[object]] = []
        self._memo: dict[object, object] = {}

    def run(self) -> object:
        for _ in range(_OPCODE_LIMIT):
            code = self._file.read(1)
            if code not in _OPCODES:
                raise ValueError(f"opcode {code!r} is not one of plain data" if code else "it ends too early")
            opcode = _OPCODES[code]
            argument = opcode.arg.reader(self._file) if opcode.arg else None
            if opcode.name == "STOP":
                return self._result()
            self._execute(opcode.name, argument)
        raise ValueError("it asks for too much memory")

    @property
    def position(self) -> int:
        return self._file.tell()

    def _result(self) -> object:
        if len(self._stack) != 1 or self._aside:
            raise ValueError("it is not one value")
        return self._stack[0]

    def _execute(self, name: str, argument: object) -> None:
        stack = self._stack
        if name in _GET:
            value = self._memo[argument]
            if type(value) in (list, dict) or (isinstance(value, tuple) and not _is_small(value)):
                raise ValueError("a list, tuple or dict is in two places")
            stack.append(value)
        elif name in _TEXTS:
            stack.append(argument)
        elif name in _NUMBERS:
            if isinstance(argument, int) and abs(argument) >= _INT_LIMIT:
                raise ValueError("it has a number that is too large")
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _PUT:
            place = len(self._memo) if name == "MEMOIZE" else argument
            if not isinstance(place, int) or not 0 <= place <= self._size:
                raise ValueError("it asks for too much memory")
            self._memo[place] = stack[-1]
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            self._aside.append(stack)
            self._stack = []
        elif name in _MARKED:
            self._stack = self._aside.pop()
            self._put(name, stack)
        elif name in _FEW:
            items = stack[-_FEW[name] :]
            del stack[-_FEW[name] :]
            if len(items) < _FEW[name]:
                raise IndexError
            self._put(name, items)
        elif name == "PROTO" and isinstance(argument, int) and argument > 5:
            raise ValueError(f"protocol {argument} is not known")
        elif name in _NAMING:
            self._push_named(name, argument)
        elif name in _CALLING:
            self._call(name)

    def _push_named(self, name: str, argument: object) -> None:
        """Push what the caller knows by a name: "module name" in the argument, or both words from the stack."""
        words = argument.split(" ") if isinstance(argument, str) else self._stack[-2:]
        if not all(isinstance(word, str) for word in words):
            raise ValueError("it names something, but not in words")
        named = ".".join(map(str, words))
        if name == "INST" or self._names is None or named not in self._names.known:
            raise ClassNamedError(named)
        if argument is None:
            del self._stack[-2:]
        self._stack.append(self._names.known[named])

    def _call(self, name: str) -> None:
        stack, names = self._stack, self._names
        if names is None:
            raise ValueError("it calls something")
        last = stack.pop()
        if name == "BINPERSID":
            stack.append(names.persistent(last))
        elif name != "BUILD":
            function = stack.pop()
            if not any(function is known for known in names.known.values()) or not callable(function):
                raise ValueError("it calls what it may not")
            if not isinstance(last, tuple):
                raise ValueError("it calls with what are no arguments")
            try:
                stack.append(function(*last))
            except TypeError:
                raise ValueError("it calls with other arguments") from None

    def _put(self, name: str, items: list[object]) -> None:
        """Make one value of the items, or put them into the list or dict on top of the stack."""
        if name == "LIST":
            self._stack.append(items)
        elif name.startswith("TUPLE"):
            self._stack.append(tuple(items))
        elif name.startswith("APPEND"):
            self._top(list).extend(items)
        else:
            if name == "DICT":
                self._stack.append({})
            if not all(self._is_key(key) for key in items[::2]):
                raise ValueError("a key of a dict is no text and no small number")
            self._top(dict).update(zip(items[::2], items[1::2], strict=True))

    def _is_key(self, value: object) -> bool:
        if type(value) is int:
            return abs(value) < _KEY_LIMIT
        return type(value) is str or (self._names is not None and type(value) in self._names.keys)

    def _top(self, kind: type[Container]) -> Container:
        top = self._stack[-1]
        if not isinstance(top, kind):
            raise ValueError(f"there is no {kind.__name__} to put something into")
        return top


def _is_small(value: tuple[object, ...]) -> bool:
    """Return whether a tuple holds a few numbers or words only, so that it may be in many places."""
    return len(value) <= _FEW_ITEMS and not any(isinstance(inner, list | tuple | dict) for inner in value)


def _check_depth(value: object) -> None:
    """Raise ValueError for a value nested so deeply that recursion over it would fail."""
    level = [value]
    for _ in range(_DEPTH_LIMIT):
        lists = [inner for inner in level if isinstance(inner, list | tuple)]
        dicts = [inner.values() for inner in level if isinstance(inner, dict)]
        level = [inner for several in (*lists, *dicts) for inner in several]
        if not level:
            return
    raise ValueError("it is nested too deeply")
