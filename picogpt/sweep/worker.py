"""One run of a sweep, in a process of its own: its memory is its own, and so is what goes wrong."""

import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from picogpt.config import MonitoringConfig, RunConfig
from picogpt.data.prepare import prepare
from picogpt.data.shards.reader import Shards, Span
from picogpt.errors import UserError
from picogpt.evaluation.loss import full_loss
from picogpt.evaluation.samples import sample
from picogpt.model.gpt import GPT
from picogpt.model.initialization import initial_arrays
from picogpt.model.parameters import as_tensors, merged, parameter_count
from picogpt.monitoring.observers import Observers
from picogpt.runs import checkpoints
from picogpt.runs.log import Evaluation
from picogpt.tokenizers.registry import from_dict
from picogpt.training.device import open_lanes
from picogpt.training.run import Run
from picogpt.training.trainer import NotFiniteError, Trainer

MOST_TOKENS = 1_000_000  # that a loss at the end is taken over

SAMPLE_SEED = 1  # of what every run of a sweep writes

_GIVE_UP = 20.0  # seconds after a second Ctrl-C


@dataclass(frozen=True)
class Order:
    """What is to be trained, where, and how it is watched."""

    config: RunConfig
    run_dir: Path
    dataset_dir: Path
    monitoring: MonitoringConfig


@dataclass(frozen=True)
class Outcome:
    """How it ended: "done" with its figures, "pruned", or "failed" with a reason, as it would again; or not for good,
    "stopped", or "refused" for a reason that the user can put right."""

    state: str
    figures: dict[str, Any]
    reason: str = ""


class Worker:
    """The process. It tells of every evaluation, and asks whether to go on."""

    def __init__(self, order: Order) -> None:
        context = get_context("spawn")
        self.link, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, order))
        # Until it is out of reach of Ctrl-C it must not hear it.
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN) if _hears() else None
        self._process.start()
        if heard is not None:
            signal.signal(signal.SIGINT, heard)
        theirs.close()
        self._asked = False

    def next(self, stopped: bool) -> tuple[float, float] | Outcome | None:
        """Share of the run that is done and its validation loss, or how it ended; None: nothing new yet.

        stopped: ask it to save and end.
        """
        if stopped and not self._asked:
            self._asked = True
            self._interrupt()
        try:
            if not self.link.poll(0.2):
                return None
            news: tuple[float, float] | Outcome = self.link.recv()
        except (EOFError, OSError):
            self._process.join()
            status = self._process.exitcode
            if self._asked:
                return Outcome("stopped", {})
            return Outcome("failed", {}, f"its process ended with status {status}, perhaps for want of memory")
        return news

    def answer(self, goes_on: bool) -> None:
        with suppress(OSError):  # it has ended, which `next` will tell
            self.link.send(goes_on)

    def close(self) -> None:
        """Wait for the process; one that is still training is ended at once."""
        if self._process.is_alive() and sys.exc_info()[0]:
            self._interrupt()
            self._interrupt()
            self._process.join(_GIVE_UP)
            self._process.kill()
        self._process.join()
        self.link.close()

    def _interrupt(self) -> None:
        if sys.platform != "win32" and self._process.pid:  # there, Ctrl-C has reached it already
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGINT)


def _hears() -> bool:
    """Whether this thread may say what becomes of Ctrl-C, which is heard."""
    return threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN


def _work(link: Connection, order: Order) -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is for who has made this process, which hands it on
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        link.send(_trained(link, order))
    except UserError as error:
        link.send(Outcome("refused", {}, str(error)))
    except MemoryError:
        link.send(Outcome("failed", {}, "out of memory"))
    except KeyboardInterrupt:
        link.send(Outcome("stopped", {}))


def _trained(link: Connection, order: Order) -> Outcome:
    pruned = False

    def ask(evaluation: Evaluation) -> bool:
        nonlocal pruned
        try:
            link.send((run.progress, evaluation.val_loss))
            pruned = not link.recv()
        except (EOFError, OSError):
            return False  # nobody is there any more: it is saved, and goes on another time
        return not pruned

    observers = Observers(order.monitoring, order.run_dir, goes_on=ask)
    run = Run(order.config, order.run_dir, order.dataset_dir, observers, monitoring=order.monitoring)
    try:
        run.train()
    except UserError as error:
        if run.state.divergence.returns or isinstance(error, NotFiniteError):
            return Outcome("failed", {}, str(error))
        raise
    if pruned and run.progress < 1:
        return Outcome("pruned", {})
    if run.progress < 1:
        return Outcome("stopped", {})
    return Outcome("done", _figures(order, run))


def _figures(order: Order, run: Run) -> dict[str, Any]:
    """Of a run that is at its end: losses over many tokens, and what it wrote before and after."""
    place = checkpoints.newest(order.run_dir)
    assert place is not None
    found, last = checkpoints.load(place, optimizer=False), run.log.evaluations[-1]
    config, arrays = merged(run.config.model, found.model)
    tokenizer, seed = from_dict(found.meta.tokenizer), run.config.train.seed
    untrained = GPT(config, as_tensors(initial_arrays(config, seed)))
    with open_lanes(run.fitted) as lanes:
        trainer = Trainer(run.fitted, found.model, lanes)
        data = prepare(order.config.data, order.dataset_dir, lambda _: None)
        val = _part(data.val, MOST_TOKENS)
        losses = {"val_loss": full_loss(trainer, val), "train_loss": full_loss(trainer, _part(data.train, len(val)))}
    return {
        **losses,
        "parameters": parameter_count(run.config.model)[0],
        "tokens": last.tokens,
        "seconds": run.state.seconds,
        "tokens_per_second": median(entry.tokens_per_second or 0.0 for entry in run.log.evaluations),
        "memory_mb": last.memory_mb,
        "before": sample(untrained, tokenizer, SAMPLE_SEED, order.config.rolls),
        "after": sample(GPT(config, as_tensors(arrays)), tokenizer, SAMPLE_SEED, order.config.rolls),
    }


def _part(tokens: Shards, most: int) -> Span:
    return Span(tokens, 0, min(len(tokens), most))
