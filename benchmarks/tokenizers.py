"""`python -m benchmarks.tokenizers TRAIN VAL`: how well a model learns with each tokenizer, at equal arithmetic.

Trains the preset's shape on one text with every tokenizer and several seeds, each with the floating-point operations
that pico needs for --steps steps, and measures bits a character on parts of another text. With --out every result is
kept in a file as soon as it is there, and the same command goes on after those.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import log
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from time import perf_counter

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from picogpt import UserError
from picogpt.commands.options import parse
from picogpt.config import DataConfig, ModelConfig, RunConfig
from picogpt.config.presets import preset
from picogpt.data.loader import Loader
from picogpt.data.prepare import Prepared, prepare
from picogpt.data.sources.corpora import open_corpus
from picogpt.evaluation.loss import full_loss
from picogpt.model.flops import write_flops
from picogpt.model.initialization import initial_arrays
from picogpt.optim.schedule import learning_rate_factor, scheduled_depth
from picogpt.runs.layout import DATASET
from picogpt.system.terminal import to_stderr
from picogpt.tokenizers.base import Ids
from picogpt.training.device import fitted_here, open_lanes
from picogpt.training.resume import fit_vocabulary
from picogpt.training.trainer import Trainer

PROGRAM = "python -m benchmarks.tokenizers"
PIECE = 3_000  # characters of the text to judge that are taken at one place
KINDS = ("chars", "bpe:1024", "bpe:2048", "bpe:4096", "bpe:8192")


@dataclass(frozen=True)
class Tokenizers:
    """Train one shape with several tokenizers on equal arithmetic, and measure bits a character."""

    texts: Positional[tuple[str, ...]]
    """The text to train on, and the text to judge on."""
    kinds: tuple[str, ...] = KINDS
    """Tokenizers, as train takes them."""
    preset: str = "pico"
    """The shape and the settings of training."""
    steps: int = 700
    """The arithmetic of a run: that of so many steps of pico."""
    seeds: tuple[int, ...] = (1337, 1338, 1339)
    judged: int = 300_000
    """Characters of the second text to judge on, from places spread over it."""
    lower: bool = False
    """Lower-case both texts."""
    out: str = ""
    """Keep every result in this file, a JSON object a line, and do not measure what it has."""


@dataclass(frozen=True)
class Result:
    """One run."""

    setting: str
    """What all runs of a table have in common."""
    kind: str
    seed: int
    bits_per_char: float
    bits_per_byte: float
    characters: float
    """Learnt from: characters of the tokens trained on."""
    window: float
    """Characters in a window."""
    head: float
    """The share of the arithmetic that is the head's."""
    seconds: float


def mean_flops(model: ModelConfig) -> float:
    """Return the operations of a training step a token of a full window: three times those of reading and predicting.

    Only what is computed counts, so the masked half of attention does not.
    """
    places = range(model.n_position)
    return 3 * fmean(write_flops(model, place) for place in places)


def run_flops(config: RunConfig, steps: int) -> float:
    """Return the operations of so many steps: a step counts only the blocks that train in it."""
    points, tokens = 1_000, config.train.batch_size * config.context
    depths = [scheduled_depth(config.train, config.model.n_layer, point / points) for point in range(points)]
    costs = {depth: mean_flops(replace(config.model, n_layer=depth)) for depth in set(depths)}
    return steps * tokens * fmean(costs[depth] for depth in depths)


def steps_for(config: RunConfig, flops: float) -> int:
    """Return the steps that these operations are enough for."""
    return max(1, round(flops / run_flops(config, 1)))


def train(config: RunConfig, data: Prepared) -> Iterator[Trainer]:
    """Train a model to its last step, and yield the trainer once."""
    loader = Loader(data.train, config.context, config.train.seed)
    fitted, settings = fitted_here(config, to_stderr), config.train
    with open_lanes(fitted) as lanes:
        trainer = Trainer(fitted, initial_arrays(config.model, settings.seed), lanes)
        lanes.begin()
        for step in range(settings.steps):
            progress = step / settings.steps
            x, y = loader.batch(step * settings.batch_size, settings.batch_size)
            factor = learning_rate_factor(settings, step, progress)
            trainer.step(x, y, step, factor, trainer.depth_at(progress))
        yield trainer


class _Text:
    """Ids in memory, as `full_loss` reads them."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, start: int, stop: int) -> Ids:
        """Return ids start..stop - 1."""
        return self._ids[start:stop]


def measure(config: RunConfig, setting: str, kind: str, judged: str, flops: float, dataset_dir: Path) -> Result:
    """Train on `config.data` with this tokenizer and arithmetic, and judge. setting: for the result."""
    data = prepare(replace(config.data, tokenizer=kind), dataset_dir, to_stderr)
    tokenizer = data.tokenizer
    config = fit_vocabulary(replace(config, model=replace(config.model, vocab_size=1)), tokenizer)
    steps = steps_for(config, flops)
    config = replace(config, train=replace(config.train, steps=steps, minutes=0.0))
    ids, began = tokenizer.encode(judged), perf_counter()
    for trainer in train(config, data):
        seconds = perf_counter() - began
        nats = full_loss(trainer, _Text(ids)) * (len(ids) - 1)
    predicted = judged[len(tokenizer.decode(ids[:1])) :]
    bits, per_token = nats / log(2), len(judged) / len(ids)
    return Result(
        setting=setting,
        kind=kind,
        seed=config.train.seed,
        bits_per_char=bits / len(predicted),
        bits_per_byte=bits / len(predicted.encode()),
        characters=steps * config.train.batch_size * config.context * per_token,
        window=config.model.context_len * per_token,
        head=6 * config.model.vocab_size * config.model.n_embd / mean_flops(config.model),
        seconds=seconds,
    )


def read_text(name: str, lower: bool) -> str:
    """Return all documents of a text, a blank line between them."""
    text = "".join(open_corpus(DataConfig(name), DATASET).text())
    return text.lower() if lower else text


def spread(text: str, characters: int) -> str:
    """Return about so many characters, in pieces from places that are spread over the text."""
    count = max(1, characters // PIECE)
    if len(text) <= count * PIECE:
        return text
    return "".join(text[start : start + PIECE] for start in range(0, len(text) - PIECE + 1, len(text) // count))


def known(out: str) -> list[Result]:
    """Return the results that a file has. Raises UserError for another file."""
    if not out or not Path(out).exists():
        return []
    try:
        return [Result(**json.loads(line)) for line in Path(out).read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError):
        raise UserError(f"{out} is no file of results: give another --out") from None


def setting_of(args: Tokenizers) -> str:
    """Return in words what all runs of a table have in common."""
    train, judged = (Path(text).name for text in args.texts)
    case = ", in lower case" * args.lower
    shape = f"{args.preset}'s shape" + ("" if args.preset == "pico" else ", pico's arithmetic")
    return f"{train}{case}: {shape}, {args.steps:,} steps, judged on {args.judged:,} characters of {judged}"


def run(args: Tokenizers) -> list[Result]:
    """Measure what `out` does not have yet, and return all. Raises UserError."""
    if len(args.texts) != 2:
        raise UserError("give two texts: one to train on, and one to judge on")
    base, results = preset(args.preset), known(args.out)
    setting = setting_of(args)
    judged, flops = spread(read_text(args.texts[1], args.lower), args.judged), run_flops(RunConfig(), args.steps)
    with TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text(read_text(args.texts[0], args.lower), encoding="utf-8")
        base = replace(base, data=DataConfig(str(text), val_fraction=0.01, allow_unknown=True))
        for seed, kind in product(args.seeds, args.kinds):
            if any((one.setting, one.kind, one.seed) == (setting, kind, seed) for one in results):
                continue
            seeded = replace(base, train=replace(base.train, seed=seed))
            results.append(measure(seeded, setting, kind, judged, flops, Path(folder)))
            to_stderr(f"{kind}, seed {seed}: {results[-1].bits_per_char:.3f} bits a character")
            if args.out:
                with open(args.out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(results[-1])) + "\n")
    return [one for one in results if one.setting == setting and one.kind in args.kinds and one.seed in args.seeds]


def show(results: Sequence[Result]) -> None:
    """Print one row a tokenizer: means over the seeds, and the standard error of bits a character."""
    table = Table(title=results[0].setting, title_justify="left", box=None)
    for title in ("tokenizer", "bits/char", "bits/byte", "characters learnt from", "a window sees", "head", "minutes"):
        table.add_column(title, justify="left" if title == "tokenizer" else "right")
    for kind in dict.fromkeys(one.kind for one in results):
        of_kind = [one for one in results if one.kind == kind]
        bits = [one.bits_per_char for one in of_kind]
        error = f" ± {stdev(bits) / len(bits) ** 0.5:.3f}" if len(bits) > 1 else ""
        first = of_kind[0]
        table.add_row(
            kind,
            f"{fmean(bits):.3f}{error}",
            f"{fmean(one.bits_per_byte for one in of_kind):.3f}",
            f"{first.characters / 1e6:.1f} M",
            f"{first.window:.0f}",
            f"{first.head:.0%}",
            f"{fmean(one.seconds for one in of_kind) / 60:.1f}",
        )
    Console().print(table)


def main(argv: Sequence[str]) -> int:
    """Measure and print. Returns the exit status: 2 for what the user can put right."""
    try:
        show(run(parse(Tokenizers, PROGRAM, argv)))
    except UserError as error:
        print(f"tokenizers: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
