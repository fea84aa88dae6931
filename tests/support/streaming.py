"""What tests of streaming share: a plan, a stream run to its end, and a wait for another process."""

import time
from pathlib import Path
from typing import Any

from picogpt.config import DataConfig
from picogpt.data.sources.datasets import dataset_named
from picogpt.data.streaming.filler import fill
from picogpt.data.streaming.plan import Plan, StreamStatus, plan_for

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
