"""What the samples of a run begin with."""

import pytest

from picogpt.evaluation.samples import PROMPT, sample_prompt
from picogpt.tokenizers.bytes import ByteTokenizer
from picogpt.tokenizers.characters import CharTokenizer, PicoTokenizer


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("\nThe old man and the sea", "The old man"),
        (
            "er.\n\u8a71\u8aaa\u5929\u4e0b\u5927\u52e2\u5206\u4e45\u5fc5\u5408\n",
            "\u8a71\u8aaa\u5929\u4e0b\u5927\u52e2\u5206\u4e45\u5fc5\u5408",
        ),
        ("averyveryverylongword", "averyveryver"),
        ("\n\n", ""),
    ],
)
def test_a_text_in_any_language_begins_them(text: str, prompt: str) -> None:
    assert sample_prompt(ByteTokenizer(), ByteTokenizer().encode(text)) == prompt
    assert sample_prompt(CharTokenizer(text), CharTokenizer(text).encode(text)) == prompt
    assert sample_prompt(PicoTokenizer(), PicoTokenizer().encode(text)) == PROMPT


def test_marks_are_left_out() -> None:
    ids = ByteTokenizer().encode_marked("<|user|>who sells?<|end|>\n<|endoftext|>sea")
    assert sample_prompt(ByteTokenizer(), ids) == "who sells?"


def test_half_a_character_is_left_out() -> None:
    ids = ByteTokenizer().encode("\u8a71\u8aaa\u5929\u4e0b")[1:-1]
    assert sample_prompt(ByteTokenizer(), ids) == "\u8aaa\u5929"
