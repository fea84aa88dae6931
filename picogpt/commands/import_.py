"""Make a run of another program's model: a GPT-2 or GPT-Neo from Hugging Face or huplay, or PicoGPT's log.pkl."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from picogpt.commands.options import parse
from picogpt.interop.import_model import import_model
from picogpt.runs.find import run_name
from picogpt.runs.layout import LOGS
from picogpt.system.terminal import to_stderr


@dataclass(frozen=True)
class ImportArgs:
    """Make a run of another program's model: a GPT-2 or GPT-Neo from Hugging Face or huplay, or PicoGPT's log.pkl."""

    path: Annotated[str, arg(name="from")]
    """A folder with config.json and model.safetensors or pytorch_model.bin (also in shards),
    a folder with model.properties and .dat files, one of those files, or a log.pkl."""
    run: str
    """Name of the new run, its folder in logs/."""
    tokenizer: str = ""
    """A folder with tokenizer.json, or vocab.json and merges.txt. Default: the folder of the weights."""
    bfloat16: bool = False
    """Round float32 matrices to bfloat16, half the size. Matrices that lose nothing by it are rounded in any case."""
    n_head: int = 8
    """Attention heads of a PicoGPT model, because its log does not tell."""


def run(argv: Sequence[str]) -> None:
    """Import the model that the options name. Raises UserError for a problem the user can solve."""
    args = parse(ImportArgs, "picogpt import", argv)
    tokenizer = Path(args.tokenizer) if args.tokenizer else None
    run_dir = LOGS / run_name(args.run)
    description = import_model(Path(args.path), run_dir, args.n_head, tokenizer, args.bfloat16, to_stderr)
    print(f"imported {args.path} as run {args.run}: {description}")
