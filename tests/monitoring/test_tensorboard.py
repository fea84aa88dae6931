"""Event files that TensorBoard reads: the frames and checksums are checked here without the code that made them."""

import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboardX import proto

from picogpt.config import MonitoringConfig
from picogpt.errors import UserError
from picogpt.monitoring import tensorboard
from picogpt.monitoring.tensorboard import TensorBoardWriter
from picogpt.runs.log import Evaluation
from tests.support.running import before_step, config_for, log_of, open_run, status_of

pytestmark = pytest.mark.usefixtures("short_samples", "no_plots")

ENTRY = Evaluation(50, None, 2.0, 1.25, lr=0.01, sample="He is ä")


def crc32c(data: bytes) -> int:
    """Castagnoli's, a bit at a time (RFC 3720), masked as in the TFRecord format."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events_in(folder: Path) -> list[Any]:
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            length, checksum = struct.unpack("<QI", data[:12])
            assert checksum == crc32c(data[:8])
            record, data = data[12 : 12 + length], data[12 + length :]
            assert struct.unpack("<I", data[:4])[0] == crc32c(record)
            data = data[4:]
            found.append(proto.event_pb2.Event.FromString(record))
    return found


def scalars(events: list[Any]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, round(value.simple_value, 4)))
    return found


def test_an_evaluation_becomes_events(tmp_path: Path) -> None:
    TensorBoardWriter(tmp_path / "tensorboard", 0, pytest.fail).evaluation(ENTRY)
    events = events_in(tmp_path / "tensorboard")
    assert events[0].file_version == "brain.Event:2"
    expected = {"nats_a_token/validation": 2.0, "bits_a_character/validation": 1.25, "learning_rate": 0.01}
    assert scalars(events) == {tag: [(50, value)] for tag, value in expected.items()}
    texts = [
        value.tensor.string_val[0].decode()
        for event in events
        for value in event.summary.value
        if value.tensor.string_val
    ]
    assert texts == ["He is ä"]


def test_a_run_writes_them_and_goes_on_with_them(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = MonitoringConfig(tensorboard=True)

    def kill() -> None:
        raise KeyboardInterrupt

    before_step(monkeypatch, 10, kill)
    with pytest.raises(KeyboardInterrupt):
        open_run(config_for(text), monitoring=watch).train()
    run = open_run(config_for(text), monitoring=watch)
    run.train()
    events = events_in(run.dir / "tensorboard")
    assert len(list((run.dir / "tensorboard").iterdir())) == 2
    starts = [event.step for event in events if event.HasField("session_log")]
    assert starts == [1, 9]  # what was said of steps from the ninth on does not count
    losses = [(entry["step"], round(entry["val_loss"], 4)) for entry in log_of(run)["evaluations"]]
    assert scalars(events)["nats_a_token/validation"] == losses and len(losses) == 3
    fresh = open_run(config_for(text), monitoring=watch, fresh=True)
    fresh.train()
    assert len(list((run.dir / "tensorboard").iterdir())) == 1
    open_run(config_for(text), fresh=True).train()
    assert not (run.dir / "tensorboard").exists()


def test_a_disk_that_refuses_is_told_of_once(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("not a folder", encoding="utf-8")
    told: list[str] = []
    events = TensorBoardWriter(tmp_path / "tensorboard", 1, told.append)
    events.evaluation(ENTRY)
    assert len(told) == 1 and "cannot be written" in told[0] and "TensorBoard will miss the rest of this run" in told[0]


def test_without_the_library_it_says_how_to_get_it(
    text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"pip install --editable '\.\[tensorboard\]'"):
        tensorboard.require_library()
    monkeypatch.chdir(text.parent)
    assert status_of("train", "--data", str(text), "--context-len", "16", "--run", "r", "--tensorboard") == 2
    assert "python -m pip install --editable '.[tensorboard]'" in capsys.readouterr().err
    assert not (text.parent / "logs" / "r").exists()
