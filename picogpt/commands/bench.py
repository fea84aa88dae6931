"""Measure speed: of training, of reaching a loss, of preparing and reading data, of generating text."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from picogpt.commands.options import PresetArgs, parse, parse_known
from picogpt.config import RunConfig
from picogpt.config.presets import preset
from picogpt.errors import UserError


@dataclass(frozen=True)
class BenchArgs(PresetArgs):
    """The options that all measurements share."""

    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class BenchTrainArgs(BenchArgs):
    """Measure training: tokens a second, beside what this machine's matrix multiplication would allow."""

    config: RunConfig = field(default_factory=RunConfig)
    seconds: float = 20.0
    """Seconds to train for. The measurements of the machine take additional time."""


@dataclass(frozen=True)
class RacePresetArgs(BenchArgs):
    """The preset of `time-to-loss`, which has another default."""

    preset: str = "race"
    """A named set of settings, which are the defaults of all other options."""


@dataclass(frozen=True)
class BenchTimeToLossArgs(RacePresetArgs):
    """Measure the seconds from a raw text to a validation loss over the whole validation split, once for each seed."""

    config: RunConfig = field(default_factory=RunConfig)
    target: float = 1.8857
    """The loss to reach, in nats a token. The default is that of nanoGPT's run for a CPU."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds, each of which makes a run from scratch."""


@dataclass(frozen=True)
class BenchDataArgs(BenchArgs):
    """Measure data: from text to token shards, and from token shards to batches."""

    config: RunConfig = field(default_factory=RunConfig)
    megabytes: int = 32
    """Repeat the text until it has this many megabytes. 0: use it once."""
    seconds: float = 5.0
    """Seconds to read batches for."""
    gigabytes: int = 0
    """Also read 10,000 batches from shards of this many GB. They take 64 MB of disk space until the end."""


@dataclass(frozen=True)
class BenchGenerateArgs(BenchArgs):
    """Measure generation: one text at a time, with ONNX Runtime and NumPy, by a new model of a preset or by a run."""

    run: str = ""
    """A trained run in logs/, or the path of one, instead of a new model."""
    tokens: int = 256
    """Tokens to generate in each text."""
    prompt_tokens: int = 32
    """Tokens of the prompt."""
    peer: str = ""
    """Another program to measure in turn: a command that prints "tok/s: NUMBER", as run of llama2.c does."""


def bench_train(program: str, argv: Sequence[str]) -> None:
    """Measure training and print the result."""
    from picogpt.bench.train import measure

    start = preset(parse_known(PresetArgs, program, argv).preset)
    # AdamW is the default because other programs are measured with it; --optimizer muon measures Muon.
    start = replace(start, train=replace(start.train, optimizer="adamw"))
    args = parse(BenchTrainArgs, program, argv, BenchTrainArgs(config=start))
    _print(measure(args.config, args.seconds), args.json)


def bench_time_to_loss(program: str, argv: Sequence[str]) -> None:
    """Measure the seconds to a loss, print each seed's when it is known, and then all of them."""
    from picogpt.bench.time_to_loss import SeedResult, measure
    from picogpt.runs.layout import DATASET

    start = preset(parse_known(RacePresetArgs, program, argv).preset)
    args = parse(BenchTimeToLossArgs, program, argv, BenchTimeToLossArgs(config=start))
    if args.config.train.seed != start.train.seed:
        raise UserError("time-to-loss trains once for each seed: give them with --seeds")

    def report(seed: int, outcome: SeedResult) -> None:
        print(f"seed {seed}: {outcome.sentence(args.target)}", file=sys.stderr if args.json else sys.stdout, flush=True)

    result = measure(args.config, args.target, args.seeds, DATASET, report)
    _print(result, args.json)


def bench_data(program: str, argv: Sequence[str]) -> None:
    """Measure preparing and reading data and print the result."""
    from picogpt.bench.data import measure, measure_large
    from picogpt.runs.layout import DATASET

    start = preset(parse_known(PresetArgs, program, argv).preset)
    args = parse(BenchDataArgs, program, argv, BenchDataArgs(config=start))
    large = measure_large(args.config, args.gigabytes) if args.gigabytes else {}
    _print({**measure(args.config, args.megabytes, args.seconds, DATASET), **large}, args.json)


def bench_generate(program: str, argv: Sequence[str]) -> None:
    """Measure generation and print the result."""
    from picogpt.bench.generate import measure, new_model
    from picogpt.inference.language_model import load

    args = parse(BenchGenerateArgs, program, argv)
    if args.run and args.preset != BenchGenerateArgs.preset:
        raise UserError(f"--run {args.run} is one model and --preset {args.preset} another: give one of them")
    model = load(args.run) if args.run else new_model(preset(args.preset))
    _print(measure(model, args.tokens, args.prompt_tokens, args.peer), args.json)


_KINDS = {
    "train": (bench_train, BenchTrainArgs),
    "time-to-loss": (bench_time_to_loss, BenchTimeToLossArgs),
    "data": (bench_data, BenchDataArgs),
    "generate": (bench_generate, BenchGenerateArgs),
}


def run(argv: Sequence[str]) -> None:
    """Run the measurement that the first word names with the options that follow. Raises UserError for wrong ones."""
    if argv and argv[0] in ("-h", "--help"):
        print("usage: picogpt bench KIND [options]    (each kind has --help)\n")
        for name, (_, kind) in _KINDS.items():
            print(f"  {name:14}{kind.__doc__}")
        return
    if not argv or argv[0] not in _KINDS:
        raise UserError(f"picogpt bench measures one of: {', '.join(_KINDS)} (see picogpt bench --help)")
    _KINDS[argv[0]][0](f"picogpt bench {argv[0]}", argv[1:])


def _print(result: Mapping[str, object], as_json: bool) -> None:
    """Print a result as one JSON object, or as a line for each of its values."""
    if as_json:
        print(json.dumps(dict(result), allow_nan=False))
        return
    from rich.console import Console

    console, width = Console(), max(map(len, result))
    for name, value in result.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        console.print(f"{name:{width}}  {shown}", highlight=False, markup=False)
