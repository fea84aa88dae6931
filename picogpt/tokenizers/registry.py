"""The tokenizers there are, by name."""

from typing import Any

from picogpt.errors import UserError
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.bpe import BpeTokenizer
from picogpt.tokenizers.characters import MAX_CHARS, CharTokenizer, PicoTokenizer
from picogpt.tokenizers.ids import IdsTokenizer


def from_dict(fields: Any) -> Tokenizer:
    """Inverse of `to_dict`, also after a trip through JSON. Raises UserError on anything `to_dict` does not make."""
    match fields:
        case {"name": PicoTokenizer.name, **rest} if not rest:
            return PicoTokenizer()
        case {"name": CharTokenizer.name, "chars": str(chars), **rest} if not rest and len(chars) <= MAX_CHARS:
            tokenizer = CharTokenizer(chars)
            if tokenizer.chars == chars:
                return tokenizer
        case {"name": BpeTokenizer.name, "json": str(text), **rest} if not rest:
            return BpeTokenizer.from_json(text)
        case {"name": IdsTokenizer.name, "vocab_size": size, "end_of_text": end, **rest} if not rest:
            if type(size) is type(end) is int:
                return IdsTokenizer(size, end)
        case {"name": IdsTokenizer.name, "vocab_size": size, **rest} if not rest and type(size) is int:
            return IdsTokenizer(size)
    raise UserError("this is not a tokenizer of picogpt: make it again from the corpus")
