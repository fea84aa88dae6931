"""Training on a GPU: whether there is one, and how much of a batch it takes at once."""

from collections.abc import Callable
from dataclasses import replace

from picogpt.config import RunConfig, UserError
from picogpt.engine.backend import cuda, gpu
from picogpt.model.footprint import footprint, sequence_bytes

# Of the free memory. The footprint counts the CPU's working set; CuPy also copies strided operands of its batched
# products, and works on whole activations where the CPU takes a block.
MEMORY_SHARE = 0.6


def with_usable_device(config: RunConfig, notify: Callable[[str], None]) -> RunConfig:
    """The configuration as it is, or with the CPU for a GPU that cannot be used; notify is told why, in one line."""
    if config.train.device == "cuda":
        try:
            cuda(config.train.tf32)
        except UserError as reason:
            notify(f"{reason}; training on the CPU")
            return replace(config, train=replace(config.train, device="cpu"))
    return config


def gpu_micro_batch(config: RunConfig) -> int:
    """Sequences a micro-batch on the GPU: as asked, else the batch in as few equal parts as its free memory allows.

    Raises UserError where not even one sequence fits.
    """
    train = config.train
    one = footprint(replace(config, train=replace(train, micro_batch=1)), lanes=1)
    lasting, free = one.total - one.activations, gpu().free
    fitting = int(MEMORY_SHARE * free - lasting) // sequence_bytes(config)
    if fitting < 1:
        raise UserError(
            f"this run needs about {one.total / MEMORY_SHARE / 2**30:,.1f} GB of the GPU's memory and "
            f"{free / 2**30:,.1f} are free: try --recompute, --device cpu or a smaller model"
        )
    parts = -(-train.batch_size // fitting)
    return train.micro_batch or -(-train.batch_size // parts)


def gpu_in_words(config: RunConfig) -> str:
    """Such as "GPU NVIDIA T4, 15 GB, TF32"."""
    found = gpu()
    tf32 = (", TF32" if found.has_tf32 else ", which has no TF32") if config.train.tf32 else ""
    return f"GPU {found.name}, {found.total / 2**30:.0f} GB{tf32}"
