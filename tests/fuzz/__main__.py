"""Runs the targets, each in a process of its own with a bound on its memory: a line for each, and 1 for a finding."""

import argparse
import importlib.util
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from picogpt.errors import install_extra

MEMORY = 3 << 30  # bytes of memory that a process may take after its libraries are loaded
SLOW = 20  # seconds that an input may take
LONG = 20_000  # bytes of the longest input


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--only", help="one target")
    parser.add_argument("--input", type=Path, help="give --only this file alone, such as a finding")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)  # this is the process of a target
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print(f"tests.fuzz: atheris is not installed: {install_extra('fuzz')}", file=sys.stderr)
        return 2
    if options.inside:
        return inside(options.only, options.inside, options.seconds, options.input)
    from tests.fuzz.targets import TARGETS

    if options.only and options.only not in TARGETS:
        print(f"tests.fuzz: no target is called {options.only}; there are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    root = Path(tempfile.mkdtemp(prefix="picogpt-fuzz-"))
    found = [fuzz(name, root, options) for name in ([options.only] if options.only else TARGETS)]
    if not any(found):
        shutil.rmtree(root)
    return int(any(found))


def fuzz(name: str, root: Path, options: argparse.Namespace) -> bool:
    """Run one target in a process. Returns whether it found something."""
    folder = root / name
    (folder / "corpus").mkdir(parents=True)
    command = [sys.executable, "-m", "tests.fuzz", "--only", name, "--inside", str(folder)]
    command += ["--seconds", str(options.seconds)] + (["--input", str(options.input)] if options.input else [])
    with (folder / "output").open("wb") as output:
        status = subprocess.run(command, stdout=output, stderr=output, check=False).returncode
    said = (folder / "output").read_text(encoding="utf-8", errors="replace")
    executions = re.search(r"stat::number_of_executed_units: (\d+)", said)
    coverage = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", said)
    inputs = [str(path) for path in folder.iterdir() if re.match(r"(crash|timeout|oom)-", path.name)]
    facts = [f"{int(executions[1]):,} executions" if executions else "no count of executions"]
    facts += [f"corpus {coverage[-1][2]}, coverage {coverage[-1][0]}"] if coverage else []
    where = ", ".join(inputs) or f"exit status {status}"
    facts.append(f"FOUND {where} (see {folder / 'output'})" if status else "nothing found")
    print(f"{name}: {', '.join(facts)}", flush=True)
    return status != 0


def inside(name: str, folder: Path, seconds: int, one: Path | None) -> int:
    """Search until the time is over or something is found, which ends the process."""
    import resource

    import atheris

    with atheris.instrument_imports(include=["picogpt"]):
        from tests.fuzz.target import changed, parsed
        from tests.fuzz.targets import TARGETS

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if parsed(data) is None or chance.random() < 0.2:
            return bytes(atheris.Mutate(data, most))
        return changed(data, chance)[:most]

    target, work = TARGETS[name], folder / "work"
    work.mkdir()
    for number, seed in enumerate(target.seeds(work)):
        (folder / "corpus" / f"seed-{number}").write_bytes(seed)
        target(work, seed)  # whatever is imported when it is first used
    addresses = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    limit = addresses + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    flags = [f"-max_total_time={seconds}", f"-timeout={SLOW}", f"-max_len={LONG}", f"-rss_limit_mb={MEMORY >> 20}"]
    flags += [f"-artifact_prefix={folder}/", "-print_final_stats=1", "-report_slow_units=1000"]
    arguments = [sys.argv[0], *flags, str(one or folder / "corpus")]
    atheris.Setup(arguments, lambda data: target(work, data), **({"custom_mutator": mutate} if target.is_json else {}))
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
