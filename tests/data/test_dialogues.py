"""Dialogues in the forms they are published in become one form, in files and in data sets."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from picogpt.data.sources.dialogues import dialogue
from picogpt.data.sources.formats import Columns, documents
from picogpt.errors import UserError
from picogpt.tokenizers.base import Mark

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a <Q>?"},
    {"role": "assistant", "content": "A mark."},
]
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "What is a <Q>?"},
    {"from": "gpt", "value": "A mark."},
]
PARTS = [Mark("<S>"), "Be brief.", Mark("</S>"), "\n", Mark("<Q>"), "What is a <Q>?", Mark("</Q>")]
PARTS += ["\n", Mark("<A>"), "A mark.", Mark("</A>")]


def read(path: Path, columns: Columns = Columns()) -> list[list[str]]:  # noqa: B008
    return [list(document) for document in documents(path, columns)]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize(("field", "turns"), [("messages", MESSAGES), ("conversations", SHAREGPT)])
def test_a_file_of_dialogues_needs_no_option(tmp_path: Path, name: str, field: str, turns: list[Any]) -> None:
    found = read(written(tmp_path / name, [{"id": 1, field: turns}, {"id": 2, field: turns[1:]}]))
    assert found == [PARTS, PARTS[4:]]
    assert [isinstance(part, Mark) for part in found[0]] == [isinstance(part, Mark) for part in PARTS]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_field_of_another_name_is_named(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, [{"text": "a text", "talk": MESSAGES}])
    assert read(path) == [["a text"]]
    assert read(path, Columns("talk")) == [PARTS]


def test_one_question_is_what_qa_makes_of_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"q": "who?", "a": "me."}])
    turns = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me."}]
    assert read(path, Columns(qa=("q", "a"))) == [dialogue(turns)]


def test_contents_in_pieces() -> None:
    pieces = [{"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}]
    assert dialogue([{"role": "user", "content": pieces}]) == [Mark("<Q>"), "What is it?", Mark("</Q>")]
    assert dialogue([{"role": "user", "content": [*pieces, {"type": "image", "url": "x"}]}]) == []
    assert dialogue([{"role": "system", "content": ""}, *MESSAGES[1:]]) == PARTS[4:]
    assert dialogue([]) == [] and dialogue([{"role": "user", "content": None}]) == []


def test_who_is_none_of_the_three_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"messages": MESSAGES}, {"messages": [{"role": "tool", "content": "5"}]}])
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: a dialogue has a turn of 'tool', and picogpt knows"):
        read(path)
    path = written(tmp_path / "b.jsonl", [{"messages": ["hello"]}])
    with pytest.raises(UserError, match="line 1: a dialogue has a turn without role and content"):
        read(path)


@given(
    st.lists(
        st.recursive(
            st.none() | st.text(max_size=9) | st.integers(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["role", "content", "from", "value", "text", "type"]), inner, max_size=4
                )
            ),
        )
        | st.fixed_dictionaries({"role": st.sampled_from(["user", "USER", "gpt"]), "content": st.text(max_size=5)}),
        max_size=4,
    )
)
def test_any_turns_are_a_dialogue_or_refused(turns: list[Any]) -> None:
    try:
        parts = dialogue(turns)
    except UserError as told:
        assert str(told).isprintable()
        return
    marks = [part for part in parts if isinstance(part, Mark)]
    assert len(marks) <= 2 * len(turns)
    assert all(end == f"</{begin[1:]}" for begin, end in zip(marks[::2], marks[1::2], strict=True))
