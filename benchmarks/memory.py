"""`python -m benchmarks.memory`: how much memory a large model takes, from a file of weights to text.

The file holds random bfloat16 numbers in the shape of a GPT-Neo. It is imported, mapped by NumPy to generate text,
exported, and run by ONNX Runtime. Each stage is a process of its own, whose peak of resident memory is measured; pages
of mapped files are part of it.
"""

import json
import shutil
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
from typing import Literal
from zlib import crc32

import numpy as np
from rich.console import Console
from rich.table import Table

from picogpt.commands.options import parse
from picogpt.config import GenerateConfig, ModelConfig, Precision
from picogpt.config.presets import preset
from picogpt.engine.backend import Array
from picogpt.engine.bfloat16 import narrowed, widened
from picogpt.engine.mapped_matrix import MappedMatrix
from picogpt.errors import UserError
from picogpt.inference.engines import export_checkpoint, open_generator
from picogpt.inference.generator import Generator
from picogpt.inference.onnx.metadata import read_metadata
from picogpt.interop.huggingface.writer import write_huggingface
from picogpt.interop.import_model import import_model
from picogpt.model.parameters import parameter_count, parameter_shapes
from picogpt.system import hardware

PROGRAM = "python -m benchmarks.memory"
Name = Literal["tiny", "gpt-neo-125m", "gpt-neo-350m", "gpt-neo-1.3b", "gpt-neo-2.7b"]
# GB that generating may take at most, loading included; other stages have no limit.
LIMITS: dict[tuple[str, str], float] = {
    ("gpt-neo-1.3b", "numpy"): 3.5,
    ("gpt-neo-2.7b", "numpy"): 7.0,
    ("gpt-neo-1.3b", "int8"): 3.5,
    ("gpt-neo-2.7b", "int8"): 4.5,
    ("gpt-neo-2.7b", "int4"): 3.0,
}
POOL = 1_048_573  # random numbers that all weights are taken from; a prime, so that no two rows are alike
NUMPY_TOKENS = 8  # at most: with billions of weights, each takes a second


@dataclass(frozen=True)
class Memory:
    """Measure the memory of a large model, from a file of weights to text. Exit status 1: a limit was passed."""

    model: Name = "gpt-neo-1.3b"
    """The shape; tiny to try this program."""
    precision: Precision = "int8"
    """Precision of the ONNX file."""
    tokens: int = 50
    """Tokens to generate."""
    prompt_tokens: int = 8
    """Tokens of the prompt."""
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
    """Peak of its process's resident memory, in GB."""
    seconds: float
    limit: float | None = None
    """What `peak` must stay below, in GB."""
    note: str = ""

    @property
    def passes(self) -> bool:
        """Whether the peak is below the limit."""
        return self.limit is None or self.peak < self.limit


def shape(name: str) -> ModelConfig:
    """Return the model of this name."""
    model = preset("gpt-neo-125m" if name == "tiny" else name).model
    return ModelConfig(**{**asdict(model), "n_layer": 2, "n_head": 2, "n_embd": 32}) if name == "tiny" else model


class RandomWeights(Mapping[str, Array]):
    """All weights of a shape: random bfloat16 numbers, made at each access, and the same every time."""

    def __init__(self, config: ModelConfig) -> None:
        numbers = np.random.default_rng(0).standard_normal(POOL, np.float32) * np.float32(0.02)
        self._pool = narrowed(np.concatenate([numbers, numbers]))
        self._shapes = parameter_shapes(config)

    def __getitem__(self, name: str) -> Array:
        shape, first = self._shapes[name], crc32(name.encode())
        if len(shape) == 2:
            rows, width = shape
            bits = np.empty(shape, np.uint16)
            for row in range(rows):
                start = (first + row * width) % POOL
                bits[row] = self._pool[start : start + width]
            return MappedMatrix(bits)
        start, mean = first % POOL, np.float32("ln_" in name and name.endswith("weight"))
        return widened(narrowed(widened(self._pool[start : start + shape[0]]) + mean))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def write_file(args: Memory, folder: Path) -> list[Stage]:
    """Write a file of random weights, as another program would."""
    config, began = shape(args.model), time.perf_counter()
    write_huggingface(folder / "foreign", config, RandomWeights(config), None)
    size = (folder / "foreign" / "model.safetensors").stat().st_size / 1e9
    return [Stage("write the file", _peak(), time.perf_counter() - began, note=f"{size:.2f} GB of bfloat16")]


def import_file(args: Memory, folder: Path) -> list[Stage]:
    """Import that file, and delete it."""
    began = time.perf_counter()
    summary = import_model(folder / "foreign", folder / "own", 1, None, False, lambda _: None)
    stage = Stage("import", _peak(), time.perf_counter() - began, note=summary.rpartition(", ")[2])
    shutil.rmtree(folder / "foreign")
    return [stage]


def generate_with_numpy(args: Memory, folder: Path) -> list[Stage]:
    """Generate text from the imported checkpoint, whose weights NumPy maps."""
    began = time.perf_counter()
    generator, _ = open_generator(str(folder / "own"), "numpy", "auto", lambda _: None)
    return [
        _generate("NumPy", generator, args, min(args.tokens, NUMPY_TOKENS), began, LIMITS.get((args.model, "numpy")))
    ]


def export_file(args: Memory, folder: Path) -> list[Stage]:
    """Export the checkpoint to ONNX."""
    began = time.perf_counter()
    (place,) = (folder / "own" / "checkpoints").iterdir()
    path = export_checkpoint(place, args.precision, portable=False)
    took, largest = time.perf_counter() - began, 4 * max(map(prod, parameter_shapes(shape(args.model)).values()))
    size = sum(file.stat().st_size for file in path.parent.glob("model.onnx*")) / 1e9
    return [Stage("export", _peak(), took, 1 + largest / 1e9, f"{size:.2f} GB of {args.precision}")]


def generate_with_onnx(args: Memory, folder: Path) -> list[Stage]:
    """Check and load the ONNX file, and generate text with it."""
    began = time.perf_counter()
    read_metadata(folder / "own" / "model.onnx")  # reads it all to check it, so the system's cache has it afterwards
    checked = time.perf_counter()
    generator, _ = open_generator(str(folder / "own"), "onnx", args.precision, lambda _: None)
    loaded, limit = time.perf_counter(), LIMITS.get((args.model, args.precision))
    stage = Stage("load", _peak(), loaded - checked, limit, f"after {checked - began:.1f} s of checking the file")
    return [stage, _generate("ONNX Runtime", generator, args, args.tokens, loaded, limit)]


def _generate(name: str, generator: Generator, args: Memory, tokens: int, began: float, limit: float | None) -> Stage:
    """Generate so many tokens, and measure the whole stage, which began at `began`."""
    config = GenerateConfig(tokens=tokens, temperature=1.0, seed=1)
    streams = generator.begin(config)
    streams.read(" ".join(map(str, range(40, 40 + args.prompt_tokens))))
    times = [time.perf_counter() for _ in streams.write(config)]
    speed = (len(times) - 1) / (times[-1] - times[0])
    note = f"{speed:.1f} tokens/s; {args.prompt_tokens} read after {times[0] - began:.1f} s"
    return Stage(name, _peak(), times[-1] - began, limit, note)


def _peak() -> float:
    return hardware.peak_memory() / 1e9


def measure(args: Memory) -> list[Stage]:
    """Run every stage in a new process of its own."""
    stages = []
    with TemporaryDirectory() as folder:
        for stage in (write_file, import_file, generate_with_numpy, export_file, generate_with_onnx):
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                try:
                    stages += process.submit(stage, args, Path(folder)).result()
                except BrokenProcessPool:
                    raise UserError(f"{stage.__name__}: its process was killed, perhaps for lack of memory") from None
    return stages


def as_rich(args: Memory, stages: list[Stage]) -> Table:
    """Return the stages as a table for a terminal."""
    count = parameter_count(shape(args.model))[0]
    title = f"{args.model}, {count:,} parameters, {args.precision}, on {hardware.machine()}"
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
        print(
            json.dumps({"machine": hardware.machine(), **asdict(args), "stages": [asdict(stage) for stage in stages]})
        )
    else:
        Console().print(as_rich(args, stages))
    return int(not all(stage.passes for stage in stages))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
