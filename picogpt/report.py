"""`picogpt info`: what a model is made of, what it costs, and whether this machine can train it."""

from rich.console import Console
from rich.table import Table

from picogpt.config import RunConfig
from picogpt.model.footprint import choose_micro_batch, footprint
from picogpt.model.parameters import flops_per_token, parameter_count
from picogpt.training import monitor

INTERPRETER_BYTES = 80 << 20  # Python, NumPy and this package before anything is trained


def print_report(name: str, config: RunConfig) -> None:
    """Print parameters, arithmetic and memory of a run with this configuration, and the machine's answer."""
    lanes = config.train.lanes or monitor.physical_cores()
    total, counted = parameter_count(config.model)
    costs = footprint(config, lanes)
    peak, available = costs.total + INTERPRETER_BYTES, monitor.available_memory()
    micro_batch = config.train.micro_batch or choose_micro_batch(config, lanes)
    table = Table(title=name, title_justify="left", show_header=False, box=None)
    rows = {
        "parameters": f"{total:,} / {counted:,} (all / without the position table)",
        "FLOPs a token": f"{flops_per_token(config.model) / 1e6:,.2f} million (forward and backward)",
        "weights": _bytes(costs.weights),
        "gradients": f"{_bytes(costs.gradients)}, {lanes} lanes",
        "optimizer": f"{_bytes(costs.optimizer)}, {config.train.optimizer}",
        "activations": f"about {_bytes(costs.activations)}, {lanes} lanes of {micro_batch} x {config.context} tokens",
        "peak of training": f"about {_megabytes(peak)}, the interpreter's {_megabytes(INTERPRETER_BYTES)} included",
        "machine": f"{monitor.machine()}, {_megabytes(available)} free",
        "fits": "yes" if peak < available else "no: try --recompute, --micro-batch 1, --lanes 1 or a smaller model",
    }
    for label, value in rows.items():
        table.add_row(label, value)
    Console().print(table)


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MB"


def _bytes(count: int) -> str:
    return f"{count:,} bytes ({_megabytes(count)})"
