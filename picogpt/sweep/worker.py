"""One run of a sweep, in a process of its own, so that its memory and its errors are its own."""

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
from typing import Literal

from picogpt.config import MonitoringConfig, RunConfig
from picogpt.data.prepare import prepare
from picogpt.data.shards.reader import Shards, Span
from picogpt.errors import UserError
from picogpt.evaluation.loss import full_loss, text_bits
from picogpt.evaluation.samples import sample_prompt, write_sample
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

MOST_TOKENS = 1_000_000  # that a loss at the end is measured on
SAMPLE_SEED = 1  # of the samples of all runs of a sweep
_KILL_AFTER = 20.0  # seconds after a second Ctrl-C

State = Literal["done", "pruned", "failed", "stopped", "refused"]
"""How a run ended for good: "done", "pruned", or "failed", as it would again. Or for now: "stopped", or "refused" for a
reason that the user can put right."""


@dataclass(frozen=True)
class Order:
    """What to train, where, and how to monitor it."""

    config: RunConfig
    run_dir: Path
    dataset_dir: Path
    monitoring: MonitoringConfig


@dataclass(frozen=True)
class Figures:
    """What was measured of a run that came to its end."""

    val_loss: float
    """In nats a token, over up to MOST_TOKENS tokens."""
    train_loss: float
    """The same, over as many tokens of the training text."""
    bits_per_char: float | None
    """`val_loss` as bits a character of the text; None where the tokens stand for no text."""
    bits_per_byte: float | None
    """The same as bits a byte."""
    parameters: int
    tokens: float | None
    """Number of tokens that it trained on."""
    seconds: float
    """Time spent training."""
    tokens_per_second: float
    """The median over its evaluations."""
    memory_mb: float | None
    """Peak of the memory that training has used."""
    before: str
    """What the model writes before training."""
    after: str
    """What it writes after training."""

    @property
    def loss(self) -> float:
        """What compares it with others: bits a byte, or nats a token where tokens are no text."""
        return self.val_loss if self.bits_per_byte is None else self.bits_per_byte


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    state: State
    figures: Figures | None = None
    """Of a run that is "done", else None."""
    reason: str = ""
    """Why it "failed" or was "refused"."""


class Worker:
    """The process of one run. After every evaluation it asks whether to continue."""

    def __init__(self, order: Order) -> None:
        context = get_context("spawn")
        self._link, other_end = context.Pipe()
        self._process = context.Process(target=_run_process, args=(other_end, order))
        # Ctrl-C must not reach the process before it has left this one's group.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if _receives_interrupts() else None
        self._process.start()
        if previous is not None:
            signal.signal(signal.SIGINT, previous)
        other_end.close()
        self._is_stopping = False

    def next(self, stopped: bool) -> tuple[float, float] | Outcome | None:
        """Return the share of the run that is done and its loss, or how it ended; None: nothing new yet.

        The loss is in bits a byte of the validation text, or in nats a token where tokens are no text.

        stopped: whether it should save and end.
        """
        if stopped and not self._is_stopping:
            self._is_stopping = True
            self._interrupt()
        try:
            if not self._link.poll(0.2):
                return None
            news: tuple[float, float] | Outcome = self._link.recv()
        except (EOFError, OSError):
            self._process.join()
            status = self._process.exitcode
            if self._is_stopping:
                return Outcome("stopped")
            return Outcome("failed", reason=f"its process ended with status {status}, perhaps for lack of memory")
        return news

    def answer(self, continues: bool) -> None:
        """Answer an evaluation: whether the run should continue."""
        with suppress(OSError):  # it has ended, as `next` will find
            self._link.send(continues)

    def close(self) -> None:
        """Wait for the process. Where an exception is being handled, end it soon."""
        if self._process.is_alive() and sys.exc_info()[0]:
            self._interrupt()
            self._interrupt()
            self._process.join(_KILL_AFTER)
            self._process.kill()
        self._process.join()
        self._link.close()

    def _interrupt(self) -> None:
        if sys.platform != "win32" and self._process.pid:  # there, Ctrl-C has reached it already
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGINT)


def _receives_interrupts() -> bool:
    """Return whether Ctrl-C reaches this process, and this thread may change that."""
    return threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN


def _run_process(link: Connection, order: Order) -> None:
    """Train, and send the outcome."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C goes to the parent alone, which passes it on
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        link.send(_train(link, order))
    except UserError as error:
        link.send(Outcome("refused", reason=str(error)))
    except MemoryError:
        link.send(Outcome("failed", reason="out of memory"))
    except KeyboardInterrupt:
        link.send(Outcome("stopped"))


def _train(link: Connection, order: Order) -> Outcome:
    """Train the run to its end, as long as the parent answers its evaluations with yes. Raises UserError."""
    pruned = False

    def ask(evaluation: Evaluation) -> bool:
        nonlocal pruned
        try:
            bits = evaluation.bits_per_byte
            link.send((run.progress, evaluation.val_loss if bits is None else bits))
            pruned = not link.recv()
        except (EOFError, OSError):
            return False  # the parent has died: the run is saved, and can be resumed
        return not pruned

    observers = Observers(order.monitoring, order.run_dir, should_continue=ask)
    run = Run(order.config, order.run_dir, order.dataset_dir, observers, monitoring=order.monitoring)
    try:
        run.train()
    except UserError as error:
        if run.state.divergence.returns or isinstance(error, NotFiniteError):
            return Outcome("failed", reason=str(error))
        raise
    if pruned and run.progress < 1:
        return Outcome("pruned")
    if run.progress < 1:
        return Outcome("stopped")
    return Outcome("done", _measure(order, run))


def _measure(order: Order, run: Run) -> Figures:
    """Measure a run that is at its end: its losses over many tokens, and samples from before and after training."""
    found, last = checkpoints.latest(order.run_dir), run.log.evaluations[-1]
    if found is None or found.step != run.state.step:
        raise UserError(
            f"{order.run_dir}: its last checkpoint is damaged: the same command trains its last steps again"
        )
    config, arrays = merged(run.config.model, found.model)
    tokenizer, seed = from_dict(found.meta.tokenizer), run.config.train.seed
    untrained = GPT(config, as_tensors(initial_arrays(config, seed)))
    with open_lanes(run.fitted) as lanes:
        trainer = Trainer(run.fitted, found.model, lanes)
        data = prepare(order.config.data, order.dataset_dir, lambda _: None)
        val = _beginning(data.val, MOST_TOKENS)
        val_loss, train_loss = full_loss(trainer, val), full_loss(trainer, _beginning(data.train, len(val)))
    prompt = sample_prompt(tokenizer, val.read(0, min(len(val), run.fitted.context)))
    per_char, per_byte = text_bits(val_loss, len(val) - 1, tokenizer.text_size(val.read(1, len(val))))
    return Figures(
        val_loss=val_loss,
        train_loss=train_loss,
        bits_per_char=per_char,
        bits_per_byte=per_byte,
        parameters=parameter_count(run.config.model)[0],
        tokens=last.tokens,
        seconds=run.state.seconds,
        tokens_per_second=median(entry.tokens_per_second or 0.0 for entry in run.log.evaluations),
        memory_mb=last.memory_mb,
        before=write_sample(untrained, tokenizer, SAMPLE_SEED, order.config.rolls, prompt),
        after=write_sample(GPT(config, as_tensors(arrays)), tokenizer, SAMPLE_SEED, order.config.rolls, prompt),
    )


def _beginning(tokens: Shards, most: int) -> Span:
    return Span(tokens, 0, min(len(tokens), most))
