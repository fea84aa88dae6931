"""`python -m benchmarks.memory`: how much memory a large model takes, from its weights to text.

The weights are random bfloat16 numbers, made when they are asked for: no file of them, and never all of them in memory.
Each stage is a process of its own, whose peak of resident memory counts; pages of mapped files are part of it.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from math import prod
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from zlib import crc32

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from picogpt.config import GenerateConfig, ModelConfig, Precision, UserError
from picogpt.data.tokenizer import CharTokenizer
from picogpt.exporting import onnx_writer, opened
from picogpt.inference.export import export
from picogpt.inference.modelfile import metadata
from picogpt.model.parameters import parameter_count, parameter_shapes
from picogpt.options import parse
from picogpt.training import monitor

PROGRAM = "python -m benchmarks.memory"
Name = Literal["tiny", "gpt-neo-125m", "gpt-neo-350m", "gpt-neo-1.3b", "gpt-neo-2.7b"]
SHAPES = {  # blocks, heads, width
    "tiny": (2, 2, 32),
    "gpt-neo-125m": (12, 12, 768),
    "gpt-neo-350m": (24, 16, 1024),
    "gpt-neo-1.3b": (24, 16, 2048),
    "gpt-neo-2.7b": (32, 20, 2560),
}
# GB that loading and generating may take at most; what is not here has no limit.
LIMITS: dict[tuple[str, Precision], float] = {
    ("gpt-neo-1.3b", "int8"): 3.5,
    ("gpt-neo-2.7b", "int8"): 4.5,
    ("gpt-neo-2.7b", "int4"): 3.0,
}
POOL = 1_048_573  # random numbers that all weights are taken from; a prime, so that no two rows are alike
BLOCK = 1 << 18  # of them that are made at a time


@dataclass(frozen=True)
class Memory:
    """Measure the memory of exporting a large model, loading it and generating. Exit status 1: a limit was passed."""

    model: Name = "gpt-neo-1.3b"
    """The shape; tiny for a look at this program."""
    precision: Precision = "int8"
    """Of the ONNX file."""
    tokens: int = 50
    """Tokens to generate."""
    prompt_tokens: int = 8
    """Tokens to read first."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        most = shape(self.model).context_len
        if self.tokens < 2 or self.prompt_tokens < 1 or self.tokens + self.prompt_tokens > most:
            raise UserError(f"--tokens, two at least, and --prompt-tokens, one at least, must not pass {most:,} in all")


@dataclass(frozen=True)
class Stage:
    """A row of the report."""

    name: str
    peak: float
    """GB of resident memory that its process held at most."""
    seconds: float
    limit: float | None = None
    """GB."""
    note: str = ""

    @property
    def passes(self) -> bool:
        return self.limit is None or self.peak < self.limit


def shape(name: str) -> ModelConfig:
    layers, heads, width = SHAPES[name]
    return ModelConfig(
        context_len=2048,
        vocab_size=50257,
        n_layer=layers,
        n_head=heads,
        n_embd=width,
        activation="gelu_tanh",
        qkv_bias=False,
        attention_scale="none",
        layer_pattern=("global", "local"),
        local_window=256,
        init="gpt2",
        context_slot=False,
    )


class RandomWeight:
    """A weight that is made of random bfloat16 numbers, whenever it is looked at."""

    def __init__(self, pool: npt.NDArray[np.float32], name: str, shape: tuple[int, ...]) -> None:
        self.shape, self.ndim, self.size = shape, len(shape), prod(shape)
        self._pool, self._first = pool, crc32(name.encode())
        self._mean = np.float32(".ln_" in f".{name}" and name.endswith("weight"))

    def blocks(self) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Some rows at a time."""
        height = max(1, BLOCK * self.shape[0] // self.size)
        for start in range(0, self.shape[0], height):
            rows = slice(start, min(start + height, self.shape[0]))
            yield rows, self._numbers(rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[np.float32]:
        return self._numbers(slice(0, self.shape[0]))

    def _numbers(self, rows: slice) -> npt.NDArray[np.float32]:
        width = self.size // self.shape[0]
        places = np.arange(self._first + rows.start * width, self._first + rows.stop * width)
        numbers: npt.NDArray[np.float32] = self._pool[places % len(self._pool)] + self._mean
        return numbers.reshape(-1, *self.shape[1:])


class RandomWeights(Mapping[str, RandomWeight]):
    """All weights of a shape."""

    def __init__(self, config: ModelConfig) -> None:
        numbers = np.random.default_rng(0).standard_normal(POOL, np.float32) * np.float32(0.02)
        self._pool = (numbers.view(np.uint32) & 0xFFFF0000).view(np.float32)  # bfloat16 is float32's upper half
        self._shapes = parameter_shapes(config)

    def __getitem__(self, name: str) -> RandomWeight:
        return RandomWeight(self._pool, name, self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def exported(args: Memory, path: Path) -> list[Stage]:
    config, began = shape(args.model), time.perf_counter()
    tokenizer = CharTokenizer("".join(map(chr, range(32, 32 + config.vocab_size))))
    export(path, config, RandomWeights(config), tokenizer, args.precision)
    took, largest = time.perf_counter() - began, 4 * max(map(prod, parameter_shapes(config).values()))
    size = sum(file.stat().st_size for file in path.parent.iterdir()) / 1e9
    return [Stage("export", _peak(), took, 1 + largest / 1e9, f"{size:.2f} GB on the disk")]


def generated(args: Memory, path: Path) -> list[Stage]:
    began = time.perf_counter()
    metadata(path)  # reads all of it, to check it: what follows finds it in the system's cache
    checked = time.perf_counter()
    writer = onnx_writer(opened(path))
    loaded, limit = time.perf_counter(), LIMITS.get((args.model, args.precision))
    stages = [Stage("load", _peak(), loaded - checked, limit, f"after {checked - began:.1f} s of checking the file")]
    streams = writer.begin(GenerateConfig(tokens=args.tokens, temperature=1.0, seed=1))
    streams.read("".join(map(chr, range(40, 40 + args.prompt_tokens))))
    times = [time.perf_counter() for _ in streams.write(GenerateConfig(tokens=args.tokens, temperature=1.0))]
    speed = (len(times) - 1) / (times[-1] - times[0])
    note = f"{speed:.1f} tokens/s; {args.prompt_tokens} read in {times[0] - loaded:.1f} s"
    return [*stages, Stage("generate", _peak(), times[-1] - loaded, limit, note)]


def _peak() -> float:
    return monitor.peak_memory() / 1e9


def measure(args: Memory) -> list[Stage]:
    """Every stage in a process of its own, which nothing was in before."""
    stages = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for stage in (exported, generated):
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                try:
                    stages += process.submit(stage, args, path).result()
                except BrokenProcessPool:
                    raise UserError(f"{stage.__name__}: its process was killed, perhaps for its memory") from None
    return stages


def as_rich(args: Memory, stages: list[Stage]) -> Table:
    count = parameter_count(shape(args.model))[0]
    title = f"{args.model}, {count:,} parameters, {args.precision}, on {monitor.machine()}"
    table = Table("stage", title=title, title_justify="left", box=None)
    for column in ("peak, GB", "limit", "seconds"):
        table.add_column(column, justify="right")
    table.add_column("")
    for stage in stages:
        limit = "" if stage.limit is None else f"{stage.limit:.2f}" + ("" if stage.passes else " passed")
        table.add_row(stage.name, f"{stage.peak:.2f}", limit, f"{stage.seconds:.1f}", stage.note)
    return table


def main(argv: Sequence[str]) -> int:
    """Measure and print. Returns the exit status: 1 where a limit was passed, 2 for what the user can put right."""
    try:
        args = parse(Memory, PROGRAM, argv)
        stages = measure(args)
    except UserError as error:
        print(f"memory: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps({"machine": monitor.machine(), **asdict(args), "stages": [asdict(stage) for stage in stages]}))
    else:
        Console().print(as_rich(args, stages))
    return int(not all(stage.passes for stage in stages))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
