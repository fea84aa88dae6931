"""Let a trained run write: once, in a loop, or as questions and answers."""

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Optional

from picogpt.commands.options import parse
from picogpt.config import GenerateConfig
from picogpt.errors import UserError
from picogpt.inference.engines import open_generator
from picogpt.inference.generator import Generator, Streams
from picogpt.runs.find import newest_run
from picogpt.system.terminal import to_stderr, visible
from picogpt.tokenizers.ids import IdsTokenizer

LONGEST_PROMPT = 12_800  # characters of a prompt that are read, ten times as far as PicoGPT looked back
QUESTION, STOP = "<Q>{}</Q>\n<A>", "</A>"  # as `--qa` makes documents of two fields


@dataclass(frozen=True)
class GenerateArgs:
    """Let a trained run write. Without --prompt it reads one from a pipe, or asks for prompts on a terminal."""

    config: GenerateConfig
    prompt: Optional[str] = None  # noqa: UP045 (see GenerateConfig.seed)
    """The text to go on from."""
    run: str = ""
    """A run in logs/, or the path of one. Default: the newest."""
    chat: bool = False
    """Prompts are questions: <Q>..</Q> before the model, and its answer up to </A>."""
    engine: Literal["onnx", "numpy"] = "onnx"
    """What runs the model: ONNX Runtime, for which the run is exported when needed, or NumPy."""
    precision: Literal["auto", "fp32", "int8", "int4"] = "auto"
    """Of the ONNX file. auto: that of the one there is; else fp32, or int8 for weights of half the free memory."""
    json: bool = False
    """Print an object a line: prompt, text, tokens, tokens_per_second, first_token_ms, engine."""


def run(argv: Sequence[str]) -> None:
    args = parse(GenerateArgs, "picogpt generate", argv, GenerateArgs(GenerateConfig()))

    if args.engine == "numpy" and args.precision in ("int8", "int4"):
        raise UserError(f"--precision {args.precision} is for the engine onnx; NumPy computes in fp32")
    writer, engine = open_generator(args.run or newest_run(), args.engine, args.precision, to_stderr)
    respond(Responder(writer, engine, args.config, args.chat, args.json), args.prompt)


@dataclass
class Responder:
    """What writes, and how it is shown."""

    writer: Generator
    engine: str
    """What runs the model, in words."""
    config: GenerateConfig
    chat: bool = False
    json: bool = False
    streams: Streams | None = None
    """All that was read and written since a prompt began."""

    def __post_init__(self) -> None:
        if self.chat and not self.config.stop:
            self.config = replace(self.config, stop=STOP)

    def answer(self, prompt: str, go_on: bool = False) -> None:
        """Print what follows the prompt: after the prompt as the model reads it, or in a chat alone.

        go_on: what follows it after all that is there already.
        """
        tokenizer, began = self.writer.tokenizer, time.perf_counter()
        if len(prompt) > LONGEST_PROMPT:
            to_stderr(f"the prompt has {len(prompt):,} characters: the last {LONGEST_PROMPT:,} are read")
            prompt = prompt[-LONGEST_PROMPT:]
            if tokenizer.name == IdsTokenizer.name:  # what is left of a number is another
                prompt = prompt.partition(" ")[2]
        text = QUESTION.format(prompt) if self.chat and (prompt or not go_on) else prompt
        read = text
        if unknown := tokenizer.unknown(text):
            becomes = tokenizer.decode(tokenizer.encode(unknown[:1]))
            read = text.translate({ord(character): becomes for character in unknown})
            to_stderr(f"not in this model's alphabet: {unknown[:40]!r}, read as {becomes!r}")
        if self.streams is None or not go_on:
            self.streams = self.writer.begin(self.config)
        self.streams.read(text)
        steps = self.streams.write(self.config)
        if self.json:
            self._print_json(read, steps, began)
            return
        shown = "" if self.chat or go_on else read
        if self.config.samples == 1:
            _print_text(shown)
            for (piece,) in steps:
                _print_text(piece)
            print()
            return
        for i, text in enumerate(self._texts(list(steps)), start=1):
            _print_text(f"--- {i} of {self.config.samples} ---\n{shown}{text}\n")

    def _texts(self, steps: list[list[str]]) -> list[str]:
        return ["".join(step[i] for step in steps) for i in range(self.config.samples)]

    def _print_json(self, prompt: str, steps: Iterator[list[str]], began: float) -> None:
        """An object a line for each sample."""
        assert self.streams is not None
        kept, times = [], []
        for step in steps:
            kept.append(step)
            times.append(time.perf_counter())
        # From the first token to the last, of all samples together; null where there is no second one.
        speed = (sum(self.streams.written) - self.config.samples) / (times[-1] - times[0]) if len(times) > 1 else None
        for text, count in zip(self._texts(kept), self.streams.written, strict=True):
            fields = {
                "prompt": prompt,
                "text": text,
                "tokens": count,
                "tokens_per_second": speed and round(speed, 1),
                "first_token_ms": round(1e3 * (times[0] - began), 2) if times else None,
                "engine": self.engine,
            }
            print(json.dumps(fields, ensure_ascii=False), flush=True)


def _print_text(text: str) -> None:
    """As it is, but that a terminal is not given what it would obey."""
    if sys.stdout.isatty():
        text = re.sub(r"[^\n\t]+", lambda line: visible(line[0], sys.stdout.encoding), text)
    print(text, end="", flush=True)


def respond(writing: Responder, prompt: str | None) -> None:
    """Answer the prompt, or what is typed, or what comes through a pipe: all of it, or in a chat each line.

    Raises UserError where there is nothing to read.
    """
    if prompt is not None:
        writing.answer(prompt)
    elif sys.stdin is None:
        raise UserError("there is no standard input: give a prompt with --prompt")
    elif sys.stdin.isatty():
        _converse(writing)
    elif writing.chat:
        for line in filter(str.strip, sys.stdin):
            writing.answer(line.rstrip("\r\n"))
    else:
        text = sys.stdin.read()
        if not text:
            raise UserError("the standard input is empty: give a prompt with --prompt")
        writing.answer(text.removesuffix("\n").removesuffix("\r"))


def _converse(writing: Responder) -> None:
    """Ask for prompts until the input ends. One with a leading + goes on from the text so far; Ctrl-C ends a text."""
    writing.writer.begin(writing.config)  # what cannot be is said before anybody types
    print("a prompt to go on from, + to write on, +more to add to it; Ctrl-D quits", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        go_on = prompt.startswith("+")
        if go_on and writing.config.samples > 1:
            to_stderr("+ goes on from one text, and --samples writes several")
            continue
        try:
            writing.answer(prompt.removeprefix("+"), go_on)
        except UserError as error:  # such as of a model that takes numbers
            to_stderr(str(error))
        except KeyboardInterrupt:
            writing.streams = None  # it may have read half of something
            print()
            print("(stopped; the next prompt begins anew)", file=sys.stderr)
