"""Train a run, or continue it: the same command resumes where it stopped."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from picogpt.commands.options import LengthArgs, PresetArgs, parse, parse_known, with_dashboard_port
from picogpt.config import DataConfig, MonitoringConfig, RunConfig, TrainConfig
from picogpt.config.presets import fine_tuning, preset, preset_for, tokenizer_for
from picogpt.data.sources.corpora import size_of
from picogpt.errors import UserError
from picogpt.monitoring.observers import Observers
from picogpt.runs import checkpoints
from picogpt.runs.checkpoint import read_record, verify
from picogpt.runs.find import run_name, use_checkpoint
from picogpt.runs.layout import DATASET, LOGS
from picogpt.system.terminal import to_stderr
from picogpt.tokenizers.registry import unit_of
from picogpt.training.run import Run

_HINT = "pico reads lower-case characters; --preset swift learns pieces of words, upper case too, and any language"


@dataclass(frozen=True)
class TrainPresetArgs(PresetArgs):
    """The option that names a preset, and short options for two of them."""

    efficiency: Annotated[bool, arg(aliases=["-e"])] = False
    """Short for --preset gpt-neo-efficiency, the long run."""
    speed: Annotated[bool, arg(aliases=["-s"])] = False
    """Short for --preset gpt-neo-speed, the quick run."""

    preset: str = ""
    """A named set of settings, which are the defaults of all other options. Default: pico, PicoGPT's model, for wiki,
    wiki-simple, sample and shakespeare; swift, which learns any language, for all other texts."""

    @property
    def preset_name(self) -> str:
        """The preset that is asked for, or "". Raises UserError for two of them."""
        if self.efficiency and self.speed:
            raise UserError("-e and -s are two presets: give one of them")
        if self.preset and (self.efficiency or self.speed):
            raise UserError(f"-e and -s are presets, and so is {self.preset}: give one of them")
        return "gpt-neo-efficiency" if self.efficiency else "gpt-neo-speed" if self.speed else self.preset


@dataclass(frozen=True)
class TrainStartArgs(TrainPresetArgs):
    """The options that set the defaults of the others."""

    run: str = ""
    """Name of the run, its folder in logs/. Default: the names of the preset and the data."""
    fresh: bool = False
    """Start over and discard what the run has learnt."""
    init_from: str = ""
    """Begin with the weights, shape and tokenizer of this run and with a new optimizer (fine-tuning). base: the model
    of English that comes with picogpt.
    For a model of another program the defaults are those of fine-tuning: --init-from RUN --help shows them."""


@dataclass(frozen=True)
class _KnownArgs(TrainStartArgs, LengthArgs):
    """The options that have to be known first."""

    data: str | tuple[str, ...] = ""
    tokenizer: str = ""
    train: str = TrainConfig.train

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the text."""
        return DataConfig(self.data or DataConfig.data).names

    def run_name(self, preset: str) -> str:
        """Return the name of the run with this preset."""
        return run_name(self.run or re.sub(r"[^\w.-]+", "-", f"{preset}-{_stem(self.names[0])}"))


@dataclass(frozen=True)
class TrainArgs(TrainStartArgs):
    """Train a run, or continue it: the same command resumes where it stopped."""

    config: RunConfig = field(default_factory=RunConfig)
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)


def run(argv: Sequence[str]) -> None:
    """Train the run that the options ask for, or continue it. Raises UserError for a problem the user can solve."""
    argv = with_dashboard_port(argv)
    first = parse_known(_KnownArgs, "picogpt train", argv)
    chosen = first.preset_name or _preset_for(first)
    start, origin = preset(chosen), None
    if not first.data:
        first = replace(first, data=start.data.data)
    name = first.run_name(chosen)
    start = replace(start, data=replace(start.data, tokenizer=tokenizer_for(start.data, size_of(first.names))))
    if first.init_from:  # is only needed until the first checkpoint of this run
        own = None if first.fresh else checkpoints.newest_recorded(LOGS / name)
        origin = own or use_checkpoint(first.init_from, _verified, to_stderr)
        meta = read_record(origin).meta
        before, is_foreign = meta.config, meta.is_imported and unit_of(meta.config.data.tokenizer) == "token"
        tuned = replace(before, data=start.data) if own else fine_tuning(before, start, first.train, is_foreign)
        if not own and first.preset_name and tuned.train != start.train:
            to_stderr("for a model of another program the settings are those of fine-tuning, not those of the preset")
        start = replace(tuned, data=replace(start.data, tokenizer=before.data.tokenizer))
    args = parse(TrainArgs, "picogpt train", argv, TrainArgs(config=first.applied(start)))
    observers = Observers(args.monitoring, LOGS / name)
    if chosen == "pico" and not (first.preset_name or first.tokenizer or origin or checkpoints.newest(LOGS / name)):
        observers.notice(_HINT)
    Run(args.config, LOGS / name, DATASET, observers, args.fresh, origin, args.monitoring).train()


def _preset_for(first: _KnownArgs) -> str:
    """Return the preset where none is asked for: that of the text, or pico for a run from before there was another.

    Raises UserError for a run whose records cannot be understood.
    """
    name = preset_for(first.names, first.tokenizer)
    own = None if first.fresh or name == "pico" else checkpoints.newest_recorded(LOGS / first.run_name("pico"))
    return "pico" if own and read_record(own).meta.config.model.context_slot else name


def _verified(place: Path) -> Path:
    """Return the checkpoint folder. Raises DamageError if its weights are damaged."""
    verify(place, optimizer=False)
    return place


def _stem(data: str) -> str:
    """Return the part of a run's default name that is for the data: a file's name goes without its suffix."""
    return "input" if data == "-" else data if ":" in data else Path(data).stem
