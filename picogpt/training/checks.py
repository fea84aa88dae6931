"""What must hold before a run trains: a model for the text, memory for the model, and what is there already."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from picogpt.config import RunConfig, UserError
from picogpt.data.feed import Feed
from picogpt.data.tokenizer import Tokenizer
from picogpt.model.footprint import footprint
from picogpt.model.parameters import parameter_shapes, trained_shapes
from picogpt.training import monitor
from picogpt.training.optim import state_shapes
from picogpt.training.snapshot import Checkpoint, read_record

# What may differ when a run goes on: how long it trains and how the machine does it, not what it learns.
_MACHINE = ("micro_batch", "lanes", "device", "tf32", "recompute", "low_memory", "save_minutes")
_SENSIBLE = 1e300  # what a float can hold, with some room
FREE = ("steps", "minutes", *_MACHINE, "data", "data_limit")


def fit_vocabulary(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """A table with a row for every token; rows the tokenizer does not use stay as the config has them."""
    size = max(config.model.vocab_size, tokenizer.vocab_size)
    return replace(config, model=replace(config.model, vocab_size=size))


def require_memory(config: RunConfig, notify: Callable[[str], None]) -> None:
    """Raises UserError where the machine could never hold the run, and says so where it cannot now."""
    if config.train.device == "cuda":
        return  # its own memory was looked at
    batch = 2 * 4 * config.train.batch_size * config.context
    needed, total = footprint(config).total + batch, monitor.total_memory()
    if needed > total:
        raise UserError(
            f"this run needs about {needed / 2**30:,.1f} GB of memory and the machine has {total / 2**30:,.1f}: "
            "try --low-memory, a smaller --batch-size or a smaller model"
        )
    if needed > (free := monitor.available_memory()):
        notify(
            f"this run needs about {needed / 2**20:,.0f} MB of memory and {free / 2**20:,.0f} are free: it may swap; "
            "close other programs or try --low-memory"
        )


def refuse_differences(saved: Checkpoint, config: RunConfig, feed: Feed) -> None:
    """Raises UserError where a run was trained with other settings or on another text than asked for now."""
    before = RunConfig.from_dict(saved.meta["config"])
    free = {name: getattr(config.train, name) for name in FREE if hasattr(config.train, name)}
    # One window is the default context, and it is the text that counts, not what it is called.
    old = replace(before.train, context=before.context, **free)
    new = replace(config.train, context=config.context)
    differences = [
        f"{field.name} was {getattr(mine, field.name)}, now {getattr(yours, field.name)}"
        for mine, yours in ((before.model, config.model), (before.data, config.data), (old, new))
        for field in fields(mine)
        if field.name not in FREE and getattr(mine, field.name) != getattr(yours, field.name)
    ]
    if not differences and saved.meta["data"] != feed.fingerprint:
        differences = [f"the text of {feed.source} has changed"]
    if differences:
        name = saved.path.parent.parent.name
        raise UserError(
            f"run {name} was trained differently ({'; '.join(differences)}): "
            "give the old settings to go on, another --run NAME, or --fresh to start over"
        )


def config_of(place: Path) -> RunConfig:
    """The configuration of a checkpoint, without reading its arrays. Raises UserError, DamageError among them."""
    try:
        return RunConfig.from_dict(read_record(place)["meta"]["config"])
    except KeyError:
        raise UserError(f"{place} is no checkpoint of a run: give another") from None


def is_imported(place: Path) -> bool:
    """Whether a checkpoint is another program's model, as it was imported. Raises DamageError."""
    return bool(read_record(place)["meta"].get("data") == "")


def rolled(found: Checkpoint) -> bool:
    """Whether a model was trained to go from window to window with the mean, as all that PicoGPT's own logs hold were.

    Of the imported models those alone have a slot.
    """
    config = RunConfig.from_dict(found.meta["config"])
    return config.rolls or (found.meta.get("data") == "" and config.model.can_roll)


def require_meta(found: Checkpoint) -> None:
    """Raises UserError where a checkpoint does not say all that a run goes on from."""
    match found.meta:
        case {
            "config": dict(),
            "tokenizer": dict(),
            "data": str(),
            "seconds": int() | float() as seconds,
            "recent": [int() | float() as total, int() as count],
            "feed": dict() | None,
        } if all(abs(number) < _SENSIBLE for number in (seconds, total, count)):
            return
    raise _foreign(found)


def require_shapes(found: Checkpoint, config: RunConfig) -> None:
    """Raises UserError where the arrays of a run that goes on are not those of its configuration."""
    kept = state_shapes(config.train, trained_shapes(config))
    for arrays, expected in ((found.model, parameter_shapes(config.model)), (found.optimizer, kept)):
        if {name: array.shape for name, array in arrays.items()} != expected:
            raise _foreign(found)


def _foreign(found: Checkpoint) -> UserError:
    return UserError(f"{found.path} is no checkpoint that a run can go on from: start over with --fresh")
