"""Pickles of plain data come back as from Python's own unpickler; all others are refused, and nothing is run."""

import collections
import os
import pickle
import pickletools
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.tensorfiles.pickle_reader import ClassNamedError, loads

FEW = settings(max_examples=80, deadline=None)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)


def plain(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(max_size=4), inner, max_size=4)
            | st.lists(inner, max_size=5).map(tuple)
        ),
        max_leaves=20,
    )


def refused(content: bytes) -> str:
    """Why, in one line; every error but ValueError is raised."""
    with pytest.raises(ValueError) as error:
        loads(content)
    assert "\n" not in str(error.value) or isinstance(error.value, ClassNamedError)
    return str(error.value)


@pytest.mark.parametrize("protocol", range(6))
@FEW
@given(data=st.data())
def test_plain_data_comes_back(protocol: int, data: st.DataObject) -> None:
    leaves = LEAVES | st.binary(max_size=20) if protocol >= 3 else LEAVES  # before, bytes were made by a function
    content = pickle.dumps(data.draw(plain(leaves)), protocol)
    assert repr(loads(content)) == repr(pickle.loads(content))  # repr, because NaN is equal to nothing
    assert repr(loads(pickletools.optimize(content))) == repr(pickle.loads(content))


@pytest.mark.parametrize("protocol", range(6))
def test_sizes_that_have_opcodes_of_their_own(protocol: int) -> None:
    numbers = [
        sign * (1 << bits) + more for bits in (7, 8, 15, 16, 31, 32, 2000) for sign in (1, -1) for more in (-1, 0)
    ]
    texts = {"x" * size: ("y" * size,) * 2 for size in (0, 1, 255, 256, 70_000)}
    value = {"numbers": numbers, "texts": texts, "many": list(range(3000)), "three": (1, 2, 3), "lone": "\ud800\n\\"}
    assert loads(pickle.dumps(value, protocol)) == value


@FEW
@given(st.binary(max_size=60))
def test_random_bytes(content: bytes) -> None:
    refused(b"\xff" + content)
    for begin in (b"", b"\x80\x04", b"\x80\x04}\x94(", b"(lp0\n"):
        with suppress(ValueError):
            loads(begin + content)


@FEW
@given(st.data())
def test_a_mutated_pickle_is_refused_or_plain(data: st.DataObject) -> None:
    protocol = data.draw(st.integers(0, 5))
    content = bytearray(pickle.dumps({"losses": {"train": [1.5, None]}, "text": "abc", "n": (1, True)}, protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = loads(bytes(content))
        expected = pickle.loads(bytes(content))  # which has no class in it, or the line above would have refused it
    except (
        ValueError,
        pickle.UnpicklingError,
        EOFError,
        OverflowError,
    ):  # the last three for frames of a wrong size, which are no matter
        return
    assert repr(found) == repr(expected)


@FEW
@given(st.data())
def test_one_cut_short_or_gone_on_with(data: st.DataObject) -> None:
    content = pickle.dumps(data.draw(plain(LEAVES)), data.draw(st.integers(0, 5)))
    refused(content[: data.draw(st.integers(0, len(content) - 1))])
    assert refused(content + data.draw(st.binary(min_size=1, max_size=9))) == "there is something after its end"


# Code


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


class Stateful:
    def __init__(self) -> None:
        self.value = 1


COMMAND = b"mkdir exploded"
RUN = {
    "GLOBAL": b"cos\nsystem\n(V" + COMMAND + b"\ntR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0e" + COMMAND + b"\x85R.",
    "INST": b"(V" + COMMAND + b"\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nV" + COMMAND + b"\no.",
    "NEWOBJ": b"\x80\x02cos\nsystem\nV" + COMMAND + b"\n\x85\x81.",
    "a dotted name": b"\x80\x04\x8c\x07picogpt\x8c\x09os.system\x93\x8c\x0e" + COMMAND + b"\x85R.",
    "extension": b"\x80\x02\x82\x01)R.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "persistent": b"Pname\n.",
    "BINPERSID": b"Vname\nQ.",
    "BUILD": b"(dVa\nb.",
    "REDUCE of text": b"Vos.system\n(V" + COMMAND + b"\ntR.",
    "NEWOBJ_EX": b"\x80\x04}})\x92.",
    "a buffer": b"\x80\x05\x97.",
    "a bytearray": pickle.dumps(bytearray(b"abc"), 5),
    "a set": pickle.dumps({1, 2}, 4),
}


@pytest.mark.parametrize("name", RUN)
def test_code_is_refused_unrun(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(RUN[name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("protocol", range(6))
def test_what_has_a_class_is_refused_by_its_name(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("this", None)
    for value, name in (
        (Bomb(), "mkdir"),
        (Stateful(), "Stateful" if protocol > 1 else "_reconstructor"),
        (collections.OrderedDict(a=1), "OrderedDict"),
        (1j, "complex"),
        (Path("x"), "Path"),
    ):
        content = pickle.dumps([value], protocol)
        with pytest.raises(ClassNamedError, match=name):
            loads(content)
    with pytest.raises(ClassNamedError, match=r"this\.s"):
        loads(b"cthis\ns\n.")  # a module that prints when it is imported
    assert "this" not in sys.modules and list(tmp_path.iterdir()) == []


# Memory and time


def laughs() -> object:
    """Lists of lists, each ten times in the next: a thousand bytes that whoever walks over them never gets through."""
    value: object = "ha"
    for _ in range(50):
        value = [value] * 10
    return value


def colliding() -> dict[Any, int]:
    """Keys that all have the same hash."""
    return {sys.hash_info.modulus * number: 0 for number in range(1, 200)}


@pytest.mark.parametrize("protocol", range(6))
def test_what_is_small_and_grows_is_refused(protocol: int) -> None:
    endless: list[Any] = []
    endless.append(endless)
    around: tuple[Any, ...] = ([],)
    around[0].append(around)
    for value in (laughs(), endless, around, [endless, endless]):
        refused(pickle.dumps(value, protocol))
    assert refused(pickle.dumps(colliding(), protocol)) == "a key of a dict is no text and no small number"
    assert refused(pickle.dumps({(1, 2): 3}, protocol)) == "a key of a dict is no text and no small number"
    assert refused(pickle.dumps(1 << 9000, protocol)) == "it has a number that is too large"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"]2.", "opcode b'2'"),  # twice the same
        (b"]q\0h\0.", "in two places"),
        (b"N" * 5 + b".", "not one value"),
        (b"(N.", "not one value"),
        (b".", "not one value"),
        (b"", "too early"),
        (b"Nr\xff\xff\xff\x7f.", "too much memory"),
        (b"Np-5\n.", "too much memory"),
        (b"Np" + b"9" * 4000 + b"\n.", "too much memory"),
        (b"Np" + b"9" * 9000 + b"\n.", "digits"),
        (b"h\5.", "not there"),
        (b"a.", "not there"),
        (b"t.", "not there"),
        (b"q\0.", "not there"),
        (b"NNa.", "no list"),
        (b"]Va\nNs.", "no dict"),
        (b")(NNe.", "no list"),
        (b"}(Va\nu.", "shorter"),
        (b"\x80\x04" + b"]" * 150 + b"a" * 149 + b".", "nested too deeply"),
        (b"\x80\x04)" + b"\x85" * 150 + b".", "nested too deeply"),
        (b"]" * 5000 + b"a" * 4998 + b"\x93.", "not in words"),
        (b"]" * 200_000 + b"a" * 199_999 + b".", "nested too deeply"),
        (b")" + b"\x85" * 200_000 + b".", "nested too deeply"),
        (b"\x8d" + b"\xff" * 8 + b".", "size"),
        (b"\x8e" + b"\0" * 5 + b"\1\0\0.", "expected"),
        (b"\x8b\xff\xff\xff\x7f.", "not enough data"),
    ],
)
def test_the_reason_is_told(content: bytes, reason: str) -> None:
    assert reason in refused(content)
