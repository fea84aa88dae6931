"""`picogpt import`: another program's model as a run of ours, read and written one tensor after the other."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from picogpt.config import DataConfig, RunConfig, TrainConfig
from picogpt.engine.backend import Array
from picogpt.engine.mapped_matrix import MappedMatrix
from picogpt.errors import UserError
from picogpt.interop.dat import PROPERTIES, read_dat
from picogpt.interop.foreign_model import ForeignModel, array_of
from picogpt.interop.huggingface.reader import CONFIG, FILES, read_huggingface
from picogpt.interop.picogpt_log import Log, read_log
from picogpt.model.parameters import parameter_count
from picogpt.runs import checkpoints
from picogpt.runs.layout import LOG
from picogpt.runs.lock import run_lock
from picogpt.runs.log import Evaluation, RunLog
from picogpt.runs.meta import CheckpointMeta
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.bpe import BpeTokenizer
from picogpt.tokenizers.characters import PicoTokenizer
from picogpt.tokenizers.ids import IdsTokenizer

_WEIGHTS = (".safetensors", ".bin", ".json")


def import_model(
    path: Path, run_dir: Path, n_head: int, tokenizer: Path | None, rounded: bool, notify: Callable[[str], None]
) -> str:
    """Make a run of the model at `path`: a folder, or a file in one; to write with, and to begin others from.

    n_head: of a log of PicoGPT's, which does not tell. tokenizer: the folder of one, if not that of the weights.
    rounded: float32 matrices to bfloat16. Returns what was imported, in a line. Raises UserError where there is no
    such model, or the run is there already.
    """
    if checkpoints.newest(run_dir) or (run_dir / LOG).exists():
        raise UserError(f"there is a run {run_dir.name} already: give another --run NAME")
    if theirs := _picogpt_log(path):
        if tokenizer or rounded:
            raise UserError("a log of PicoGPT's has one tokenizer and float32: leave --tokenizer and --bfloat16 out")
        return _import_log(read_log(theirs, n_head), theirs, run_dir, notify)
    found = read_dat(_folder(path)) if (_folder(path) / PROPERTIES).is_file() else read_huggingface(path)
    words = _tokenizer(found, _folder(tokenizer or path), tokenizer is not None, notify)
    config = RunConfig(found.model, DataConfig(tokenizer=words.name), TrainConfig(steps=1))
    weights = _Weights(found, rounded)
    log = RunLog(run_dir / LOG, {**config.to_dict(), "parameters": parameter_count(found.model)[0]})
    log.notice(f"imported from {path}")
    _make(run_dir, log, weights, _meta(config, words, None), notify)
    return f"{found.family}, {parameter_count(found.model)[0]:,} parameters, {weights.kinds()}"


def _make(
    run_dir: Path, log: RunLog, weights: Mapping[str, Array], meta: CheckpointMeta, notify: Callable[[str], None]
) -> None:
    """Write the run; where that fails or is broken off, nothing of it is left."""
    with run_lock(run_dir, notify):
        try:
            checkpoints.save(run_dir, meta.config.train.steps, weights, {}, meta)
            log.save()
        except BaseException:
            checkpoints.clear(run_dir)
            raise


class _Weights(Mapping[str, Array]):
    """A model's weights by picogpt's names, each made when it is asked for, in the form it is kept in."""

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
        """How many matrices are kept in which numbers."""
        return ", ".join(f"{count} matrices in {kind}" for kind, count in sorted(self._sizes.items()))


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


def _picogpt_log(path: Path) -> Path | None:
    """The log of PicoGPT's that a path stands for; None for another program's model. Raises UserError for nothing."""
    if not path.exists():
        raise UserError(f"there is no {path}: --from takes a folder or a file of weights")
    if path.is_file():
        return None if path.suffix in _WEIGHTS or path.name == PROPERTIES else path
    if any((path / name).is_file() for name in (PROPERTIES, CONFIG, *FILES)):
        return None
    if (path / LOG).is_file():
        return path / LOG
    raise UserError(f"{path} holds no model that is known: {CONFIG} with weights, {PROPERTIES} or {LOG} is looked for")


def _tokenizer(found: ForeignModel, folder: Path, asked: bool, notify: Callable[[str], None]) -> Tokenizer:
    """The model's tokenizer, or where there is none, one of bare numbers, unless this folder was asked for."""
    tokenizer = BpeTokenizer.find(folder)
    if tokenizer is None and asked:
        raise UserError(
            f"there is no tokenizer in {folder}: tokenizer.json, or vocab.json and merges.txt, is looked for"
        )
    if tokenizer is None:
        notify(
            f"no tokenizer in {folder} (tokenizer.json, or vocab.json and merges.txt): text is numbers of tokens then; "
            "--tokenizer FOLDER names another place"
        )
        return IdsTokenizer(found.model.vocab_size, found.end_of_text)
    if tokenizer.vocab_size > found.model.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size:,} tokens and the model {found.model.vocab_size:,}: "
            "they do not belong together"
        )
    return tokenizer


def _import_log(log: Log, path: Path, run_dir: Path, notify: Callable[[str], None]) -> str:
    """Of a log of PicoGPT's: its best weights and its losses."""
    if log.model.vocab_size < PicoTokenizer().vocab_size:
        raise UserError(
            f"{path} has a vocabulary of {log.model.vocab_size}, PicoGPT's has {PicoTokenizer().vocab_size}"
        )
    config = RunConfig(log.model, DataConfig(), TrainConfig(steps=max(1, log.iterations)))
    _make(
        run_dir, _evaluations(log, config, run_dir), log.arrays, _meta(config, PicoTokenizer(), log.best_loss), notify
    )
    total, counted = parameter_count(log.model)
    epochs = f"losses of {len(log.val_losses)} epochs, best loss {log.best_loss}"
    return f"{total:,} parameters ({counted:,} without the position table), {epochs}"


def _evaluations(log: Log, config: RunConfig, run_dir: Path) -> RunLog:
    """Its losses, one pair an epoch, as evaluations that are evenly spread over its iterations."""
    made = RunLog(run_dir / LOG, {**config.to_dict(), "parameters": parameter_count(config.model)[0]})
    pairs = list(zip(log.train_losses, log.val_losses, strict=True))
    for i, (train, val) in enumerate(pairs, start=1):
        made.evaluation(Evaluation(max(i, config.train.steps * i // len(pairs)), train, val))
    made.notice("imported from PicoGPT: its epochs are spread evenly over the steps")
    return made


def _meta(config: RunConfig, tokenizer: Tokenizer, val_loss: float | None) -> CheckpointMeta:
    return CheckpointMeta(config, tokenizer.to_dict(), data="", val_loss=val_loss, evaluated=True)
