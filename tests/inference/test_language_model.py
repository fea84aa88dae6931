"""The public API: load, logits, generate."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import picogpt
from picogpt import LanguageModel, UserError
from picogpt.config import GenerateConfig, ModelConfig, RunConfig, TrainConfig
from picogpt.runs import checkpoint, checkpoints
from picogpt.runs.checkpoint_meta import CheckpointMeta
from picogpt.runs.find import newest_run, trained_runs
from picogpt.runs.layout import BASE
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.characters import CharTokenizer, PicoTokenizer
from tests.support.checkpoints import forge_meta
from tests.support.models import lively_arrays

W = 8
CONFIG = ModelConfig(context_len=W, n_layer=2, n_head=2, n_embd=16)
ALPHABET = "\n abcdefgh"


def save(
    folder: Path, step: int, val_loss: float, config: ModelConfig = CONFIG, tokenizer: Tokenizer | None = None
) -> Path:
    """A checkpoint whose token table holds its step, so that one can tell which was loaded."""
    arrays = lively_arrays(config)
    arrays["wte.weight"][0, 0] = step
    meta = CheckpointMeta(
        RunConfig(config, train=TrainConfig()), (tokenizer or PicoTokenizer()).to_dict(), "some text", val_loss=val_loss
    )
    return checkpoints.save(folder, step, arrays, {}, meta)


def step_of(model: LanguageModel) -> float:
    return float(model.model.wte.weight.data[0, 0])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with two runs in logs/."""
    monkeypatch.chdir(tmp_path)
    for step, val_loss in ((10, 3.0), (20, 1.0), (30, 2.0)):
        save(Path("logs/first"), step, val_loss)
    save(Path("logs/second"), 5, 4.0)
    yield tmp_path


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(CONFIG, lively_arrays(CONFIG), PicoTokenizer(), rolls=True)


@pytest.fixture(scope="module")
def chars() -> LanguageModel:
    """Its table has more rows than its tokenizer has characters."""
    config = replace(CONFIG, vocab_size=40)
    return LanguageModel(config, lively_arrays(config), CharTokenizer(ALPHABET), rolls=True)


# load


def test_load_takes_the_best_of_a_run_by_name_or_folder(home: Path) -> None:
    for place in (
        "first",
        Path("first"),
        "logs/first",
        Path("logs/first"),
        home / "logs" / "first",
        str(home / "logs/first"),
    ):
        assert step_of(picogpt.load(place)) == 20, place
    assert step_of(picogpt.load("second")) == 5


def test_load_takes_a_checkpoint_folder(home: Path) -> None:
    for step in (10, 20, 30):
        folder = Path("logs/first/checkpoints") / f"{step:08d}"
        assert step_of(picogpt.load(folder)) == step_of(picogpt.load(str(home / folder))) == step
    moved = home / "elsewhere"
    (home / "logs/first/checkpoints/00000010").rename(moved)
    assert step_of(picogpt.load(moved)) == step_of(picogpt.load("elsewhere")) == 10


def test_load_without_any_evaluation_takes_the_newest(home: Path) -> None:
    for step in (1, 2):
        save(Path("logs/third"), step, None)  # type: ignore[arg-type]
    assert step_of(picogpt.load("third")) == 2


def test_an_unknown_run_lists_the_runs(home: Path) -> None:
    (home / "logs" / "empty").mkdir()
    with pytest.raises(UserError) as error:
        picogpt.load("third")
    assert str(error.value) == "no trained run is called 'third'; there are: first, second, and base"


def test_no_run_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"there is base, and python train\.py makes others"):
        picogpt.load("pico-sample")
    assert newest_run() == BASE
    assert trained_runs() == [] and not (tmp_path / "logs").exists()


def test_the_newest_run_is_the_one_saved_last(home: Path) -> None:
    """Going on with an older run saves a checkpoint below its folder; the folder's own time stays."""
    assert {run.name for run in trained_runs()} == {"first", "second"}
    for path in [home / "logs", *(home / "logs").rglob("*")]:
        os.utime(path, (1_000_000, 1_000_000))
    os.utime(home / "logs" / "second", (2_000_000, 2_000_000))
    save(Path("logs/first"), 40, 9.0)
    assert newest_run() == "first"


@pytest.mark.parametrize("file", [checkpoint.MODEL, checkpoint.META])
def test_a_damaged_checkpoint_is_refused(home: Path, file: str) -> None:
    path = home / "logs/first/checkpoints/00000020" / file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=file) as error:
        picogpt.load(path.parent)
    assert "\n" not in str(error.value)


SOUND = CheckpointMeta(RunConfig(CONFIG), PicoTokenizer().to_dict(), "some text").to_dict()


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"config": RunConfig(CONFIG).to_dict(), "tokenizer": None},
        {"config": RunConfig(CONFIG).to_dict(), "tokenizer": {"name": "bpe"}},
        {"config": {"model": {}}, "tokenizer": PicoTokenizer().to_dict()},
        {"config": None, "tokenizer": PicoTokenizer().to_dict()},
        {"config": RunConfig(replace(CONFIG, n_layer=1)).to_dict(), "tokenizer": PicoTokenizer().to_dict()},
        {"config": RunConfig(replace(CONFIG, vocab_size=90)).to_dict(), "tokenizer": PicoTokenizer().to_dict()},
    ],
)
def test_a_foreign_checkpoint_is_refused(tmp_path: Path, meta: dict[str, Any]) -> None:
    folder = save(tmp_path / "run", 1, 1.0)
    forge_meta(folder, {**SOUND, **meta} if meta else {}, whole=True)
    with pytest.raises(UserError) as error:
        picogpt.load(folder)
    assert "\n" not in str(error.value)


def test_a_loaded_model_writes_as_the_one_that_was_saved(home: Path, chars: LanguageModel) -> None:
    tokenizer, config = CharTokenizer(ALPHABET), chars.config
    save(Path("logs/chars"), 0, 1.0, config, tokenizer)
    loaded = picogpt.load("chars")
    assert loaded.config == config and loaded.tokenizer.to_dict() == tokenizer.to_dict()
    arrays = lively_arrays(config)
    arrays["wte.weight"][0, 0] = 0
    original = LanguageModel(config, arrays, tokenizer)
    assert loaded.generate("abc", tokens=40, seed=1) == original.generate("abc", tokens=40, seed=1)


# logits


def test_logits(model: LanguageModel) -> None:
    ids = np.arange(2 * 5).reshape(2, 5)
    logits = model.logits(ids)
    assert type(logits) is np.ndarray and logits.dtype == np.float32 and logits.shape == (2, 5, 88)
    for form in (ids.tolist(), ids.astype(np.uint8), ids.astype(np.int32)):
        assert np.array_equal(model.logits(form), logits)
    one = model.logits(model.tokenizer.encode("the sun"))
    assert one.shape == (1, 7, 88) and model.logits([3]).shape == (1, 1, 88)


def test_logits_roll_over_windows(model: LanguageModel) -> None:
    ids = np.arange(10 * W + 3) % 88
    logits = model.logits(ids)
    assert logits.shape == (1, 10 * W + 3, 88)
    np.testing.assert_allclose(model.logits(ids[: 3 * W + 1]), logits[:, : 3 * W + 1], atol=1e-5)
    assert np.abs(model.logits(ids[W:]) - logits[:, W:]).max() > 1e-3  # the context counts


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([88], r"ids must lie in 0\.\.87, not 88\.\.88"),
        ([-1, 3], r"not -1\.\.3"),
        ([], "integer ids of shape"),
        ([[], []], "integer ids of shape"),
        ([1.0, 2.0], "not float64"),
        (["a"], "integer ids"),
        ([[[1]]], r"of \(1, 1, 1\)"),
        ([True], "not bool"),
        (None, "integer ids"),
        ([2**63], "ids"),
    ],
)
def test_bad_ids(model: LanguageModel, ids: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.logits(ids)


def test_a_model_without_a_slot_reads_one_window() -> None:
    config = replace(CONFIG, context_slot=False)
    plain = LanguageModel(config, lively_arrays(config), PicoTokenizer())
    assert plain.logits(np.zeros(W, int)).shape == (1, W, 88)
    with pytest.raises(UserError, match="9 ids are more than the window of 8"):
        plain.logits(np.zeros(W + 1, int))
    assert len(plain.generate("a longer prompt than the window", tokens=50, seed=0)) >= 50
    bigram = replace(config, n_layer=0)
    assert LanguageModel(bigram, lively_arrays(bigram), PicoTokenizer()).logits(np.zeros(99, int)).shape == (1, 99, 88)


# generate


def test_the_seed_decides(model: LanguageModel) -> None:
    first, again, other = (model.generate("the sun", tokens=60, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({model.generate("the sun", tokens=60, temperature=1.0) for _ in range(3)}) == 3


def test_greedy_is_the_likeliest_every_time(model: LanguageModel) -> None:
    text = model.generate("the sun", tokens=3 * W, temperature=0, overlap=0)
    assert text == model.generate("the sun", tokens=3 * W, temperature=0, seed=5, overlap=0)
    ids, expected = list(model.tokenizer.encode("the sun")), []
    for _ in range(3 * W):
        expected.append(int(model.logits(ids)[0, -1].argmax()))
        ids.append(expected[-1])
    assert text == model.tokenizer.decode(expected)
    assert text == model.generate("the sun", tokens=3 * W, temperature=9.0, top_k=1, seed=3, overlap=0)


@pytest.mark.parametrize("tokens", [0, 1, W, 10 * W + 1])
def test_as_many_characters_as_tokens(chars: LanguageModel, tokens: int) -> None:
    text = chars.generate("abc", tokens=tokens, temperature=2.0, seed=0)
    assert len(text) == tokens and set(text) <= set(ALPHABET)


def test_an_empty_prompt_begins_after_a_line_break(chars: LanguageModel) -> None:
    assert chars.generate("", tokens=30, seed=4) == chars.generate("\n", tokens=30, seed=4)
    assert chars.generate("", tokens=30, seed=4) != chars.generate("a", tokens=30, seed=4)


def test_unknown_characters_are_read_as_something(model: LanguageModel, chars: LanguageModel) -> None:
    prompt = "the 🌞\ud800 日本"
    assert len(chars.generate(prompt, tokens=20, seed=0)) == 20
    assert model.generate(prompt, tokens=20, seed=0) == model.generate(prompt.upper(), tokens=20, seed=0)


def test_a_prompt_longer_than_ten_windows(chars: LanguageModel) -> None:
    prompt = "abcdefgh " * 10 * W
    assert len(prompt) > 10 * W
    first = chars.generate(prompt, tokens=30, temperature=0, overlap=0)
    ids = chars.tokenizer.encode(prompt)
    likeliest = chars.logits(ids)[0, -1, : chars.tokenizer.vocab_size].argmax()
    assert len(first) == 30 and first[0] == chars.tokenizer.decode([likeliest])


def test_the_stream_is_the_text_in_pieces(chars: LanguageModel) -> None:
    config = GenerateConfig(tokens=25, seed=3)
    pieces = list(chars.stream("abc", config))
    assert len(pieces) == 25 and "".join(pieces) == chars.generate("abc", tokens=25, seed=3)


@pytest.mark.parametrize("bad", [{"tokens": -1}, {"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"seed": -1}])
def test_bad_settings(chars: LanguageModel, bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        chars.generate("abc", **bad)


def test_what_the_package_offers() -> None:
    assert set(picogpt.__all__) >= {"LanguageModel", "UserError", "load"}
    assert all(hasattr(picogpt, name) for name in picogpt.__all__)
