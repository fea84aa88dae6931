"""Turn a text into tokens ahead of time, which training otherwise does by itself."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from picogpt.commands.options import parse, parse_known
from picogpt.config import DataConfig
from picogpt.config.presets import preset, preset_for, tokenizer_for
from picogpt.data.prepare import prepare
from picogpt.data.sources.corpora import size_of
from picogpt.data.sources.datasets import is_offline, only_dataset
from picogpt.data.streaming.plan import StreamStatus, plan_for
from picogpt.data.token_folder import file_tokenizer
from picogpt.errors import UserError
from picogpt.monitoring.screen import Screen
from picogpt.runs.layout import DATASET


@dataclass(frozen=True)
class PrepareArgs:
    """Turn a text into tokens ahead of time, which training otherwise does by itself."""

    config: DataConfig


@dataclass(frozen=True)
class _KnownArgs:
    """The options that have to be known first."""

    data: str | tuple[str, ...] = DataConfig.data
    tokenizer: str = ""


def run(argv: Sequence[str]) -> None:
    """Prepare the text that the options name. Raises UserError for a problem the user can solve."""
    first = parse_known(_KnownArgs, "picogpt prepare", argv)
    names = DataConfig(first.data).names
    start = preset(preset_for(names, first.tokenizer)).data  # as train chooses it
    start = replace(start, data=DataConfig.data, tokenizer=tokenizer_for(start, size_of(names)))
    prepare_ahead(parse(PrepareArgs, "picogpt prepare", argv, PrepareArgs(start)).config, DATASET)


def prepare_ahead(data: DataConfig, dataset_dir: Path) -> None:
    """Make the tokens of the text in `data`, of a data set from the hub up to its limit. Ctrl-C keeps what is done.

    Raises UserError for a problem with the text, the disk or the network.
    """
    screen = Screen()
    dataset = only_dataset(data.names)
    columns = (
        BarColumn(24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        if dataset is None:
            prepared = prepare(
                data,
                dataset_dir,
                screen.notice,
                advance=lambda read, total: progress.update(task, advance=read, total=total),
            )
            train, val = len(prepared.train), len(prepared.val)
            screen.notice(f"{prepared.corpus.source}: {train:,} tokens to train on, {val:,} to validate")
            return
        if is_offline():
            raise UserError("HF_HUB_OFFLINE is set: unset it to fetch a data set from the hub")
        from picogpt.data.streaming.filler import fill  # which loads the hub's library

        plan, last = plan_for(dataset, data, file_tokenizer(data), dataset_dir), StreamStatus("working", "")

        def report(status: StreamStatus) -> None:
            nonlocal last
            progress.update(task, completed=status.tokens, total=plan.limit, description=status.text)
            if status.state == "waiting":
                screen.notice(status.text)
            last = status

        fill(plan, report, lambda: screen.notice("another run is fetching this data set: waiting for it"))
    if last.state == "incomplete":
        raise UserError(last.text)
    screen.notice(last.text)
