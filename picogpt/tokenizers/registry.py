"""The table of all tokenizers, by name."""

from contextlib import suppress

from picogpt.errors import UserError
from picogpt.tokenizers.base import Tokenizer, Unit
from picogpt.tokenizers.bpe import BpeTokenizer
from picogpt.tokenizers.bytes import ByteTokenizer
from picogpt.tokenizers.characters import CharTokenizer, PicoTokenizer
from picogpt.tokenizers.ids import IdsTokenizer

TOKENIZERS: dict[str, type[Tokenizer]] = {
    PicoTokenizer.name: PicoTokenizer,
    CharTokenizer.name: CharTokenizer,
    ByteTokenizer.name: ByteTokenizer,
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
    """Return what an id of a tokenizer is, by the setting that names it; a character for a name that is unknown."""
    kind = TOKENIZERS.get(name.partition(":")[0]) if isinstance(name, str) else None
    return kind.unit if kind else "char"
