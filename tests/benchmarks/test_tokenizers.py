"""`python -m benchmarks.tokenizers`: what each tokenizer is worth at equal arithmetic."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import tokenizers
from benchmarks.tokenizers import Tokenizers, known, main, mean_flops, run, run_flops, spread, steps_for
from picogpt.config import ModelConfig, RunConfig, TrainConfig
from picogpt.config.presets import PRESETS
from picogpt.errors import UserError
from picogpt.model.flops import write_flops

TINY = RunConfig(ModelConfig(16, 88, 1, 2, 16), train=TrainConfig(batch_size=2, lanes=1))


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_text("She sells sea shells by the sea shore.\n" * 400, encoding="utf-8")
    return str(tmp_path / "train.txt"), str(tmp_path / "val.txt")


def asked(texts: tuple[str, str], **changes: object) -> Tokenizers:
    kinds = ("chars", "bpe:300")
    return replace(Tokenizers(texts, kinds, "tiny", steps=1, seeds=(1, 2), judged=4_000), **changes)  # type: ignore[arg-type]


def test_every_tokenizer_gets_the_same_arithmetic(texts: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "run_flops", lambda config, steps: steps * 1e6 * config.model.vocab_size)
    configs: list[RunConfig] = []
    original = tokenizers.train
    monkeypatch.setattr(tokenizers, "train", lambda config, data: (configs.append(config), original(config, data))[1])
    found = run(asked(texts, seeds=(1,)))
    sizes = [config.model.vocab_size for config in configs]
    assert sizes[0] < 30 and 261 < sizes[1] <= 300
    assert [config.train.steps for config in configs] == [max(1, round(88 / size)) for size in sizes]
    assert found[0].bits_per_char == pytest.approx(found[0].bits_per_byte)  # of ASCII
    assert found[1].window > 1.5 * found[0].window == 1.5 * 16 and 0 < found[0].head < found[1].head < 1


def test_results_are_kept_and_not_measured_twice(
    texts: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tokenizers, "run_flops", lambda config, steps: float(steps))
    args = asked(texts, out=str(tmp_path / "out.jsonl"))
    first = run(args)
    assert len(first) == 4 == len(known(args.out))
    monkeypatch.setattr(tokenizers, "measure", lambda *_: pytest.fail("measured again"))
    assert run(args) == first and len(run(replace(args, kinds=("chars",)))) == 2
    with pytest.raises(pytest.fail.Exception):
        run(replace(args, steps=2))  # other arithmetic is another table
    tokenizers.show(first)
    out = capsys.readouterr().out
    assert "bpe:300" in out and "±" in out and "train.txt" in out
    Path(args.out).write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is no file of results"):
        known(args.out)


def test_arithmetic_counts_the_blocks_that_train_and_what_attention_sees() -> None:
    model = TINY.model
    mean = sum(write_flops(model, place) for place in range(17)) / 17
    assert mean_flops(model) == pytest.approx(3 * mean)
    deep = replace(TINY, model=replace(model, n_layer=8))
    at_once = replace(deep, train=replace(deep.train, depth_warmup=0.0))
    assert run_flops(deep, 10) < 0.7 * run_flops(at_once, 10)
    assert run_flops(at_once, 10) == pytest.approx(10 * 2 * 16 * mean_flops(deep.model))
    assert steps_for(at_once, run_flops(at_once, 7)) == 7 and steps_for(deep, 1.0) == 1


def test_the_text_to_judge_comes_from_all_of_it() -> None:
    text = "".join(f"{i:09d}\n" for i in range(10_000))
    judged = spread(text, 12_000)
    assert len(judged) == 12_000 and judged.startswith("000000000") and "00008" in judged
    assert spread("short", 12_000) == "short"


@pytest.mark.parametrize(("words", "told"), [([], "give two texts"), (["one", "two"], "there is no"), (["--x"], "--x")])
def test_what_cannot_be_is_one_line(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("tokenizers: ") and told in error and error.count("\n") == 1
