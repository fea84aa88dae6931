"""`picogpt bench generate`: how fast each engine writes one stream of text, measured in turns."""

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from threadpoolctl import threadpool_limits

from picogpt.config import GenerateConfig, Precision, RunConfig
from picogpt.errors import UserError, one_line
from picogpt.inference.engines import arrays_of, onnx_generator
from picogpt.inference.generator import Generator
from picogpt.inference.language_model import LanguageModel
from picogpt.inference.onnx.export import export
from picogpt.inference.onnx.session import OnnxModel
from picogpt.model.initialization import initial_arrays
from picogpt.model.parameters import parameter_count
from picogpt.system import hardware
from picogpt.tokenizers.characters import CharTokenizer

ROUNDS = 7
LONG = 1280  # tokens that PicoGPT looks back over
PROMPT = "She sells sea shells by the sea shore. "
PRINTABLE = 32, 0xD800  # from the space up to the first code point that is no character

Speed = Callable[[], float]
"""Measures once. Returns tokens a second."""


def new_model(config: RunConfig) -> LanguageModel:
    """Return an untrained model of this shape, with a tokenizer that has a character for every row of its table."""
    first, end = PRINTABLE
    characters = "".join(map(chr, range(first, min(first + config.model.vocab_size, end))))
    arrays = initial_arrays(config.model, config.train.seed)
    return LanguageModel(config.model, arrays, CharTokenizer(characters), config.rolls)


def measure(model: LanguageModel, tokens: int, prompt_tokens: int, peer: str = "") -> dict[str, object]:
    """Measure each engine in rounds of one stream, and return the medians; a token is a character.

    fp32, int8, numpy: tokens a second from the first to the last, after `prompt_tokens`; fp32_at_1280: after so many.
    first_token_ms: from the prompt to the first token, fp32. matrix_vector_bound: tokens a second if there were nothing
    but the products of its matrices with a vector, on one thread. peer: a command that prints its own tokens a second,
    as "tok/s: 1234".
    Raises UserError for fewer than two tokens, no prompt, or a peer that fails.
    """
    if tokens < 2 or prompt_tokens < 1:
        raise UserError(f"{tokens} tokens after {prompt_tokens} is nothing to measure: --tokens 2 --prompt-tokens 1")
    firsts: list[float] = []
    with TemporaryDirectory() as folder:
        fp32, int8 = (_exported(model, precision, Path(folder)) for precision in ("fp32", "int8"))
        contestants: dict[str, Speed] = {
            "fp32": lambda: _stream(_open(fp32), tokens, prompt_tokens, firsts),
            "int8": lambda: _stream(_open(int8), tokens, prompt_tokens, []),
            "fp32_at_1280": lambda: _stream(_open(fp32), tokens, LONG, []),
            "numpy": lambda: _stream(model.generator, tokens, prompt_tokens, []),
            "matrix_vector_bound": _matrix_vector(model),
            **({"peer": lambda: _peer(peer)} if peer else {}),
        }
        for speed in contestants.values():
            speed()  # to warm up
        firsts.clear()
        rounds = [{name: speed() for name, speed in contestants.items()} for _ in range(ROUNDS)]
    medians = {name: round(float(np.median([r[name] for r in rounds])), 1) for name in contestants}
    over_peer = {
        f"{name}_over_peer": round(float(np.median([r[name] / r["peer"] for r in rounds])), 2)
        for name in ("fp32", "int8")
        if peer
    }
    at_length = float(np.median([r["fp32_at_1280"] / r["fp32"] for r in rounds]))
    return {
        **medians,
        **over_peer,
        "at_1280_over_empty": round(at_length, 2),
        "first_token_ms": round(1e3 * float(np.median(firsts)), 3),
        "tokens": tokens,
        "prompt_tokens": prompt_tokens,
        "threads": hardware.physical_cores(),
        "parameters": parameter_count(model.config)[0],
        "peak_rss_mb": round(hardware.peak_memory() / 2**20, 1),
        "machine": hardware.machine(),
    }


def _exported(model: LanguageModel, precision: Precision, folder: Path) -> Path:
    """Export the model. Returns the path of the file."""
    path = folder / f"{precision}.onnx"
    export(path, model.config, arrays_of(model), model.tokenizer, precision)
    return path


def _open(path: Path) -> Generator:
    """Open a new session, so that there is only one: threads of an idle one would take time from the measured ones."""
    return onnx_generator(OnnxModel(path, hardware.physical_cores()))


def _stream(generator: Generator, tokens: int, prompt_tokens: int, firsts: list[float]) -> float:
    """Measure one stream in tokens a second, from the first to the last. Appends the time to the first to `firsts`."""
    prompt = (PROMPT * (prompt_tokens // len(PROMPT) + 1))[:prompt_tokens]
    began = time.perf_counter()
    stream = generator.stream(prompt, GenerateConfig(tokens, temperature=1.0, seed=0))
    next(stream)
    first = time.perf_counter()
    for _ in stream:
        pass
    firsts.append(first - began)
    return (tokens - 1) / (time.perf_counter() - first)


def _matrix_vector(model: LanguageModel) -> Speed:
    """Return what measures every matrix that a token is multiplied by, times a vector, on one thread."""
    matrices = [array for name, array in arrays_of(model).items() if array.ndim == 2 and name != "wpe.weight"]
    vectors = [(np.ones(array.shape[1], np.float32), np.empty(array.shape[0], np.float32)) for array in matrices]

    def speed() -> float:
        with threadpool_limits(1, user_api="blas"):
            began, passes = time.perf_counter(), 0
            while passes < 64 and time.perf_counter() - began < 1:
                for matrix, (x, y) in zip(matrices, vectors, strict=True):
                    np.matmul(matrix, x, out=y)
                passes += 1
        return passes / (time.perf_counter() - began)

    return speed


def _peer(command: str) -> float:
    """Run a peer's command. Returns the tokens a second that it prints last. Raises UserError where it fails."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, errors="replace", check=False)
    output = done.stdout + "\n" + done.stderr
    found = re.findall(r"tok(?:ens)?/s:?\s*([\d.]+)", output)
    if done.returncode or not found:
        last = one_line(output.split("\n")[-2])
        raise UserError(f'the peer ended with status {done.returncode} and printed no "tok/s: NUMBER": {last!r}')
    return float(found[-1])
