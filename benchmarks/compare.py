"""`python -m benchmarks.compare`: measures picogpt and its peers in turns on this machine, and prints a table.

Every measurement is a process of its own. A round measures each contestant once, picogpt first; the table holds medians
over the rounds, and a ratio is the median of the rounds' ratios, because a machine's speed drifts for minutes.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.table import PEERS, Answer, Results, as_markdown, as_rich, number, rows
from picogpt.commands.options import parse
from picogpt.errors import UserError
from picogpt.system import hardware

PEER = Path(__file__).parent / "peers" / "torch_gpt.py"
PROGRAM = "python -m benchmarks.compare"
NO_PEER = "left out: needs --peer-python PATH, a Python with torch (benchmarks/README.md)"
NO_DATA = "left out: needs --data FILE, a text such as tiny Shakespeare"
NOT_QUICK = "left out by --quick"
FAILED = "failed: "
PEER_TIMES = {"time eager": "eager", "time compile": "compile"}


@dataclass(frozen=True)
class Compare:
    """Measure picogpt and PyTorch in turns and print a table of medians, ratios and peak memory."""

    quick: bool = False
    """One round of short windows, without the largest model: a first impression, not a figure to quote."""
    peer_python: str = ""
    """The Python of an environment with torch. Without it the peers are left out."""
    data: str = ""
    """The text file for the time to a loss. Without it that row is left out."""
    seconds: float = 0.0
    """Seconds of each measurement of speed. 0: 30, with --quick 4."""
    rounds: int = 0
    """How often each contestant is measured. 0: 3, with --quick 1."""
    markdown: bool = False
    """Print the table in Markdown."""
    json: bool = False
    """Print one JSON object: the table, and every measurement that it is made of."""

    def __post_init__(self) -> None:
        if self.seconds < 0 or self.rounds < 0:
            raise UserError(f"--seconds and --rounds must not be negative, not {self.seconds:g} and {self.rounds}")
        if self.data and not Path(self.data).is_file():
            raise UserError(f"there is no file {self.data}: --data takes a text file")
        if self.peer_python and shutil.which(self.peer_python) is None:
            raise UserError(
                f"{self.peer_python} cannot be started: --peer-python takes the path of a Python with torch"
            )


def contestants(args: Compare, seed: int) -> dict[str, list[str]]:
    """Return name -> command, in the order of measuring; the table knows the names."""
    seconds = args.seconds or (4.0 if args.quick else 30.0)

    def train(*options: str) -> list[str]:
        return [sys.executable, "-m", "picogpt", "bench", "train", "--json", "--seconds", str(seconds), *options]

    def peer(mode: str, *options: str) -> list[str]:
        return [args.peer_python, str(PEER), mode, "--threads", str(hardware.physical_cores()), *options]

    commands = {"pico": train()}
    for name, (how, batch) in PEERS.items():
        commands[name] = peer("train", f"--{how}", "--batch", str(batch), "--seconds", str(seconds))
    commands |= {
        "exercise-base": train("--preset", "exercise-base"),
        "race": train("--preset", "race"),
        "rolling": train("--context", "1280", "--batch-size", "8"),  # the original's batch
        "pico muon": train("--optimizer", "muon"),
        "rolling muon": train("--context", "1280", "--batch-size", "8", "--optimizer", "muon"),
        "low-memory": train("--low-memory"),
        "gpt2": train("--preset", "gpt2", "--low-memory", "--batch-size", "2"),
    }
    race = [sys.executable, "-m", "picogpt", "bench", "time-to-loss", "--json", "--data", args.data]
    commands["time"] = [*race, "--seeds", str(seed)]
    for name, how in PEER_TIMES.items():
        commands[name] = peer("time", f"--{how}", "--data", args.data, "--seed", str(seed))
    return commands


def left_out(args: Compare) -> dict[str, str]:
    """Return name -> reason for the contestants that are not measured."""
    names = contestants(args, 0)
    reasons = dict.fromkeys((name for name in names if name.startswith("time")), NO_DATA) if not args.data else {}
    if not args.peer_python:
        reasons |= dict.fromkeys([*PEERS, *PEER_TIMES], NO_PEER)
    if args.quick:
        reasons["gpt2"] = NOT_QUICK
    return reasons


def measure(args: Compare) -> tuple[Results, dict[str, str]]:
    """Return what each contestant printed in each round, and why others have no result. Shows progress on stderr."""
    results: Results = {}
    absent = left_out(args)
    rounds = args.rounds or (1 if args.quick else 3)
    for round_ in range(1, rounds + 1):
        for name, command in contestants(args, seed=round_).items():
            if name in absent:
                continue
            print(f"round {round_}/{rounds}: {name} ... ", end="", file=sys.stderr, flush=True)
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                absent[name] = f"{FAILED}{reason(done.stderr)}"
                results.pop(name, None)  # a row is all its rounds or none
                print(absent[name], file=sys.stderr, flush=True)
                continue
            answer: Answer = json.loads(done.stdout.splitlines()[-1])
            results.setdefault(name, []).append(answer)
            print(f"{headline(answer)}, {answer['peak_rss_mb']} MB", file=sys.stderr, flush=True)
    return results, absent


def headline(answer: Answer) -> str:
    """Return the main figure of a measurement in words."""
    if "tokens_per_second" in answer:
        return f"{number(answer, 'tokens_per_second'):,.0f} tokens/s"
    return f"{number(answer, 'seconds')} s to a validation loss of {number(answer, 'val_loss')}"


def reason(stderr: str) -> str:
    """Return the most telling line of a failed program's output: the last that names an error, or else the last."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["it printed nothing"]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines)[-1][:160]


def main(argv: Sequence[str]) -> int:
    """Measure and print. Returns the exit status: 1 where a row of picogpt's own failed, 2 for wrong options."""
    try:
        args = parse(Compare, PROGRAM, argv)
        results, absent = measure(args)
    except UserError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    table, machine = rows(results, absent), hardware.machine()
    if args.json:
        content = {"machine": machine, "rows": [asdict(row) for row in table], "measured": results, "absent": absent}
        print(json.dumps(content))
    elif args.markdown:
        print(as_markdown(table, machine))
    else:
        Console().print(as_rich(table, machine))
    own = set(contestants(args, 1)) - {*PEERS, *PEER_TIMES}
    return int(any(why.startswith(FAILED) and name in own for name, why in absent.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
