"""Generate text with a trained run: from one prompt, from one after the other, or as answers to questions."""

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
from picogpt.runs.find import newest_run, trained_runs
from picogpt.runs.layout import BASE
from picogpt.system.terminal import to_stderr, visible
from picogpt.tokenizers.base import Mark, question

LONGEST_PROMPT = 12_800  # characters of a prompt that are read, ten times as many as PicoGPT looked back at
_STOP = "</A>"  # as `--qa` makes documents of two fields


@dataclass(frozen=True)
class GenerateArgs:
    """Generate text with a trained run. Without --prompt it reads one from a pipe or asks for prompts on a terminal."""

    config: GenerateConfig
    prompt: Optional[str] = None  # noqa: UP045 (see GenerateConfig.seed)
    """The text to continue."""
    run: str = ""
    """A run in logs/, its path, or base, the model that comes with picogpt. Default: the newest run, else base."""
    chat: bool = False
    """Treat prompts as questions, as --qa made them for training: the answer ends at its mark."""
    engine: Literal["onnx", "numpy"] = "onnx"
    """What runs the model: ONNX Runtime, for which the run is exported when needed, or NumPy."""
    precision: Literal["auto", "fp32", "int8", "int4"] = "auto"
    """Precision of the ONNX file. auto: that of an existing file; else fp32, or int8 if fp32 takes too much memory."""
    json: bool = False
    """Print one JSON object for each text: prompt, text, tokens, tokens_per_second, first_token_ms, engine."""


def run(argv: Sequence[str]) -> None:
    """Generate what the options ask for. Raises UserError for a problem the user can solve."""
    args = parse(GenerateArgs, "picogpt generate", argv, GenerateArgs(GenerateConfig()))
    if args.engine == "numpy" and args.precision in ("int8", "int4"):
        raise UserError(
            f"--precision {args.precision} is for the engine onnx, NumPy computes in fp32: leave one of them out"
        )
    run = args.run or newest_run()
    if not args.run and run == BASE and not trained_runs():
        to_stderr("nothing was trained here yet: base writes, the model of old novels that comes with picogpt")
    generator, engine = open_generator(run, args.engine, args.precision, to_stderr)
    respond(Responder(generator, engine, args.config, args.chat, args.json), args.prompt)


@dataclass
class Responder:
    """Answers prompts with a model, and prints the answers as text or JSON."""

    generator: Generator
    engine: str
    """What runs the model, in words."""
    config: GenerateConfig
    chat: bool = False
    json: bool = False
    streams: Streams | None = None
    """What was read and written since the last prompt that began a text."""

    def __post_init__(self) -> None:
        if self.chat and not self.config.stop:
            tokenizer = self.generator.tokenizer
            id = tokenizer.mark(_STOP)
            self.config = replace(self.config, stop=_STOP if id is None else tokenizer.decode([id]))

    def answer(self, prompt: str, adds: bool = False) -> None:
        """Print the prompt as the model reads it and how the model continues it; in a chat, only the latter.

        adds: whether the prompt is added to the text so far, of which nothing is printed again.
        """
        tokenizer, began = self.generator.tokenizer, time.perf_counter()
        if len(prompt) > LONGEST_PROMPT:
            to_stderr(f"the prompt has {len(prompt):,} characters: the last {LONGEST_PROMPT:,} are read")
            prompt = prompt[-LONGEST_PROMPT:]
            if not tokenizer.has_words:  # the cut may have left a part of a number, which is another number
                prompt = prompt.partition(" ")[2]
        is_question = self.chat and (prompt or not adds)
        parts = question(prompt) if is_question else [prompt]
        text = "".join(part for part in parts if not isinstance(part, Mark) or tokenizer.mark(part) is None)
        read = "".join(parts)
        if unknown := tokenizer.unknown(text):
            becomes = tokenizer.decode(tokenizer.encode(unknown[:1]))
            read = read.translate({ord(character): becomes for character in unknown})
            to_stderr(f"not in this model's alphabet: {unknown[:40]!r}, read as {becomes!r}")
        if self.streams is None or not adds:
            self.streams = self.generator.begin(self.config)
        if is_question:
            self.streams.read_parts(parts)
        else:
            self.streams.read(prompt)
        steps = self.streams.write(self.config)
        if self.json:
            self._print_json(read, steps, began)
            return
        shown = "" if self.chat or adds else read
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
        """Print one object for each sample."""
        assert self.streams is not None
        written, times = [], []
        for step in steps:
            written.append(step)
            times.append(time.perf_counter())
        # From the first token to the last, of all samples together; null if there is no second one.
        speed = (sum(self.streams.written) - self.config.samples) / (times[-1] - times[0]) if len(times) > 1 else None
        for text, count in zip(self._texts(written), self.streams.written, strict=True):
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
    """Print text without a line end; on a terminal, control characters become visible escapes."""
    if sys.stdout.isatty():
        text = re.sub(r"[^\n\t]+", lambda line: visible(line[0], sys.stdout.encoding), text)
    print(text, end="", flush=True)


def respond(responder: Responder, prompt: str | None) -> None:
    """Answer the prompt, or prompts that are typed, or the text from a pipe: as one prompt, or in a chat each line.

    Raises UserError if there is nothing to read.
    """
    if prompt is not None:
        responder.answer(prompt)
    elif sys.stdin is None:
        raise UserError("there is no standard input: give a prompt with --prompt")
    elif sys.stdin.isatty():
        _converse(responder)
    elif responder.chat:
        for line in filter(str.strip, sys.stdin):
            responder.answer(line.rstrip("\r\n"))
    else:
        text = sys.stdin.read()
        if not text:
            raise UserError("the standard input is empty: give a prompt with --prompt")
        responder.answer(text.removesuffix("\n").removesuffix("\r"))


def _converse(responder: Responder) -> None:
    """Ask for prompts until the input ends. A leading + adds a prompt to the text so far; Ctrl-C ends a text."""
    responder.generator.begin(responder.config)  # so that wrong settings are reported before the user types
    print("enter a prompt, + to continue the last text, or +TEXT to add to it; Ctrl-D quits", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        adds = prompt.startswith("+")
        if adds and responder.config.samples > 1:
            to_stderr("+ continues one text, and --samples writes several")
            continue
        try:
            responder.answer(prompt.removeprefix("+"), adds)
        except UserError as error:  # for example by a model that reads only numbers
            to_stderr(str(error))
        except KeyboardInterrupt:
            responder.streams = None  # it may have read only a part
            print()
            print("(stopped; the next prompt begins a new text)", file=sys.stderr)
