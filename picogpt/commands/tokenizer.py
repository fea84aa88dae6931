"""Learn a tokenizer from a text ahead of training, for several runs to share, and show what its size is worth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from picogpt.commands.options import output_file, parse
from picogpt.config import DataConfig, ModelConfig
from picogpt.config.presets import preset
from picogpt.data.prepare import learnt_tokenizer
from picogpt.data.sources.datasets import only_dataset
from picogpt.errors import UserError
from picogpt.evaluation.loss import frequency_bits
from picogpt.model.flops import write_flops
from picogpt.runs.layout import DATASET
from picogpt.system.files import write_durably, write_error
from picogpt.system.terminal import to_stderr, visible
from picogpt.tokenizers.bpe import BpeTokenizer

_SIZES = (1024, 2048, 4096, 8192)  # that are compared, up to the one that was learnt
_EXAMPLES, _EXAMPLE = 3, 60  # lines of the text that are shown in tokens, and their characters


@dataclass(frozen=True)
class TokenizerArgs:
    """Learn a tokenizer from a text ahead of training, for several runs to share, and show what its size is worth."""

    data: str | tuple[str, ...] = "sample"
    """The text: sample, shakespeare, or files and folders as train takes them. It learns from the training part."""
    size: int = 0
    """How many tokens it should have. 0: by the length of the text."""
    out: str = ""
    """Write it to FILE.json, which train --tokenizer FILE.json takes, and Hugging Face's programs too."""
    text_field: str = DataConfig.text_field
    """The field of JSON lines, or the column of parquet files, that is the text."""
    val_fraction: float = 0.0
    """Share kept for validation, as for train."""


def run(argv: Sequence[str]) -> None:
    """Learn and show the tokenizer that the options ask for. Raises UserError for a problem the user can solve."""
    args = parse(TokenizerArgs, "picogpt tokenizer", argv)
    out = output_file(args.out, ".json")
    data = DataConfig(args.data, text_field=args.text_field, val_fraction=args.val_fraction)
    if dataset := only_dataset(data.names):
        raise UserError(f"{dataset} is streamed: train --tokenizer bpe learns one from its first text")
    to_stderr("learning a tokenizer")
    tokenizer, validation = learnt_tokenizer(data, args.size, DATASET)
    _show(tokenizer, validation)
    if out:
        try:
            write_durably(out, tokenizer.tokenizer_json().encode())
        except OSError as error:
            raise write_error(out, error) from error
        print(f"wrote {out}: train with --tokenizer {out}")


def _show(tokenizer: BpeTokenizer, text: str) -> None:
    """Print what each size is worth on this text, and some of it in tokens."""
    console = Console()
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    by_token = ("tokens", "characters\na token", "characters\na window")
    for title in (*by_token, "bits a character,\nby frequency", "arithmetic\nof the head"):
        table.add_column(title, justify="right", vertical="bottom")
    shape = preset("swift").model
    for size in sorted({*(size for size in _SIZES if size < tokenizer.vocab_size), tokenizer.vocab_size}):
        smaller = tokenizer.shortened(size) if size < tokenizer.vocab_size else tokenizer
        ids = smaller.encode(text)
        per_token = len(text) / max(1, len(ids))
        table.add_row(
            f"{size:,}",
            f"{per_token:.2f}",
            f"{per_token * shape.context_len:,.0f}",
            f"{frequency_bits(ids, len(text)):.3f}",
            f"{_head_share(replace(shape, vocab_size=size)):.0%}",
        )
    console.print(table)
    print("on the validation part of the text. A trained model learns far more than frequencies: docs/training.md")
    for line in [line.strip() for line in text.splitlines() if len(line.split()) > 1 or len(line) > 8][:_EXAMPLES]:
        pieces = [tokenizer.decode([id]) for id in tokenizer.encode(line[:_EXAMPLE])]
        console.print(Text(visible("  " + "|".join(pieces), console.encoding)))


def _head_share(model: ModelConfig) -> float:
    """Return the share of the logits in the arithmetic of a token, in the middle of a window."""
    middle = model.n_position // 2
    return 1 - write_flops(replace(model, vocab_size=1), middle) / write_flops(model, middle)
