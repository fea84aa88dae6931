"""The background process that fills a stream's folder, as the run that started it sees it."""

import subprocess
import time
from contextlib import suppress
from dataclasses import replace

from picogpt.data.streaming.plan import Plan, StreamStatus, read_status
from picogpt.system.processes import start

_AFTER_DYING, _AFTER_FAILING = 10.0, 60.0  # seconds before it is begun again


class StreamProcess:
    """The process in the background, as the run that started it sees it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._left = read_status(plan.folder)  # by an earlier run; no clock says so, for clocks are set back

    def start(self) -> None:
        """Begin, or begin again. Raises OSError where the system has no process to give."""
        self._began = time.monotonic()
        with (self.plan.folder / "stream.err").open("wb") as errors:
            # The end of its standard input tells it that we are gone.
            process = start("picogpt.data.streaming.filler", self.plan.to_json(), stdin=subprocess.PIPE, stderr=errors)
        self.close()
        self._process = process

    def status(self) -> StreamStatus:
        """The newest. A process that died is started again, some time later."""
        found = read_status(self.plan.folder)
        fresh = found if found and found != self._left else StreamStatus("working", f"asking for {self.plan.dataset}")
        if self._process is None or self._process.poll() is None or fresh.state == "complete":
            return fresh
        failed = fresh.state == "failed"
        if time.monotonic() - self._began > (_AFTER_FAILING if failed else _AFTER_DYING):
            try:
                self.start()
            except OSError as error:
                return replace(fresh, state="waiting", text=f"the stream cannot be started ({error.strerror or error})")
        if failed:
            return fresh
        return replace(fresh, state="waiting", text=f"the stream ended by itself ({self._last_words()}); begun anew")

    def _last_words(self) -> str:
        with suppress(OSError):
            lines = (self.plan.folder / "stream.err").read_text(encoding="utf-8", errors="replace").splitlines()
            if lines:
                return lines[-1][:120]
        assert self._process is not None
        return f"status {self._process.returncode}"

    def close(self) -> None:
        """End it. What it has not sealed is fetched again another time."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin:
                self._process.stdin.close()
            self._process = None
