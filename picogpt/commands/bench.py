"""Measure speed: of training, to a loss, of reading text, of writing it."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from picogpt.commands.options import Preset, first_of, parse
from picogpt.config import RunConfig
from picogpt.config.presets import preset
from picogpt.errors import UserError


@dataclass(frozen=True)
class BenchTrain(Preset):
    """Training: tokens a second beside the limits of this machine's matrix multiplication."""

    config: RunConfig = field(default_factory=RunConfig)
    seconds: float = 20.0
    """How long to train; the measurements of the machine come on top."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class RacePreset(Preset):
    """The named run that `time-to-loss` trains unless told otherwise."""

    preset: str = "race"
    """The named run to start from; its settings are the defaults of all other options."""


@dataclass(frozen=True)
class BenchTimeToLoss(RacePreset):
    """The seconds from an unread text to a validation loss, over the whole validation split; once a seed."""

    config: RunConfig = field(default_factory=RunConfig)
    target: float = 1.8857
    """The loss to reach, in nats a token. The default is that of nanoGPT's run for a CPU."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """A run from scratch with each of these."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class BenchData(Preset):
    """Data: text to token shards, and token shards to batches."""

    config: RunConfig = field(default_factory=RunConfig)
    megabytes: int = 32
    """The text is repeated until it has so many megabytes. 0: once."""
    seconds: float = 5.0
    """How long to read batches."""
    gigabytes: int = 0
    """Also read 10,000 batches from shards of so many GB, which take 64 MB of the disk while they are there."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class BenchGenerate(Preset):
    """Generating: one stream of tokens on ONNX Runtime and NumPy, from a new model of a preset or from a run."""

    run: str = ""
    """A trained run in logs/, or the path of one, instead of a new model."""
    tokens: int = 256
    """Tokens of each stream."""
    prompt_tokens: int = 32
    """Tokens it goes on from."""
    peer: str = ""
    """A command to measure in turns with it, which says "tok/s: NUMBER", as llama2.c's run does."""
    json: bool = False
    """Print one JSON object."""


def bench_train(program: str, argv: Sequence[str]) -> None:
    from picogpt.bench.train import measure

    start = preset(first_of(Preset, program, argv).preset_name)
    # AdamW by default, because it is what other programs are measured with; --optimizer muon measures that.
    start = replace(start, train=replace(start.train, optimizer="adamw"))
    args = parse(BenchTrain, program, argv, BenchTrain(config=start))
    _show(measure(args.config, args.seconds), args.json)


def bench_time_to_loss(program: str, argv: Sequence[str]) -> None:
    from picogpt.bench.time_to_loss import Outcome, measure
    from picogpt.runs.layout import DATASET

    start = preset(first_of(RacePreset, program, argv).preset_name)
    args = parse(BenchTimeToLoss, program, argv, BenchTimeToLoss(config=start))
    if args.config.train.seed != start.train.seed:
        raise UserError("time-to-loss trains once a seed: give them with --seeds")

    def tell(seed: int, outcome: Outcome) -> None:
        print(f"seed {seed}: {outcome.sentence(args.target)}", file=sys.stderr if args.json else sys.stdout, flush=True)

    result = measure(args.config, args.target, args.seeds, DATASET, tell)
    _show(result, args.json)


def bench_data(program: str, argv: Sequence[str]) -> None:
    from picogpt.bench.data import measure, measure_large
    from picogpt.runs.layout import DATASET

    start = preset(first_of(Preset, program, argv).preset_name)
    args = parse(BenchData, program, argv, BenchData(config=start))
    large = measure_large(args.config, args.gigabytes) if args.gigabytes else {}
    _show({**measure(args.config, args.megabytes, args.seconds, DATASET), **large}, args.json)


def bench_generate(program: str, argv: Sequence[str]) -> None:
    from picogpt.bench.generate import measure, new_model
    from picogpt.inference.language_model import load

    args = parse(BenchGenerate, program, argv)
    if args.run and args.preset != BenchGenerate.preset:
        raise UserError(f"--run {args.run} is one model and --preset {args.preset} another: give one of them")
    model = load(args.run) if args.run else new_model(preset(args.preset))
    _show(measure(model, args.tokens, args.prompt_tokens, args.peer), args.json)


KINDS = {
    "train": (bench_train, BenchTrain),
    "time-to-loss": (bench_time_to_loss, BenchTimeToLoss),
    "data": (bench_data, BenchData),
    "generate": (bench_generate, BenchGenerate),
}


def run(argv: Sequence[str]) -> None:
    """Measure speed: of training, to a loss, of reading text, of writing it."""
    if argv and argv[0] in ("-h", "--help"):
        print("usage: picogpt bench KIND [options]    (each kind has --help)\n")
        for name, (_, kind) in KINDS.items():
            print(f"  {name:14}{kind.__doc__}")
        return
    if not argv or argv[0] not in KINDS:
        raise UserError(f"picogpt bench measures one of: {', '.join(KINDS)} (see picogpt bench --help)")
    KINDS[argv[0]][0](f"picogpt bench {argv[0]}", argv[1:])


def _show(result: dict[str, Any], as_json: bool) -> None:
    """One JSON object in a line, or a line a fact."""
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    from rich.console import Console

    console, width = Console(), max(map(len, result))
    for name, value in result.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        console.print(f"{name:{width}}  {shown}", highlight=False, markup=False)
