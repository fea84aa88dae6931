"""The tiny runs that are tortured: their text, their options, and the folders they are trained in."""

from dataclasses import dataclass
from pathlib import Path
from random import Random

from picogpt.runs import checkpoints

TEXT = "text.txt"
INTERVAL = 40  # steps between evaluations
_SENTENCE = "she sells sea shells by the shore and he who reads them keeps all the old words that were"
_SHAPE = "--context-len 16 --n-head 2 --n-embd 16 --dropout 0.1 --batch-size 5 --micro-batch 2 --lanes 2"
_SAVES = f"--eval-interval {INTERVAL} --save-minutes 0.002"


@dataclass(frozen=True)
class Variant:
    """One kind of run: a name and the options that make it different from the others."""

    name: str
    options: str
    diverges: bool = False
    """Steps in its middle are not finite: one that is left out, and three that send the run back."""


VARIANTS = (
    Variant("plain-adamw", "--n-layer 2 --init gpt2 --optimizer adamw --learning-rate 0.001"),
    Variant("rolling-muon", "--n-layer 4 --context 32 --optimizer muon --depth-warmup 0.6"),
    Variant("rolling-adamw", "--n-layer 2 --context 32 --optimizer adamw --learning-rate 0.001", diverges=True),
    Variant("plain-muon", "--n-layer 3 --optimizer muon --depth-warmup 0.6 --no-context-slot"),
)
SLOWEST = Variant("pace", "--n-layer 4 --context 32 --optimizer muon --depth-warmup 0")


def text(random: Random) -> str:
    """Make a text so short that several epochs pass in a run."""
    words = _SENTENCE.split()
    return " ".join(random.choice(words) for _ in range(1800))


def new_home(folder: Path, name: str, text: str) -> Path:
    """Make the folder in which one run is trained, with the text in it."""
    home = folder / name
    home.mkdir()
    (home / TEXT).write_text(text, encoding="utf-8")
    return home


def command(variant: Variant, steps: int) -> list[str]:
    """Return the arguments of `picogpt` that start the run, or let it go on."""
    return f"train --preset pico --data {TEXT} --run run --steps {steps} {_SHAPE} {_SAVES} {variant.options}".split()


def run_folder(home: Path) -> Path:
    """Return the folder that the command makes for the run."""
    return home / "logs" / "run"


def steps_done(home: Path) -> int:
    """Return the step of the newest sound checkpoint, or 0."""
    found = checkpoints.latest(run_folder(home))
    return found.step if found else 0
