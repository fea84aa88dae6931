"""Event files of the evaluations, for those who watch their runs in TensorBoard."""

import shutil
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from picogpt.errors import UserError, install_extra
from picogpt.runs.log import Evaluation, is_finite

_SCALARS = {
    "nats_a_token/train": "train_loss",
    "nats_a_token/validation": "val_loss",
    "bits_a_character/validation": "bits_per_char",
    "bits_a_byte/validation": "bits_per_byte",
    "unknown": "unknown",
    "learning_rate": "lr",
    "tokens_per_second": "tokens_per_second",
    "memory_mb": "memory_mb",
}


class TensorBoardWriter:
    """Writes an event file for each start of a run; TensorBoard reads all files of a folder as one run.

    It uses the records of tensorboardX but not its writer, whose thread loses what the disk refuses, and which waits
    for the disk at every flush.
    """

    def __init__(self, folder: Path, step: int, notify: Callable[[str], None]) -> None:
        """step: the step after which the run continues. At 0, older files are deleted.

        notify: called once if the disk refuses to write. Raises UserError without the library.
        """
        require_library()
        from tensorboardX import proto

        self._event, self._notify, self._refused = proto.event_pb2.Event, notify, False
        self._path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        if step == 0:
            shutil.rmtree(folder, ignore_errors=True)
        self._session = proto.event_pb2.SessionLog
        self._write(file_version="brain.Event:2")
        self.start(step)

    def start(self, step: int) -> None:
        """Note that the run continues after `step`: TensorBoard then drops what it read about later steps."""
        self._write(step=step + 1, session_log=self._session(status=self._session.START))

    def evaluation(self, entry: Evaluation) -> None:
        """Write one evaluation, with its losses in nats a token and in bits of text."""
        from tensorboardX import summary

        for tag, name in _SCALARS.items():
            if is_finite(value := getattr(entry, name)):
                self._write(step=entry.step, summary=summary.scalar(tag, value))
        if entry.sample:
            self._write(step=entry.step, summary=summary.text("sample", entry.sample))

    def _write(self, **fields: object) -> None:
        """Append one event as a TFRecord: length, masked CRC-32C of the length, data, masked CRC-32C of the data."""
        from tensorboardX.record_writer import masked_crc32c

        record = self._event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(record))
        framed = [length, struct.pack("<I", masked_crc32c(length)), record, struct.pack("<I", masked_crc32c(record))]
        if self._refused:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(b"".join(framed))
        except OSError as error:
            self._refused = True
            reason = error.strerror or error
            self._notify(f"{self._path} cannot be written ({reason}): TensorBoard will miss the rest of this run")


def require_library() -> None:
    """Raise UserError if tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise UserError(f"--tensorboard needs the package tensorboardX: {install_extra('tensorboard')}") from None
