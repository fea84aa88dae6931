"""`picogpt import`: make a run of another program's model, reading and writing one tensor after the other."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from picogpt.config import DataConfig, RunConfig, TrainConfig
from picogpt.engine.backend import Array
from picogpt.engine.mapped_matrix import MappedMatrix
from picogpt.errors import UserError
from picogpt.interop.dat import PROPERTIES, read_dat
from picogpt.interop.foreign_model import ForeignModel, array_of
from picogpt.interop.huggingface.reader import CONFIG, FILES, read_huggingface
from picogpt.interop.picogpt_log import Log, read_picogpt_log
from picogpt.model.parameters import parameter_count
from picogpt.runs import checkpoints
from picogpt.runs.checkpoint_meta import CheckpointMeta
from picogpt.runs.layout import LOG
from picogpt.runs.lock import run_lock
from picogpt.runs.log import Evaluation, RunLog
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.bpe import BpeTokenizer
from picogpt.tokenizers.characters import PicoTokenizer
from picogpt.tokenizers.ids import IdsTokenizer

_WEIGHTS = (".safetensors", ".bin", ".json")


def import_model(
    path: Path, run_dir: Path, n_head: int, tokenizer: Path | None, rounded: bool, notify: Callable[[str], None]
) -> str:
    """Make a run of the model at `path`, a folder or a file in one. Returns a line that describes the model.

    n_head: the heads of a log of PicoGPT's, which does not say. tokenizer: the folder of the tokenizer, if not that of
    the weights. rounded: round float32 matrices to bfloat16. Raises UserError where there is no such model, or the run
    exists already.
    """
    if checkpoints.newest(run_dir) or (run_dir / LOG).exists():
        raise UserError(f"there is a run {run_dir.name} already: give another --run NAME")
    if picogpt_log := _find_picogpt_log(path):
        if tokenizer or rounded:
            raise UserError("a log of PicoGPT's has one tokenizer and float32: leave --tokenizer and --bfloat16 out")
        return _import_log(read_picogpt_log(picogpt_log, n_head), picogpt_log, run_dir, notify)
    found = read_dat(_folder(path)) if (_folder(path) / PROPERTIES).is_file() else read_huggingface(path)
    own_tokenizer = _find_tokenizer(found, _folder(tokenizer or path), tokenizer is not None, notify)
    config = RunConfig(found.model, DataConfig(tokenizer=own_tokenizer.name), TrainConfig(steps=1))
    weights = _ImportedWeights(found, rounded)
    log = _new_log(run_dir, config)
    log.notice(f"imported from {path}")
    _write_run(run_dir, log, weights, _meta(config, own_tokenizer, None), notify)
    return f"{found.family}, {parameter_count(found.model)[0]:,} parameters, {weights.kinds()}"


def _write_run(
    run_dir: Path, log: RunLog, weights: Mapping[str, Array], meta: CheckpointMeta, notify: Callable[[str], None]
) -> None:
    """Write the run. Where that fails or is interrupted, nothing of it is left."""
    with run_lock(run_dir, notify):
        try:
            checkpoints.save(run_dir, meta.config.train.steps, weights, {}, meta)
            log.save()
        except BaseException:
            checkpoints.clear(run_dir)
            raise


class _ImportedWeights(Mapping[str, Array]):
    """A model's weights by picogpt's names, each read when it is asked for, in the numbers it is stored in."""

    def __init__(self, found: ForeignModel, rounded: bool) -> None:
        self._found, self._rounded = found, rounded
        self._sizes: dict[str, int] = {}

    def __getitem__(self, name: str) -> Array:
        array = array_of(self._found.weights[name], self._rounded)
        if array.ndim == 2:
            kind = "float32"
            if isinstance(array, MappedMatrix):
                kind = "float16" if array.raw.dtype == "f2" else "bfloat16"
            self._sizes[kind] = self._sizes.get(kind, 0) + 1
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._found.weights)

    def __len__(self) -> int:
        return len(self._found.weights)

    def kinds(self) -> str:
        """Describe how many of the matrices read so far are stored in which numbers."""
        return ", ".join(f"{count} matrices in {kind}" for kind, count in sorted(self._sizes.items()))


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


def _find_picogpt_log(path: Path) -> Path | None:
    """Return the log of PicoGPT's that a path stands for, or None for another program's model.

    Raises UserError where the path holds neither.
    """
    if not path.exists():
        raise UserError(f"there is no {path}: --from takes a folder or a file of weights")
    if path.is_file():
        return None if path.suffix in _WEIGHTS or path.name == PROPERTIES else path
    if any((path / name).is_file() for name in (PROPERTIES, CONFIG, *FILES)):
        return None
    if (path / LOG).is_file():
        return path / LOG
    raise UserError(f"{path} holds no model that is known: {CONFIG} with weights, {PROPERTIES} or {LOG} is looked for")


def _find_tokenizer(found: ForeignModel, folder: Path, required: bool, notify: Callable[[str], None]) -> Tokenizer:
    """Return the model's tokenizer; where the folder has none, one of bare numbers, unless it is required.

    Raises UserError for a tokenizer that is missing or does not fit the model.
    """
    tokenizer = BpeTokenizer.find(folder)
    if tokenizer is None and required:
        raise UserError(
            f"there is no tokenizer in {folder}: tokenizer.json, or vocab.json and merges.txt, is looked for"
        )
    if tokenizer is None:
        notify(
            f"no tokenizer in {folder} (tokenizer.json, or vocab.json and merges.txt): the model reads and writes the "
            "numbers of tokens; --tokenizer FOLDER names another place"
        )
        return IdsTokenizer(found.model.vocab_size, found.end_of_text)
    if tokenizer.vocab_size > found.model.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size:,} tokens and the model {found.model.vocab_size:,}: "
            "they do not belong together"
        )
    return tokenizer


def _import_log(log: Log, path: Path, run_dir: Path, notify: Callable[[str], None]) -> str:
    """Make a run of a log of PicoGPT's: its best weights and its losses. Returns a line that describes them."""
    if log.model.vocab_size < PicoTokenizer().vocab_size:
        raise UserError(
            f"{path} has a vocabulary of {log.model.vocab_size}, PicoGPT's has {PicoTokenizer().vocab_size}"
        )
    config = RunConfig(log.model, DataConfig(), TrainConfig(steps=max(1, log.iterations)))
    meta = _meta(config, PicoTokenizer(), log.best_loss)
    _write_run(run_dir, _with_evaluations(_new_log(run_dir, config), log), log.arrays, meta, notify)
    total, counted = parameter_count(log.model)
    epochs = f"losses of {len(log.val_losses)} epochs, best loss {log.best_loss}"
    return f"{total:,} parameters ({counted:,} without the position table), {epochs}"


def _new_log(run_dir: Path, config: RunConfig) -> RunLog:
    return RunLog(run_dir / LOG, {**config.to_dict(), "parameters": parameter_count(config.model)[0]})


def _with_evaluations(run_log: RunLog, log: Log) -> RunLog:
    """Add the losses of PicoGPT, one pair an epoch, as evaluations that are evenly spread over its iterations."""
    steps, pairs = max(1, log.iterations), list(zip(log.train_losses, log.val_losses, strict=True))
    for i, (train, val) in enumerate(pairs, start=1):
        run_log.evaluation(Evaluation(max(i, steps * i // len(pairs)), train, val))
    run_log.notice("imported from PicoGPT: its epochs are spread evenly over the steps")
    return run_log


def _meta(config: RunConfig, tokenizer: Tokenizer, val_loss: float | None) -> CheckpointMeta:
    return CheckpointMeta(config, tokenizer.to_dict(), data="", val_loss=val_loss, evaluated=True)
