"""`picogpt import`: another program's model as a run of ours."""

from pathlib import Path

from picogpt.config import DataConfig, RunConfig, TrainConfig, UserError
from picogpt.data.tokenizer import PicoTokenizer
from picogpt.interop.picogpt import Log, read_log
from picogpt.model.parameters import parameter_count
from picogpt.training import checkpoint
from picogpt.training.divergence import Divergence
from picogpt.training.lock import run_lock
from picogpt.training.monitor import to_stderr
from picogpt.training.runlog import RunLog


def import_picogpt(path: Path, run_dir: Path, n_head: int) -> str:
    """Make a run of a log of PicoGPT's: its best weights, to write with or to go on from by --init-from; its losses.

    Returns what was imported, in a line. Raises UserError where the file is none, or the run is there already.
    """
    if checkpoint.newest(run_dir) or (run_dir / "log.pkl").exists():
        raise UserError(f"there is a run {run_dir.name} already: give another --run NAME")
    log = read_log(path, n_head)
    if log.model.vocab_size < PicoTokenizer().vocab_size:
        raise UserError(
            f"{path} has a vocabulary of {log.model.vocab_size}, PicoGPT's has {PicoTokenizer().vocab_size}"
        )
    config = RunConfig(log.model, DataConfig(), TrainConfig(steps=max(1, log.iterations)))
    with run_lock(run_dir, to_stderr):
        _log(log, config, run_dir).save()
        checkpoint.save(run_dir, config.train.steps, log.arrays, {}, _meta(log, config))
    total, counted = parameter_count(log.model)
    return f"{total:,} parameters ({counted:,} without the position table), best loss {log.best_loss}"


def _log(log: Log, config: RunConfig, run_dir: Path) -> RunLog:
    """Its losses, one pair an epoch, as evaluations that are evenly spread over its iterations."""
    made = RunLog(run_dir / "log.pkl", {**config.to_dict(), "parameters": parameter_count(config.model)[0]})
    pairs = list(zip(log.train_losses, log.val_losses, strict=True))
    for i, (train, val) in enumerate(pairs, start=1):
        made.evaluation(step=max(i, config.train.steps * i // len(pairs)), train_loss=train, val_loss=val)
    made.notice("imported from PicoGPT: its epochs are spread evenly over the steps")
    return made


def _meta(log: Log, config: RunConfig) -> dict[str, object]:
    meta: dict[str, object] = {"config": config.to_dict(), "tokenizer": PicoTokenizer().to_dict(), "data": ""}
    meta |= {"val_loss": log.best_loss, "evaluated": True, "text": "", "feed": None, "seconds": 0.0}
    return meta | {"recent": (0.0, 0), "divergence": Divergence().to_dict([])}
