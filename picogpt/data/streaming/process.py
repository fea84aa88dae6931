"""The background process that fills a stream's folder, from the view of the run that started it."""

import subprocess
import time
from contextlib import suppress
from dataclasses import replace

from picogpt.data.streaming.plan import Plan, StreamStatus, read_status
from picogpt.errors import one_line
from picogpt.system.processes import start

_AFTER_DYING, _AFTER_FAILING = 10.0, 60.0  # seconds before it is started again


class StreamProcess:
    """Starts the background process of a stream, reads its status, and starts it again when it died."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._stale = read_status(plan.folder)  # of an earlier run; not judged by time, since clocks are set back

    def start(self) -> None:
        """Start it, also again. Raises OSError where the system cannot start a process."""
        self._began = time.monotonic()
        with (self.plan.folder / "stream.err").open("wb") as errors:
            # It ends when its standard input ends, which happens also when this process is killed.
            process = start("picogpt.data.streaming.filler", self.plan.to_json(), stdin=subprocess.PIPE, stderr=errors)
        self.close()
        self._process = process

    def status(self) -> StreamStatus:
        """Return the newest status. A process that died is started again, some time later."""
        status = read_status(self.plan.folder)
        if status is None or status == self._stale:
            status = StreamStatus("working", f"asking for {self.plan.dataset}")
        if self._process is None or self._process.poll() is None or status.state in ("complete", "incomplete"):
            return status
        failed = status.state == "failed"
        if time.monotonic() - self._began > (_AFTER_FAILING if failed else _AFTER_DYING):
            try:
                self.start()
            except OSError as error:
                text = f"the stream cannot be started ({error.strerror or error})"
                return replace(status, state="waiting", text=text)
        if failed:
            return status
        return replace(status, state="waiting", text=f"the stream ended by itself ({self._cause()}); it is restarted")

    def _cause(self) -> str:
        """Return the last line that the process wrote to its standard error, else its exit status."""
        with suppress(OSError):
            lines = (self.plan.folder / "stream.err").read_text(encoding="utf-8", errors="replace").splitlines()
            if lines:
                return one_line(lines[-1])
        assert self._process is not None
        return f"status {self._process.returncode}"

    def close(self) -> None:
        """End the process. What it has not sealed is fetched again by the next one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin:
                self._process.stdin.close()
            self._process = None
