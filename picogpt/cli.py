"""The `picogpt` command: options generated from the config dataclasses, one function a command."""

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Optional

from tyro.conf import arg

from picogpt.config import DataConfig, GenerateConfig, Precision, RunConfig, TrainConfig, UserError, WatchConfig
from picogpt.options import Preset, first_of, parse
from picogpt.presets import fine_tuning, preset

DASHBOARD_PORT = "8050"


@dataclass(frozen=True)
class TrainPreset(Preset):
    """A preset, or one of the two short names for the GPT-neo script's."""

    efficiency: Annotated[bool, arg(aliases=["-e"])] = False
    """The same as --preset gpt-neo-efficiency: the long run."""
    speed: Annotated[bool, arg(aliases=["-s"])] = False
    """The same as --preset gpt-neo-speed: the quick run."""

    @property
    def preset_name(self) -> str:
        if self.efficiency and self.speed:
            raise UserError("-e and -s are two presets: give one of them")
        if self.preset != "pico" and (self.efficiency or self.speed):
            raise UserError(f"-e and -s are presets as {self.preset} is: give one of them")
        return "gpt-neo-efficiency" if self.efficiency else "gpt-neo-speed" if self.speed else self.preset


@dataclass(frozen=True)
class TrainStart(TrainPreset):
    """What the defaults of the other options depend on."""

    run: str = ""
    """Name of the run, its folder in logs/. Default: the preset and the data."""
    fresh: bool = False
    """Start over, forgetting what the run has learnt."""
    init_from: str = ""
    """Begin with the weights, shape and tokenizer of this run (fine-tuning); the optimizer begins anew. From a model of
    another program the defaults are those of fine-tuning: --init-from RUN --help shows them."""


@dataclass(frozen=True)
class _TrainFirst(TrainStart):
    data: str | tuple[str, ...] = ""
    train: str = TrainConfig.train


@dataclass(frozen=True)
class TrainArgs(TrainStart):
    """Train a run, or go on with it: the same command continues where it stopped."""

    config: RunConfig = field(default_factory=RunConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)


@dataclass(frozen=True)
class GenerateArgs:
    """Let a trained run write. Without --prompt it reads one from a pipe, or asks for prompts on a terminal."""

    config: GenerateConfig
    prompt: Optional[str] = None  # noqa: UP045 (see GenerateConfig.seed)
    """The text to go on from."""
    run: str = ""
    """A run in logs/, or the path of one. Default: the newest."""
    chat: bool = False
    """Prompts are questions: <Q>..</Q> before the model, and its answer up to </A>."""
    engine: Literal["onnx", "numpy"] = "onnx"
    """What runs the model: ONNX Runtime, for which the run is exported when needed, or NumPy."""
    precision: Literal["auto", "fp32", "int8", "int4"] = "auto"
    """Of the ONNX file. auto: that of the one there is; else fp32, or int8 for weights of half the free memory."""
    json: bool = False
    """Print an object a line: prompt, text, tokens, tokens_per_second, first_token_ms, engine."""


@dataclass(frozen=True)
class ExportArgs:
    """Write a run as one ONNX file that generates anywhere, logs/RUN/model.onnx, or in another program's format."""

    run: str = ""
    """A run in logs/, or the path of one. Default: the newest."""
    format: Literal["onnx", "huggingface", "dat", "picogpt"] = "onnx"
    """huggingface: config.json and model.safetensors, as GPT-2 or GPT-Neo; dat: a folder for demo-gpt-java; picogpt: a
    log.pkl for PicoGPT. What a format cannot hold is refused."""
    out: str = ""
    """Where to write what is not ONNX: a folder, or for picogpt a file, that is not there yet."""
    precision: Precision = "fp32"
    """Bits of the matrices; with 8 or 4 it is measured what that costs."""
    portable: bool = False
    """Standard operators alone, for other runtimes than ONNX Runtime; slower there."""


@dataclass(frozen=True)
class ImportArgs:
    """Make a run of another program's model: a GPT-2 or GPT-Neo of Hugging Face's or huplay's, or PicoGPT's log.pkl."""

    path: Annotated[str, arg(name="from")]
    """A folder with config.json and model.safetensors or pytorch_model.bin (also in shards), a folder with
    model.properties and .dat files, one of those files, or a log.pkl."""
    run: str
    """Name of the run to make, its folder in logs/."""
    tokenizer: str = ""
    """A folder with tokenizer.json, or vocab.json and merges.txt. Default: the one of the weights."""
    bfloat16: bool = False
    """Round float32 matrices to bfloat16, half the size. Those that lose nothing by it become so in any case."""
    n_head: int = 8
    """Attention heads of PicoGPT's model, which its log does not tell."""


@dataclass(frozen=True)
class InfoArgs(Preset):
    """What a model is made of, and whether this machine can train it."""

    config: RunConfig = field(default_factory=RunConfig)
    run: str = ""
    """That of this run in logs/, or at this path, in place of a preset's."""
    flops: bool = False
    """Also what writing costs: arithmetic a token, bytes of the weights and of the keys and values."""


@dataclass(frozen=True)
class PrepareArgs:
    """Make the tokens of a text beforehand, which train.py otherwise does by itself."""

    config: DataConfig


def train(argv: Sequence[str]) -> None:
    from picogpt.api import DATASET, LOGS, use_checkpoint
    from picogpt.training import checkpoint
    from picogpt.training.checks import config_of
    from picogpt.training.monitor import to_stderr
    from picogpt.training.run import Run

    argv = _with_port(argv)
    first = first_of(_TrainFirst, "picogpt train", argv)
    start, origin = preset(first.preset_name), None
    data = DataConfig(first.data) if first.data else start.data
    name = run_name(first.run or re.sub(r"[^\w.-]+", "-", f"{first.preset_name}-{_stem(data.names[0])}"))
    if first.init_from:  # the other run is needed once
        own = None if first.fresh else checkpoint.newest_recorded(LOGS / name)
        origin = own or use_checkpoint(first.init_from, _verified, to_stderr)
        before = config_of(origin)
        tuned = replace(before, data=start.data) if own else fine_tuning(before, start, first.train)
        if not own and first.preset_name != Preset.preset and tuned.train != start.train:
            to_stderr("from a model of another program the settings are fine-tuning's, and not those of the preset")
        start = replace(tuned, data=replace(start.data, tokenizer=before.data.tokenizer))
    args = parse(TrainArgs, "picogpt train", argv, TrainArgs(config=start))
    Run(args.config, LOGS / name, DATASET, args.fresh, origin, args.watch).train()


def _verified(place: Path) -> Path:
    """The checkpoint folder itself. Raises DamageError where its weights are not sound."""
    from picogpt.training.snapshot import verify

    verify(place, optimizer=False)
    return place


def _with_port(argv: Sequence[str]) -> list[str]:
    """Give --dashboard its value where it has none, which the parser cannot."""
    following = [*argv[1:], "-"]
    bare = [i for i, word in enumerate(argv) if word == "--dashboard" and following[i].startswith("-")]
    return [part for i, word in enumerate(argv) for part in ([word, DASHBOARD_PORT] if i in bare else [word])]


def generate(argv: Sequence[str]) -> None:
    args = parse(GenerateArgs, "picogpt generate", argv, GenerateArgs(GenerateConfig()))
    from picogpt.api import newest_run
    from picogpt.exporting import open_writer
    from picogpt.training.monitor import to_stderr
    from picogpt.writing import Writing, write

    if args.engine == "numpy" and args.precision in ("int8", "int4"):
        raise UserError(f"--precision {args.precision} is for the engine onnx; NumPy computes in fp32")
    writer, engine = open_writer(args.run or newest_run(), args.engine, args.precision, to_stderr)
    write(Writing(writer, engine, args.config, args.chat, args.json), args.prompt)


def export(argv: Sequence[str]) -> None:
    args = parse(ExportArgs, "picogpt export", argv)
    if args.format != "onnx":
        _give_back(args, args.format)
        return
    if args.out:
        raise UserError("--out is for the other formats; an ONNX file goes to logs/RUN/model.onnx: leave it out")
    from picogpt.api import newest_run, use_checkpoint
    from picogpt.exporting import export_checkpoint
    from picogpt.inference.modelfile import weights_beside
    from picogpt.inference.session import why_not
    from picogpt.quality import quality
    from picogpt.training.monitor import to_stderr

    place, path = use_checkpoint(
        args.run or newest_run(),
        lambda place: (place, export_checkpoint(place, args.precision, args.portable)),
        to_stderr,
    )
    files = [path, *weights_beside(path)]
    size = sum(file.stat().st_size for file in files) / 1e6
    beside = f" in {len(files)} files, {files[1].name} beside it" if files[1:] else ""
    print(f"wrote {path}: {args.precision}{', portable' * args.portable}, {size:,.1f} MB{beside}")
    if args.precision != "fp32":
        reason = why_not()
        print(f"what that loses was not measured: {reason}" if reason else quality(place, path, print))


def _give_back(args: ExportArgs, form: Literal["huggingface", "dat", "picogpt"]) -> None:
    from picogpt.api import newest_run
    from picogpt.converting import convert
    from picogpt.training.monitor import to_stderr

    if args.precision != "fp32" or args.portable:
        raise UserError("--precision and --portable are for ONNX files: leave them out, or --format")
    if not args.out:
        raise UserError(f"--format {form} needs a place to write to: give --out PATH")
    run = args.run or newest_run()
    convert(run, form, Path(args.out), to_stderr)
    print(f"wrote {args.out}: run {run} in the format {form}")


def import_(argv: Sequence[str]) -> None:
    from picogpt.api import LOGS
    from picogpt.importing import import_model
    from picogpt.training.monitor import to_stderr

    args = parse(ImportArgs, "picogpt import", argv)
    tokenizer = Path(args.tokenizer) if args.tokenizer else None
    run_dir = LOGS / run_name(args.run)
    said = import_model(Path(args.path), run_dir, args.n_head, tokenizer, args.bfloat16, to_stderr)
    print(f"imported {args.path} as run {args.run}: {said}")


def prepare(argv: Sequence[str]) -> None:
    from picogpt.api import DATASET
    from picogpt.preparing import prepare_ahead

    prepare_ahead(parse(PrepareArgs, "picogpt prepare", argv, PrepareArgs(DataConfig())).config, DATASET)


def info(argv: Sequence[str]) -> None:
    from picogpt.api import use_checkpoint
    from picogpt.infoview import print_costs, print_report
    from picogpt.training.checks import config_of, is_imported
    from picogpt.training.monitor import to_stderr

    name = first_of(Preset, "picogpt info", argv).preset_name
    args = parse(InfoArgs, "picogpt info", argv, InfoArgs(config=preset(name)))
    if args.run:
        name = args.run
        config, imported = use_checkpoint(name, lambda place: (config_of(place), is_imported(place)), to_stderr)
        if imported:
            config = fine_tuning(config, RunConfig(), TrainConfig.train)
        args = parse(InfoArgs, "picogpt info", argv, InfoArgs(config=config))
    print_report(name, args.config)
    if args.flops:
        print_costs(name, args.config.model)


def logs(argv: Sequence[str]) -> None:
    """Show the log of a run, or compare several: a table, and their losses as a plot."""
    from picogpt.reports.command import logs

    logs(argv)


def report(argv: Sequence[str]) -> None:
    """Write one page of a run or several, which any browser opens without a network."""
    from picogpt.reports.command import report

    report(argv)


def sweep(argv: Sequence[str]) -> None:
    """Train every combination of some settings with several seeds, and compare them."""
    from picogpt.sweep.command import sweep

    sweep(_with_port(argv), run_name)


def bench(argv: Sequence[str]) -> None:
    """Measure speed: of training, to a loss, of reading text, of writing it."""
    from picogpt.bench.command import bench

    bench(argv)


COMMANDS = {
    "train": train,
    "generate": generate,
    "export": export,
    "import": import_,
    "prepare": prepare,
    "info": info,
    "logs": logs,
    "report": report,
    "sweep": sweep,
    "bench": bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 2, after one line on stderr, for what the user can put right."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not what stands in for them in tests and notebooks, or None when closed
            stream.reconfigure(errors="replace")  # what a terminal cannot show, or a pipe sends, is no reason to stop
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(_usage())
            return 0
        if argv[0] not in COMMANDS:
            raise UserError(f"no command is called {argv[0]!r}; there are {', '.join(COMMANDS)}")
        COMMANDS[argv[0]](argv[1:])
        if sys.stdout:
            sys.stdout.flush()
        return 0
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        _complain(f"picogpt: {error}")
        return 2
    except MemoryError as error:
        _complain(f"picogpt: out of memory ({error}): try --low-memory, a smaller model, batch or number of samples")
        return 2
    except KeyboardInterrupt:
        _complain("")
        return 130


def _complain(line: str) -> None:
    with suppress(OSError):  # nobody can be told, but for the exit status
        print(line, file=sys.stderr, flush=True)


def _usage() -> str:
    documented = (TrainArgs, GenerateArgs, ExportArgs, ImportArgs, PrepareArgs, InfoArgs, logs, report, sweep, bench)
    lines = [f"  {name:10}{thing.__doc__}" for name, thing in zip(COMMANDS, documented, strict=True)]
    return "\n".join(["usage: picogpt COMMAND [options]    (each command has --help)", "", *lines])


def run_name(name: str) -> str:
    """The name itself. Raises UserError for one that cannot be that of a run."""
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise UserError(f"a run is named with letters, digits, '.', '-' and '_', not {name!r}: give another --run")
    return name


def _stem(data: str) -> str:
    """What a run is called after: the name of a data set, or of a file without its suffix."""
    return "input" if data == "-" else data if ":" in data else Path(data).stem
