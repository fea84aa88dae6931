"""Show what a model is made of, what it costs, and whether this machine can train it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.table import Table

from picogpt.commands.options import PresetArgs, parse, parse_known
from picogpt.config import ModelConfig, RunConfig, TrainConfig
from picogpt.config.presets import fine_tuning, preset
from picogpt.data.token_folder import file_tokenizer
from picogpt.engine.backend import gpu
from picogpt.inference.onnx.quantize import weight_bytes
from picogpt.model.flops import cache_bytes, flops_per_token, read_flops, text_flops, write_flops
from picogpt.model.memory import estimate_memory
from picogpt.model.parameters import parameter_count
from picogpt.runs.checkpoint import read_record
from picogpt.runs.find import use_checkpoint
from picogpt.system import hardware
from picogpt.system.terminal import to_stderr
from picogpt.tokenizers.bpe import DEFAULT_SIZE
from picogpt.tokenizers.registry import unit_of
from picogpt.training.device import fitted_here, gpu_in_words, lanes_in_words, trained_in_words


@dataclass(frozen=True)
class InfoArgs(PresetArgs):
    """Show what a model is made of, what it costs, and whether this machine can train it."""

    config: RunConfig = field(default_factory=RunConfig)
    run: str = ""
    """Show the model of this run in logs/, or of the run at this path, instead of a preset's."""
    flops: bool = False
    """Also show what generating costs: arithmetic a token, bytes of the weights and of the keys and values."""


def run(argv: Sequence[str]) -> None:
    """Print what the options ask for about a model. Raises UserError for a problem the user can solve."""
    name = parse_known(PresetArgs, "picogpt info", argv).preset
    args = parse(InfoArgs, "picogpt info", argv, InfoArgs(config=preset(name)))
    if not args.run and args.config.data.tokenizer_name == "bpe":  # whose size a model's vocabulary grows to
        given = file_tokenizer(args.config.data)
        tokens = given.vocab_size if given else args.config.data.tokenizer_size or DEFAULT_SIZE
        size = max(args.config.model.vocab_size, tokens)
        args = replace(args, config=replace(args.config, model=replace(args.config.model, vocab_size=size)))
    if args.run:
        name = args.run
        meta = use_checkpoint(name, read_record, to_stderr).meta
        config = meta.config
        if meta.is_imported:
            is_foreign = unit_of(config.data.tokenizer) == "token"
            config = fine_tuning(config, RunConfig(), TrainConfig.train, is_foreign)
        args = parse(InfoArgs, "picogpt info", argv, InfoArgs(config=config))
    print_report(name, args.config)
    if args.flops:
        print_costs(name, args.config.model)


def print_report(name: str, config: RunConfig) -> None:
    """Print parameters, arithmetic and memory of a run with this configuration, and whether they fit this machine."""
    config = fitted_here(config, print)
    total, counted = parameter_count(config.model)
    costs, available, train = estimate_memory(config), hardware.available_memory(), config.train
    lanes, place = lanes_in_words(train.lanes), hardware.machine()
    if train.device == "cuda":
        available, place = gpu().free, gpu_in_words(config)
    share = f"{train.micro_batch} x {config.context} tokens" + (", recomputed" if train.recompute else "")
    table = Table(title=name, title_justify="left", show_header=False, box=None)
    rows = {
        "parameters": f"{total:,} / {counted:,} (all / without the position table)",
        "trained": trained_in_words(config),
        "FLOPs a token": f"{flops_per_token(config.model) / 1e6:,.2f} million (forward and backward)",
        "weights": _bytes(costs.weights),
        "gradients": f"{_bytes(costs.gradients)}, {lanes}",
        "optimizer": f"{_bytes(costs.optimizer)}, {train.optimizer}",
        "activations": f"about {_megabytes(costs.activations)}, {lanes} of {share}",
        "program": f"about {_megabytes(costs.program)}",
        "peak of training": f"about {_megabytes(costs.total)}",
        "machine": f"{place}, {_megabytes(available)} free",
        "fits": "yes" if costs.total < available else "no: try --low-memory or a smaller model",
    }
    for label, value in rows.items():
        table.add_row(label, value)
    Console().print(table)


def print_costs(name: str, model: ModelConfig) -> None:
    """Print what generating with a model of this shape costs."""
    last = model.n_position - 1
    read, write = ((cost(model, 0), cost(model, last)) for cost in (read_flops, write_flops))
    bits = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4}
    rows = {
        "parameters": f"{parameter_count(model)[0]:,}",
        **{f"weights in {kind}": _bytes(weight_bytes(model, count)) for kind, count in bits.items()},
        "FLOPs to read a token": f"{_millions(*read)} (the first to the last of a window)",
        "FLOPs to write a token": f"{_millions(*write)} (with the logits of the next)",
        "50 tokens in, 100 out": f"{text_flops(model, 50, 100) / 1e9:,.2f} GFLOPs",
        "keys and values": f"{_bytes(cache_bytes(model))} for a full window of {model.context_len:,} tokens",
    }
    table = Table(title=f"{name}: generating", title_justify="left", show_header=False, box=None)
    for label, value in rows.items():
        table.add_row(label, value)
    Console().print(table)


def _millions(first: int, last: int) -> str:
    return f"{first / 1e6:,.2f} to {last / 1e6:,.2f} million"


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MB"


def _bytes(count: int) -> str:
    return f"{count:,} bytes ({_megabytes(count)})"
