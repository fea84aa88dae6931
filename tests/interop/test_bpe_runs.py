"""Models with a byte-level BPE vocabulary, or with none at all: at the console, trained, exported."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

import picogpt
from picogpt.config import DataConfig, GenerateConfig, ModelConfig, RunConfig
from picogpt.data.prepare import prepare
from picogpt.data.sources.corpora import Corpus
from picogpt.data.sources.datasets import dataset_named
from picogpt.data.sources.formats import _BLOCK
from picogpt.data.streaming.filler import fill
from picogpt.data.streaming.plan import plan_for, shards_of
from picogpt.runs import checkpoints
from picogpt.runs.checkpoint_meta import CheckpointMeta
from picogpt.tokenizers import bpe
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.ids import IdsTokenizer
from tests.support.commands import is_one_line
from tests.support.hubserver import Hub, article
from tests.support.models import lively_arrays
from tests.support.running import status_of, typed
from tests.support.shards import set_size
from tests.support.streaming import FILES, GROUPS, ROWS
from tests.support.vocabularies import END, small_bpe

BPE = small_bpe()
MODEL = ModelConfig(
    16, BPE.vocab_size + 5, 2, 2, 16, layer_pattern=("global", "local"), local_window=8, context_slot=False
)
GREEDY = ("--temperature", "0", "--tokens", "20")


def make_run(name: str, tokenizer: Tokenizer, model: ModelConfig = MODEL, end: float = 0.0) -> None:
    """A run as an import makes it. end: how likely the model is to end a text, above all else."""
    arrays = lively_arrays(model)
    if tokenizer.end_of_text is not None:
        direction = np.ones(model.n_embd, np.float32)
        arrays["wte.weight"][tokenizer.end_of_text] = 0
        arrays["ln_f.bias"] += end * direction
        arrays["wte.weight"][tokenizer.end_of_text] += direction * bool(end)
    config = RunConfig(model, DataConfig(tokenizer=tokenizer.name))  # type: ignore[arg-type]
    meta = CheckpointMeta(config, tokenizer.to_dict(), data="", val_loss=3.0, evaluated=True)
    checkpoints.save(Path("logs") / name, 1, arrays, {}, meta)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plots: None) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("she sells é shells, said the 😀. " * 400, encoding="utf-8")


@pytest.mark.parametrize("engine", ["onnx", "numpy"])
def test_the_console_goes_on_as_if_it_had_never_stopped(
    engine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("neo", BPE)
    whole = picogpt.load("neo").generate("the shell", temperature=0, tokens=60)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    typed(monkeypatch, "the shell", "+", "+")
    assert status_of("generate", *GREEDY, "--engine", engine) == 0
    lines = capsys.readouterr().out.removeprefix("the shell").removesuffix("\n\n")
    assert len(set(whole)) > 3
    assert lines.replace("\ufffd", "").replace("\n", "") == whole.replace("\ufffd", "").replace("\n", "")


def test_more_text_goes_on_after_the_text_so_far(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("neo", BPE)
    model = picogpt.load("neo")
    streams = model.generator.begin(greedy := GenerateConfig(tokens=20, temperature=0))
    streams.read("the")
    first = "".join(piece for (piece,) in streams.write(greedy))
    streams.read(" shell")
    second = "".join(piece for (piece,) in streams.write(greedy))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    typed(monkeypatch, "the", "+ shell")
    assert status_of("generate", *GREEDY) == 0
    assert capsys.readouterr().out == f"the{first}\n{second}\n\n"


def test_a_model_that_ends_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    make_run("short", BPE, end=9.0)
    assert status_of("generate", *GREEDY, "--prompt", "the", "--json", "--samples", "2") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(fields["text"], fields["tokens"]) for fields in found] == [("", 1)] * 2
    assert status_of("generate", *GREEDY, "--prompt", "the") == 0
    assert capsys.readouterr().out == "the\n"


def test_a_megabyte_on_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    make_run("neo", BPE)
    monkeypatch.setattr("sys.stdin", io.StringIO("the é shell " * 100_000))
    assert status_of("generate", "--tokens", "3", "--temperature", "0") == 0
    printed = capsys.readouterr()
    assert is_one_line(printed.err) and "1,200,000 characters: the last 12,800 are read" in printed.err
    assert printed.out.startswith(("the é shell " * 2000)[-12_800:])


def test_any_prompt_is_of_the_alphabet(capsys: pytest.CaptureFixture[str]) -> None:
    make_run("neo", BPE)
    for prompt in ("", "é", "日本 😀"):
        assert status_of("generate", *GREEDY, "--prompt", prompt) == 0
        printed = capsys.readouterr()
        assert printed.out.startswith(prompt) and printed.err == ""


def test_numbers_at_the_console(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    make_run("numbers", IdsTokenizer(200), ModelConfig(16, 200, 1, 2, 16, context_slot=False))
    assert status_of("generate", *GREEDY, "--prompt", "14 42 8") == 0
    words = capsys.readouterr().out.split()
    assert words[:3] == ["14", "42", "8"] and len(words) == 23 and all(int(word) < 200 for word in words)
    assert status_of("generate", *GREEDY, "--prompt", "the shell") == 2
    error = capsys.readouterr().err
    assert is_one_line(error) and "takes the numbers of tokens, 0 to 199, not 'the'" in error
    monkeypatch.setattr("sys.stdin", io.StringIO())
    typed(monkeypatch, "the", "14 42 8")
    assert status_of("generate", *GREEDY) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == words and "takes the numbers" in printed.err


def test_it_is_trained_further(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "_PART", 1000)  # so that the library's threads have work before the lanes are forked
    make_run("neo", BPE)
    argv = ["train", "--init-from", "neo", "--data", "text.txt", "--run", "mine", "--batch-size", "4", "--lanes", "2"]
    assert status_of(*argv, "--steps", "4", "--eval-interval", "2") == 0
    assert status_of(*argv, "--steps", "6", "--eval-interval", "2") == 0
    tuned = picogpt.load("mine")
    assert tuned.tokenizer.to_dict() == BPE.to_dict() and tuned.config == MODEL
    assert "fork" not in capfd.readouterr().err
    assert status_of("generate", *GREEDY, "--run", "mine", "--prompt", "she") == 0
    assert capfd.readouterr().out.startswith("she")


def test_numbers_are_trained_further() -> None:
    make_run("numbers", IdsTokenizer(200, 0), ModelConfig(16, 200, 1, 2, 16, context_slot=False))
    Path("numbers.txt").write_text(" ".join(str(i * i % 200) for i in range(4000)), encoding="utf-8")
    argv = ["train", "--init-from", "numbers", "--data", "numbers.txt", "--run", "mine", "--batch-size", "4"]
    assert status_of(*argv, "--steps", "2", "--eval-interval", "2", "--lanes", "1") == 0
    assert picogpt.load("mine").tokenizer.to_dict() == IdsTokenizer(200, 0).to_dict()


@pytest.mark.parametrize("argv", [("train", "--run", "x"), ("prepare",), ("train", "--run", "x", "--data", "wiki")])
def test_without_a_model_there_are_no_numbers(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert status_of(*argv, "--tokenizer", "ids") == 2
    error = capsys.readouterr().err.lstrip()  # after the bar that shows how far it is
    assert is_one_line(error) and "the tokenizer ids is a model's own: name its run with --init-from" in error


@pytest.mark.parametrize("argv", [("prepare",), ("train", "--run", "x")])
def test_the_characters_of_a_stream_are_not_known_yet(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert status_of(*argv, "--data", "wiki", "--tokenizer", "chars") == 2
    error = capsys.readouterr().err.lstrip()
    assert (
        is_one_line(error) and "is streamed, so its characters are not known beforehand: use --tokenizer bpe" in error
    )


# Tokens of a text


def ids_of(path: str, tokenizer: Tokenizer, **data: str) -> tuple[list[int], list[int]]:
    found = prepare(DataConfig(path, **data), Path("dataset"), lambda _: None, tokenizer)
    return found.train.read(0, len(found.train)).tolist(), found.val.read(0, len(found.val)).tolist()


@pytest.mark.parametrize("block", [7, 100, _BLOCK])
def test_pieces_of_a_text_make_no_difference(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("picogpt.data.sources.formats._BLOCK", block)
    text = Path("text.txt").read_text(encoding="utf-8")
    train, val = ids_of("text.txt", BPE)
    assert train + val == [*BPE.encode(text).tolist(), BPE.end_of_text]
    assert abs(len(val) / len(train + val) - 0.1) < 0.01


def test_a_text_without_white_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("picogpt.data.sources.formats._BLOCK", 64)
    Path("line.txt").write_text("é12" * 1000, encoding="utf-8")
    train, val = ids_of("line.txt", BPE)
    assert BPE.decode(train + val) == "é12" * 1000 + END


@pytest.mark.parametrize("count", [3, 40])
def test_the_end_of_a_text_parts_documents(count: int) -> None:
    rows = [{"text": f"the {number} shell"} for number in range(count)]
    Path("many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    train, val = ids_of("many.jsonl", BPE)
    texts = BPE.decode(train + val).split(END)
    assert sorted(texts) == sorted(["", *(row["text"] for row in rows)])
    if count == 3:
        assert texts == [*(row["text"] for row in rows), ""]
    else:
        assert val[-1] == train[-1] == BPE.end_of_text and val.count(BPE.end_of_text) == 2


def test_the_end_of_a_text_parts_what_is_streamed(hub: Hub) -> None:
    dataset = dataset_named("wiki")
    assert dataset
    plan = plan_for(dataset, DataConfig("wiki"), BPE, Path("dataset"))
    fill(plan, lambda status: None)
    shards = shards_of(plan)
    assert shards
    texts = "".join(BPE.decode(part.read(0, len(part))) for part in shards).split(END)
    assert texts.pop() == "" and sorted(texts) == sorted(map(article, range(FILES * GROUPS * ROWS)))


def test_a_name_of_a_special_token_in_a_text_is_text() -> None:
    Path("named.txt").write_text(f"the {END} shell\n" * 30, encoding="utf-8")
    train, val = ids_of("named.txt", BPE)
    assert (train + val).count(BPE.end_of_text) == 1


def test_it_goes_on_after_what_was_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    set_size(monkeypatch, "SHARD_TOKENS", 1000)
    monkeypatch.setattr("picogpt.data.sources.formats._BLOCK", 777)
    whole = ids_of("text.txt", BPE)
    original, read = Corpus.documents, 0

    def interrupted(self: Corpus, advance: object) -> object:
        nonlocal read
        read += 1
        for document in original(self, advance):  # type: ignore[arg-type]
            yield from [document] if read == 1 else [(piece for i, piece in enumerate(document) if i < 9 or 1 / 0)]

    monkeypatch.setattr(Corpus, "documents", interrupted)
    with pytest.raises(ZeroDivisionError):
        ids_of("text.txt", BPE, text_field="other")
    monkeypatch.setattr(Corpus, "documents", original)
    [begun] = Path("dataset/tokens").glob("*.part")
    assert len(list((begun / "train").glob("*.bin"))) > 1
    assert ids_of("text.txt", BPE, text_field="other") == whole
