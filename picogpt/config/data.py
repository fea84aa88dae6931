"""The data of a run, and how text becomes ids."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from picogpt.config.validation import check_limits, check_types
from picogpt.errors import require, shown

TokenizerName = Literal["picogpt", "chars", "bytes", "bpe", "ids"]

_LIMITS = {"text_field": 1000, "qa": 1000, "data_limit": 32, "tokenizer": 4096}
_NAMES_LIMIT, _NAME_LIMIT = 100_000, 32_767  # files of a text, and characters of the longest path there is


@dataclass(frozen=True)
class DataConfig:
    """The data that is read, and how text becomes ids."""

    data: str | tuple[str, ...] = "sample"
    """sample (the embedded articles), shakespeare (downloaded once), wiki, wiki-simple, wiki:LANGUAGE or
    hf:OWNER/NAME[:CONFIG] (streamed while training), any files or folders of text (.txt, .md, .jsonl, .parquet, also
    compressed), or - for the standard input."""
    tokenizer: str = "picogpt"
    """picogpt: PicoGPT's lower-case table of 88; chars: the characters of the corpus; bytes: any text in any language;
    bpe or bpe:SIZE: frequent sequences of bytes, learnt from the text to train on; the path of a tokenizer.json, as
    picogpt tokenizer and Hugging Face's programs make them; ids: those of an imported model."""
    allow_unknown: bool = False
    """Train also on a text of which more than a twentieth is unknown to the tokenizer."""
    val_fraction: float = 0.0
    """Share kept for validation. 0: a tenth at the end of one text, one in twenty of many documents."""
    text_field: str = "text"
    """The field of JSON lines, or the column of parquet files, that is the text, or a list of the turns of a dialogue:
    of role and content, or from and value. Not given, and without a field text: messages or conversations."""
    qa: str = ""
    """Two fields instead, as "question,response": documents become a question and an answer between marks, and
    --chat asks. A model that has no such marks yet gets them."""
    data_limit: str = ""
    """How much of a streamed data set to keep on the disk, such as 500MB. Default: a quarter of what is free, at most
    20GB; a twentieth of the disk always stays free."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            bool(self.names) and all(type(name) is str for name in self.names),
            f"data must be names, not {shown(self.data)}",
        )
        require(0.0 <= self.val_fraction < 1.0, f"val_fraction must be between 0 and 1, not {shown(self.val_fraction)}")
        require(len(self.names) <= _NAMES_LIMIT, f"data must not be more than {_NAMES_LIMIT:,} names")
        require(max(map(len, self.names)) <= _NAME_LIMIT, f"data must not have names longer than {_NAME_LIMIT:,}")
        check_limits(self, _LIMITS)
        name, _, size = self.tokenizer.partition(":")
        require(
            self.tokenizer_is_file or name in get_args(TokenizerName),
            f"tokenizer must be one of {', '.join(get_args(TokenizerName))}, bpe:SIZE or the path of a tokenizer.json, "
            f"not {shown(self.tokenizer)}",
        )
        require(
            self.tokenizer_is_file
            or name == self.tokenizer
            or (name == "bpe" and re.fullmatch(r"[1-9]\d{2,6}", size) is not None),
            f"tokenizer {shown(self.tokenizer)} has a size that is none: give bpe:4096, for example",
        )
        require(
            not self.qa or len([name for name in self.qa.split(",") if name.strip()]) == 2,
            f"qa names two fields, such as question,response, not {shown(self.qa)}",
        )
        require(
            not self.data_limit or self.limit_bytes > 0,
            f"data_limit is a size such as 500MB, not {shown(self.data_limit)}",
        )

    @property
    def tokenizer_is_file(self) -> bool:
        """Whether the tokenizer is a tokenizer.json, or a folder with one, by its path."""
        return self.tokenizer.endswith(".json") or "/" in self.tokenizer or "\\" in self.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """The kind of tokenizer, without its size."""
        return "bpe" if self.tokenizer_is_file else self.tokenizer.partition(":")[0]

    @property
    def tokenizer_size(self) -> int:
        """How many ids a tokenizer that is learnt should have; 0: the default."""
        return 0 if self.tokenizer_is_file else int(self.tokenizer.partition(":")[2] or 0)

    @property
    def names(self) -> tuple[str, ...]:
        """All names of `data`."""
        return self.data if isinstance(self.data, tuple) else (self.data,)

    @property
    def limit_bytes(self) -> int:
        """data_limit in bytes; 0 for none, or for one that is no size."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?", self.data_limit.strip().upper())
        return int(float(match[1]) * 1000 ** " KMGT".index(match[2] or " ")) if match else 0
