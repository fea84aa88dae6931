"""Train a run, or go on with it: the same command continues where it stopped."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from picogpt.commands.options import Preset, first_of, parse, with_port
from picogpt.config import DataConfig, MonitoringConfig, RunConfig, TrainConfig
from picogpt.config.presets import fine_tuning, preset
from picogpt.errors import UserError
from picogpt.monitoring.observers import Observers
from picogpt.runs import checkpoints
from picogpt.runs.checkpoint import read_record, verify
from picogpt.runs.find import run_name, use_checkpoint
from picogpt.runs.layout import DATASET, LOGS
from picogpt.system.terminal import to_stderr
from picogpt.training.run import Run


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
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)


def run(argv: Sequence[str]) -> None:
    argv = with_port(argv)
    first = first_of(_TrainFirst, "picogpt train", argv)
    start, origin = preset(first.preset_name), None
    data = DataConfig(first.data) if first.data else start.data
    name = run_name(first.run or re.sub(r"[^\w.-]+", "-", f"{first.preset_name}-{_stem(data.names[0])}"))
    if first.init_from:  # the other run is needed once
        own = None if first.fresh else checkpoints.newest_recorded(LOGS / name)
        origin = own or use_checkpoint(first.init_from, _verified, to_stderr)
        before = read_record(origin).meta.config
        tuned = replace(before, data=start.data) if own else fine_tuning(before, start, first.train)
        if not own and first.preset_name != Preset.preset and tuned.train != start.train:
            to_stderr("from a model of another program the settings are fine-tuning's, and not those of the preset")
        start = replace(tuned, data=replace(start.data, tokenizer=before.data.tokenizer))
    args = parse(TrainArgs, "picogpt train", argv, TrainArgs(config=start))
    observers = Observers(args.monitoring, LOGS / name)
    Run(args.config, LOGS / name, DATASET, observers, args.fresh, origin, args.monitoring).train()


def _verified(place: Path) -> Path:
    """The checkpoint folder itself. Raises DamageError where its weights are not sound."""

    verify(place, optimizer=False)
    return place


def _stem(data: str) -> str:
    """What a run is called after: the name of a data set, or of a file without its suffix."""
    return "input" if data == "-" else data if ":" in data else Path(data).stem
