"""The start of a run, new or resumed: all that it needs is found and checked, and nothing is changed."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from picogpt.config import RunConfig
from picogpt.data.feed import Feed, open_feed
from picogpt.errors import UserError
from picogpt.model.initialization import initial_arrays
from picogpt.model.parameters import Arrays, is_large, merged, parameter_count, parameter_shapes, trained_shapes
from picogpt.optim.optimizer import state_shapes
from picogpt.runs import checkpoints
from picogpt.runs.checkpoint import Checkpoint, read_record
from picogpt.runs.layout import LOG
from picogpt.runs.log import RunLog
from picogpt.system import hardware
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.registry import from_dict
from picogpt.training.device import fitted_here, require_memory
from picogpt.training.state import machine_settings

# What may differ when a run is resumed: how long it trains and how the machine does it, not what it learns.
_MACHINE = ("micro_batch", "lanes", "device", "tf32", "recompute", "low_memory", "save_minutes")
FREE = ("steps", "minutes", *_MACHINE, "data", "data_limit", "allow_unknown")
EVALUATION_SHARE = 0.03  # of the time spent training


def fit_vocabulary(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """Return the configuration with a row for every token of the tokenizer, and no fewer rows than it had."""
    size = max(config.model.vocab_size, tokenizer.vocab_size)
    return replace(config, model=replace(config.model, vocab_size=size))


def refuse_differences(saved: Checkpoint, config: RunConfig, feed: Feed) -> None:
    """Raise UserError where a run was trained with other settings or on another text than asked for now."""
    before = saved.meta.config
    if before.data.tokenizer_is_file and config.data.tokenizer_is_file:  # the run has its own, wherever the file is now
        config = replace(config, data=replace(config.data, tokenizer=before.data.tokenizer))
    free = {name: getattr(config.train, name) for name in FREE if hasattr(config.train, name)}
    # context 0 stands for one window, so both are resolved. The name of the text is free: its fingerprint is compared.
    old = replace(before.train, context=before.context, **free)
    new = replace(config.train, context=config.context)
    differences = [
        f"{field.name} was {getattr(mine, field.name)}, now {getattr(yours, field.name)}"
        for mine, yours in ((before.model, config.model), (before.data, config.data), (old, new))
        for field in fields(mine)
        if field.name not in FREE and getattr(mine, field.name) != getattr(yours, field.name)
    ]
    if not differences and saved.meta.data != feed.fingerprint:
        differences = [f"the text of {feed.source} has changed"]
    if differences:
        name = saved.path.parent.parent.name
        raise UserError(
            f"run {name} was trained differently ({'; '.join(differences)}): "
            "give the old settings to continue, another --run NAME, or --fresh to start over"
        )


def require_shapes(found: Checkpoint, config: RunConfig) -> None:
    """Raise UserError where the arrays of a checkpoint do not fit the run's configuration."""
    state = state_shapes(config.train, trained_shapes(config))
    for arrays, expected in ((found.model, parameter_shapes(config.model)), (found.optimizer, state)):
        if {name: array.shape for name, array in arrays.items()} != expected:
            raise UserError(f"{found.path} is no checkpoint that a run can continue from: start over with --fresh")


@dataclass(frozen=True)
class Start:
    """All that a run starts with."""

    config: RunConfig
    """As asked for, with the vocabulary grown to the corpus."""
    fitted: RunConfig
    """The same, fitted to the machine."""
    feed: Feed
    arrays: Arrays
    resumed: Checkpoint | None
    """The run's own checkpoint, where it is resumed; `arrays` are then its model."""
    log: RunLog
    notices: list[str]
    """What the user should know about it, a line each."""


def _is_imported(run_dir: Path, fresh: bool) -> bool:
    """Return whether a run is another program's model. Raises UserError for records that cannot be understood.

    fresh: the user wants the run deleted, whatever its records say.
    """
    try:
        own = checkpoints.newest_recorded(run_dir)
        return own is not None and read_record(own).meta.is_imported
    except UserError:
        if fresh:
            return False
        raise


def find_start(
    config: RunConfig,
    run_dir: Path,
    dataset_dir: Path,
    fresh: bool,
    init_from: Path | None,
    notify: Callable[[str], None],
) -> Start:
    """Find what a run starts with; arguments as those of `Run`. Raises UserError for what the user can put right."""
    if _is_imported(run_dir, fresh):
        raise UserError(
            f"run {run_dir.name} is an imported model: --init-from {run_dir.name} --run ANOTHER begins a run from it"
        )
    damages: list[str] = []
    resumed = None if fresh else checkpoints.latest(run_dir, damages.append, is_large(config.model))
    if damages and not resumed:
        raise UserError(
            f"{damages[0]}, and there is no other to continue from: give another --run NAME, "
            "or start over with --fresh, which deletes this run"
        )
    if resumed and init_from:
        notify(f"run {run_dir.name} continues from its own checkpoint: --init-from was needed only once")
    origin, tokenizer = resumed, None
    if resumed and config.data.tokenizer_is_file:  # which may be gone
        tokenizer = from_dict(resumed.meta.tokenizer)
    if init_from:
        origin = resumed or checkpoints.load(init_from, optimizer=False, mapped=is_large(config.model))
        tokenizer = _given_tokenizer(origin, init_from, config, is_resumed=resumed is not None)
    steps_worth = EVALUATION_SHARE * 3 * config.train.eval_interval  # forward is a third of a step
    windows = max(8, round(steps_worth * config.train.batch_size))
    feed = open_feed(config, dataset_dir, notify, tokenizer, windows, resumed.meta.feed if resumed else None)
    config = fit_vocabulary(config, feed.tokenizer)
    given: Arrays = {}
    if resumed:
        refuse_differences(resumed, config, feed)
        require_shapes(resumed, config)
        given = resumed.model
    elif origin:
        given = _initial_weights(origin, config)
    fitted = fitted_here(config, notify)
    require_memory(fitted, notify)
    arrays = initial_arrays(config.model, config.train.seed, given)
    notices = [f"{damage}: it is left out" for damage in damages] + _machine_notices(fitted, resumed)
    log = _open_log(run_dir, config, feed.tokenizer, fresh, resumed)
    return Start(config, fitted, feed, arrays, resumed, log, notices)


def _given_tokenizer(origin: Checkpoint, init_from: Path, config: RunConfig, is_resumed: bool) -> Tokenizer | None:
    """Return the tokenizer of the run that `init_from` names; None for bare ids, where the text needs one with words.

    Raises UserError where another one is asked for.
    """
    tokenizer, asked = from_dict(origin.meta.tokenizer), config.data.tokenizer
    is_another_file = config.data.tokenizer_is_file and asked != origin.meta.config.data.tokenizer
    if tokenizer.name == config.data.tokenizer_name and not is_another_file:
        return tokenizer.with_marks() if config.data.qa and not is_resumed else tokenizer
    if not tokenizer.has_words and not is_resumed:
        return None
    raise UserError(f"{init_from} was trained with the tokenizer {tokenizer.name}: leave --tokenizer out")


def _initial_weights(found: Checkpoint, config: RunConfig) -> Arrays:
    """Return the weights of another run, low-rank matrices merged; new tokens get the rows of an untrained model.

    Raises UserError where they do not fit the model.
    """
    old, new = found.meta.config.model, replace(config.model, lora_rank=0)
    _, arrays = merged(old, found.model)
    if new.vocab_size > old.vocab_size:
        if config.train.train != "all":
            raise UserError(f"--train {config.train.train} cannot teach the marks that --qa adds: leave it out")
        untrained = initial_arrays(new, config.train.seed)
        for name, shape in parameter_shapes(new).items():
            if name in arrays and arrays[name].shape == (old.vocab_size, *shape[1:]) and shape[0] == new.vocab_size:
                arrays[name] = np.concatenate([np.asarray(arrays[name]), untrained[name][old.vocab_size :]])
    for given, model in ((found.model, old), (arrays, new)):
        if {name: array.shape for name, array in given.items()} != parameter_shapes(model):
            raise UserError(f"{found.path} has another shape than the model asked for: leave the model's flags out")
    return arrays


def _open_log(
    run_dir: Path, config: RunConfig, tokenizer: Tokenizer, fresh: bool, resumed: Checkpoint | None
) -> RunLog:
    """Continue or begin the log of a run. Raises UserError where it has entries and there is no checkpoint."""
    about = {**config.to_dict(), "parameters": parameter_count(config.model)[0], "machine": hardware.machine()}
    about["tokenizer"] = tokenizer.fingerprint()
    log = RunLog(run_dir / LOG, about) if fresh else RunLog.open(run_dir / LOG, about)
    if log.evaluations and not resumed:
        raise UserError(f"{run_dir} has a log but no checkpoint to continue from: start over with --fresh")
    return log


def _machine_notices(fitted: RunConfig, resumed: Checkpoint | None) -> list[str]:
    """Return a notice where the machine, or what was asked of it, is another than before."""
    before, now = resumed.meta.machine if resumed else None, machine_settings(fitted)
    if before in (None, now):
        return []
    return [f"it trained with {before} before, now with {now}: the last bits will differ"]
