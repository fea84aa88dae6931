"""What tests of streaming share: a plan, a stream run to its end, what it brought, and a wait for another process."""

import re
import time
from pathlib import Path
from typing import Any

from picogpt.config import DataConfig
from picogpt.data.sources.datasets import dataset_named
from picogpt.data.streaming.filler import fill
from picogpt.data.streaming.plan import Plan, StreamStatus, plan_for, shards_of
from picogpt.tokenizers.characters import PicoTokenizer
from tests.support.hubserver import article

PICO = PicoTokenizer()
FILES, GROUPS, ROWS = 3, 4, 30  # of the data set that the fixture `hub` serves


def plan_of(folder: Path, name: str = "wiki", **data: Any) -> Plan:
    dataset = dataset_named(name)
    assert dataset is not None
    return plan_for(dataset, DataConfig(name, **data), None, folder)


def filled(folder: Path, name: str = "wiki", **data: Any) -> tuple[Plan, list[StreamStatus]]:
    statuses: list[StreamStatus] = []
    plan = plan_of(folder, name, **data)
    fill(plan, statuses.append)
    return plan, statuses


def wait_for(condition: Any, seconds: float = 300.0) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def texts_of(plan: Plan) -> list[str]:
    """What was streamed, to train on and to validate with."""
    shards = shards_of(plan)
    assert shards is not None
    return [PICO.decode(part.read(0, len(part))) for part in shards]


def articles(text: str) -> list[int]:
    """The numbers of the articles in it, after a check that each is whole."""
    numbers = [int(number) for number in re.findall(r"article (\d+)", text)]
    assert text == "".join(f"{article(number)}\n\n" for number in numbers)
    return numbers


def numbers_of(plan: Plan) -> list[int]:
    """The numbers of all articles that were streamed."""
    return [number for text in texts_of(plan) for number in articles(text)]


def content(folder: Path) -> dict[str, bytes]:
    """Every file of the shards."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*")) if path.is_file()}
