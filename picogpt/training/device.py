"""The device of a run: as many lanes as the CPU has cores and memory for, or a GPU."""

from collections.abc import Callable
from dataclasses import replace
from math import prod

from picogpt.config import RunConfig
from picogpt.engine.backend import cuda, gpu
from picogpt.engine.lanes import Lanes
from picogpt.errors import UserError
from picogpt.model.memory import estimate_memory, fitted, sequence_bytes
from picogpt.model.parameters import parameter_count, trained_shapes
from picogpt.system import hardware

MEMORY_SHARE = 0.5  # of the machine's memory, for training as fast as possible without swapping
# Of a GPU's free memory. The estimate counts the CPU's working set; CuPy also copies strided operands of its batched
# products, and works on whole activations where the CPU works on a block.
GPU_MEMORY_SHARE = 0.6


def require_memory(config: RunConfig, notify: Callable[[str], None]) -> None:
    """Raise UserError where the machine has too little memory for the run; notify where too little of it is free."""
    if config.train.device == "cuda":
        return  # `fitted_here` has looked at the GPU's own memory
    batch = 2 * 4 * config.train.batch_size * config.context
    needed, total = estimate_memory(config).total + batch, hardware.total_memory()
    if needed > total:
        raise UserError(
            f"this run needs about {needed / 2**30:,.1f} GB of memory and the machine has {total / 2**30:,.1f}: "
            "try --low-memory, a smaller --batch-size or a smaller model"
        )
    if needed > (free := hardware.available_memory()):
        notify(
            f"this run needs about {needed / 2**20:,.0f} MB of memory and {free / 2**20:,.0f} are free: it may swap; "
            "close other programs or try --low-memory"
        )


def fitted_here(config: RunConfig, notify: Callable[[str], None]) -> RunConfig:
    """Return the configuration with lanes, micro_batch and recompute for this machine, where they are not set.

    On a CPU they are the fastest choice within MEMORY_SHARE of the memory. Where a GPU is asked for and cannot be used,
    the CPU is, and `notify` gets the reason. Raises UserError where a GPU's memory is too small.
    """
    train = config.train
    if train.device == "cuda":
        try:
            cuda(train.tf32)
        except UserError as reason:
            notify(f"{reason}; training on the CPU")
        else:
            micro_batch, recompute = gpu_micro_batch(config), train.recompute or train.low_memory
            return replace(config, train=replace(train, lanes=1, micro_batch=micro_batch, recompute=recompute))
    on_cpu = replace(config, train=replace(train, device="cpu"))
    return fitted(on_cpu, hardware.physical_cores(), int(MEMORY_SHARE * hardware.total_memory()))


def open_lanes(config: RunConfig) -> Lanes:
    """Make the lanes of a configuration from `fitted_here`; cores that are left over work in BLAS."""
    return Lanes(config.train.lanes, max(1, hardware.physical_cores() // config.train.lanes))


def gpu_micro_batch(config: RunConfig) -> int:
    """Return the sequences of a micro-batch on the GPU: as set, else the fewest equal parts that fit into free memory.

    Raises UserError where not even one sequence fits.
    """
    train = config.train
    one = estimate_memory(replace(config, train=replace(train, lanes=1, micro_batch=1)))
    lasting, free = one.total - one.program - one.activations, gpu().free
    fitting = int(GPU_MEMORY_SHARE * free - lasting) // sequence_bytes(config)
    if fitting < 1:
        raise UserError(
            f"this run needs about {one.total / GPU_MEMORY_SHARE / 2**30:,.1f} GB of the GPU's memory and "
            f"{free / 2**30:,.1f} are free: try --recompute, --device cpu or a smaller model"
        )
    parts = -(-train.batch_size // fitting)
    return train.micro_batch or (1 if train.low_memory else -(-train.batch_size // parts))


def gpu_in_words(config: RunConfig) -> str:
    """Return the GPU in words, as "GPU NVIDIA T4, 15 GB, TF32"."""
    found = gpu()
    tf32 = (", TF32" if found.has_tf32 else ", which has no TF32") if config.train.tf32 else ""
    return f"GPU {found.name}, {found.total / 2**30:.0f} GB{tf32}"


def lanes_in_words(count: int) -> str:
    """Return a number of lanes in words, as "2 lanes"."""
    return "1 lane" if count == 1 else f"{count} lanes"


def trained_in_words(config: RunConfig) -> str:
    """Return what is trained in words, as "lora: 1,179,648 of 126,378,240 parameters"."""
    trained = sum(map(prod, trained_shapes(config).values()))
    return f"{config.train.train}: {trained:,} of {parameter_count(config.model)[0]:,} parameters"
