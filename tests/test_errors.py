"""Values and errors of any origin as they stand in a message."""

import pytest

from picogpt.errors import escaped, one_line, shown


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a  b\n\tc\r\n"), "a b c"),
        (OSError(2, "no such file"), "[Errno 2] no such file"),
        (ValueError(), ""),
        ("it is \x1b[31mred\x00", r"it is \x1b[31mred\x00"),
        ("größe, 深, \ud800", r"größe, 深, \ud800"),
        ("a path such as C:\\new, and 'quotes'", "a path such as C:\\new, and 'quotes'"),
    ],
)
def test_an_error_on_one_line(error: object, line: str) -> None:
    assert one_line(error) == line and line.isprintable()


def test_a_long_error_is_cut() -> None:
    assert one_line("x" * 1000) == "x" * 120
    assert one_line("x y\n" * 1000, limit=5) == "x y x"


def test_what_is_not_printable_is_escaped() -> None:
    assert escaped("a\nb\x07") == r"a\nb\x07"
    assert escaped("plain text, größe") == "plain text, größe"


def test_a_value_of_any_size_is_short() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a value of type list, too large to show"
    assert shown(10**5000) == "a value of type int, too large to show"
    assert shown("x\n" * 1000) == "'" + r"x\n" * 25 + "x..."
    assert shown([1, "a"]) == "[1, 'a']"
