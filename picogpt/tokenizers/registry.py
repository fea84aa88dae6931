"""The table of all tokenizers, by name."""

from contextlib import suppress

from picogpt.errors import UserError
from picogpt.tokenizers.base import Tokenizer, Unit
from picogpt.tokenizers.bpe import BpeTokenizer
from picogpt.tokenizers.characters import CharTokenizer, PicoTokenizer
from picogpt.tokenizers.ids import IdsTokenizer

TOKENIZERS: dict[str, type[Tokenizer]] = {
    PicoTokenizer.name: PicoTokenizer,
    CharTokenizer.name: CharTokenizer,
    BpeTokenizer.name: BpeTokenizer,
    IdsTokenizer.name: IdsTokenizer,
}
"""`TokenizerName` in config/data.py, which cannot import this table, has the same names."""


def from_dict(fields: object) -> Tokenizer:
    """Return the tokenizer that `Tokenizer.to_dict` described, also after a trip through JSON.

    Raises UserError for anything that `to_dict` does not make.
    """
    if isinstance(fields, dict) and isinstance(name := fields.get("name"), str) and name in TOKENIZERS:
        with suppress(ValueError):
            return TOKENIZERS[name].from_dict(fields)
    raise UserError("this is not a tokenizer of picogpt: make it again from the corpus")


def unit_of(name: object) -> Unit:
    """Return what an id of the tokenizer of this name is: a token or, also for a name that is unknown, a character."""
    return TOKENIZERS[name].unit if isinstance(name, str) and name in TOKENIZERS else "char"
