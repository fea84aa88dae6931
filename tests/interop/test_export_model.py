"""From another program's files to a run and back: the same numbers to the bit, and the same words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from picogpt import cli
from picogpt.engine.mapped_matrix import MappedMatrix
from picogpt.errors import UserError
from picogpt.inference import language_model
from picogpt.interop import import_model
from picogpt.interop.foreign_model import array_of
from picogpt.interop.picogpt_log import read_picogpt_log
from picogpt.model import parameters
from picogpt.runs import checkpoints
from picogpt.runs import log as log_module
from picogpt.runs.find import trained_runs, use_checkpoint
from picogpt.runs.trained_model import read_model
from picogpt.tensorfiles.safetensors import read_safetensors
from picogpt.tokenizers.bpe import BpeTokenizer
from picogpt.training.trainer import Trainer
from tests.support.hf import CONFIGS, GOLDEN, LOGITS, tiny_with_words, weights_of, write_folder
from tests.support.paths import ROOT
from tests.support.vocabularies import write_tables

PICOGPT = ROOT / "tests" / "golden" / "picogpt_log.pkl"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*words: str | Path) -> None:
    assert cli.main([str(word) for word in words]) == 0


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
def test_huggingfaces_files_come_back(family: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(Path("theirs"), CONFIGS[family], weights_of(family), kind, "pytorch_model.bin", shards=2)
    call("import", "--from", folder, "--run", "own")
    said = capsys.readouterr()
    assert f"imported theirs as run own: {family}, " in said.out and f"18 matrices in {kind}" in said.out
    assert "no tokenizer in theirs" in said.err
    logits = language_model.load("own").logits(LOGITS["ids"])[0, LOGITS["positions"]]
    assert np.abs(logits - LOGITS[family][kind]).max() < 1e-4
    call("export", "--run", "own", "--format", "huggingface", "--out", "back")
    plain = write_folder(Path("plain"), CONFIGS[family], weights_of(family), kind)
    before, after = (read_safetensors(place / "model.safetensors") for place in (plain, Path("back")))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and tensor.raw().tobytes() == after[name].raw().tobytes(), name


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_by_way_of_a_dat_folder(kind: str) -> None:
    call("import", "--from", write_folder(Path("a"), CONFIGS["gpt_neo"], weights_of("gpt_neo"), kind), "--run", "a")
    call("export", "--run", "a", "--format", "dat", "--out", "dat")
    call("import", "--from", "dat", "--run", "b")
    call("export", "--run", "b", "--format", "dat", "--out", "again")
    files = sorted(path.relative_to("dat") for path in Path("dat").rglob("*") if path.is_file())
    assert len(files) > 50
    for file in files:
        assert (Path("dat") / file).read_bytes() == (Path("again") / file).read_bytes(), file
    assert np.array_equal(
        language_model.load("a").logits(LOGITS["ids"]), language_model.load("b").logits(LOGITS["ids"])
    )


def test_picogpts_log_comes_back() -> None:
    call("import", "--from", PICOGPT, "--run", "old", "--n-head", "2")
    call("export", "--run", "old", "--format", "picogpt", "--out", "log.pkl")
    before, after = read_picogpt_log(PICOGPT, 2), read_picogpt_log(Path("log.pkl"), 2)
    assert all(np.array_equal(after.arrays[name], array) for name, array in before.arrays.items())
    facts = ("model", "train_losses", "val_losses", "best_loss", "iterations")
    assert all(getattr(before, fact) == getattr(after, fact) for fact in facts)


def test_the_tokenizer_goes_along(capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(Path("theirs"), **tiny_with_words("gpt2"))
    write_tables(folder)
    call("import", "--from", folder, "--run", "own")
    call("export", "--run", "own", "--format", "huggingface", "--out", "back")
    assert "tokenizer" not in capsys.readouterr().err
    call("import", "--from", "back", "--run", "again")
    one, other = language_model.load("own"), language_model.load("again")
    assert one.tokenizer.to_dict() == other.tokenizer.to_dict()
    words = one.generate("the moon", tokens=20, temperature=0)
    assert words == other.generate("the moon", tokens=20, temperature=0)
    call("export", "--run", "own", "--format", "dat", "--out", "dat")
    assert "the tokenizer (bpe) is not exported" in capsys.readouterr().err


def test_onnx_says_what_numpy_says(capsys: pytest.CaptureFixture[str]) -> None:
    call("import", "--from", GOLDEN / "gpt_neo", "--run", "neo")
    prompt = " ".join(map(str, LOGITS["ids"][:300]))
    texts = []
    for engine in ("onnx", "numpy"):
        capsys.readouterr()
        generate = ("generate", "--run", "neo", "--engine", engine, "--prompt", prompt, "--tokens", "40")
        call(*generate, "--temperature", "0", "--json")
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1] and len(texts[0].split()) > 9  # it comes to an end of its own


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("train", ["all", "last-2", "biases", "lora"])
def test_fine_tuning_an_imported_model(train: str, kind: str, no_plots: None) -> None:
    folder = write_folder(Path("theirs"), **tiny_with_words("gpt_neo"), kind=kind)
    write_tables(folder)
    call("import", "--from", folder, "--run", "neo")
    Path("text.txt").write_text("the shell, the shells and the sea: " * 400, encoding="utf-8")
    tune = ("train", "--init-from", "neo", "--data", "text.txt", "--run", "own", "--train", train)
    call(*tune, "--steps", "6", "--eval-interval", "3", "--context", "64", "--learning-rate", "0.003")
    log = log_module.read_log(Path("logs/own/log.pkl"))
    assert log.losses["val"][-1] < log.losses["val"][0]
    before, after = use_checkpoint("neo", read_model, print), read_model(checkpoints.newest(Path("logs/own")))
    changed = {name for name, array in before.arrays.items() if not np.array_equal(array[:], after.arrays[name][:])}
    assert changed == {name for name in before.arrays if trains(train, name)}
    for name, array in after.checkpoint.model.items():  # what is frozen stays in the numbers it came in
        if array.ndim == 2 and "lora" not in name and name not in changed:
            assert array.raw.dtype == (np.uint16 if kind == "bfloat16" else np.float32) or train == "lora", name
    call("export", "--run", "own", "--format", "huggingface", "--out", "back")


def test_of_a_large_model_what_is_frozen_stays_in_its_file(no_plots: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "LARGE", 0)
    call("import", "--from", GOLDEN / "gpt_neo", "--run", "neo")
    assert isinstance(language_model.load("neo").model.h[0].mlp.c_fc.weight.data, MappedMatrix)
    Path("text.txt").write_text("the shell, the shells and the sea: " * 400, encoding="utf-8")
    kept, made = [], Trainer.__init__

    def looked_at(self: Trainer, config: Any, arrays: Any, lanes: Any) -> None:
        kept.append({name for name, array in arrays.items() if isinstance(array, MappedMatrix)})
        made(self, config, arrays, lanes)

    monkeypatch.setattr(Trainer, "__init__", looked_at)
    for steps in ("2", "4"):
        tune = ("train", "--init-from", "neo", "--data", "text.txt", "--run", "own", "--train", "last-1")
        call(*tune, "--tokenizer", "chars", "--context", "64", "--steps", steps, "--eval-interval", "2")
    assert len(kept) == 2 and all("h.0.attn.c_attn.weight" in names for names in kept)
    losses = log_module.read_log(Path("logs/own/log.pkl")).losses["val"]
    assert len(losses) == 2 and losses[1] < losses[0]
    texts = [language_model.load("own").generate("the sea", tokens=8, temperature=0, seed=1) for _ in range(2)]
    assert texts[0] == texts[1]


def test_a_model_without_words_learns_those_of_a_text(no_plots: None, capsys: pytest.CaptureFixture[str]) -> None:
    call("import", "--from", GOLDEN / "gpt2", "--run", "bare")
    Path("text.txt").write_text("the shell, the shells and the sea: " * 400, encoding="utf-8")
    tune = ["train", "--init-from", "bare", "--data", "text.txt", "--run", "own", "--steps", "2", "--context", "64"]
    assert cli.main(tune) == 2
    assert "takes the numbers of tokens" in capsys.readouterr().err
    for _ in range(2):  # the second time it goes on
        call(*tune, "--tokenizer", "chars")
    call("generate", "--run", "own", "--prompt", "the sea", "--tokens", "5")


def trains(train: str, name: str) -> bool:
    match train:
        case "last-2":
            return name.startswith(("h.2.", "h.3.", "ln_f."))
        case "biases":
            return name.endswith(".bias")
        case "lora":
            return name.startswith("h.") and name.endswith("weight") and ".ln_" not in name
    return True


REFUSED = [
    (["--format", "huggingface"], "give --out PATH"),
    (["--format", "huggingface", "--out", "theirs"], "already: name another"),
    (["--format", "picogpt", "--out", "x"], "PicoGPT has one tokenizer, and this model's is ids"),
    (["--format", "dat", "--out", "x", "--precision", "int8"], "are for ONNX files"),
    (["--format", "torch", "--out", "x"], "--format"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_what_cannot_be_is_one_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(Path("theirs"), CONFIGS["gpt2"], weights_of("gpt2"))
    call("import", "--from", "theirs", "--run", "own")
    capsys.readouterr()
    assert cli.main(["export", "--run", "own", *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "there is no nowhere: --from takes a folder or a file of weights"),
        (".", "holds no model that is known"),
        ("empty.bin", "is damaged or no file of PyTorch's"),
        ("empty.safetensors", "is damaged or no safetensors file"),
        ("notes.txt", "is damaged or no file of PyTorch's"),
    ],
)
def test_what_is_no_model_is_one_line(source: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    if source.startswith("empty"):
        Path("config.json").write_text(json.dumps(CONFIGS["gpt2"]), encoding="utf-8")
    if "." in source[1:]:
        Path(source).touch()
    assert cli.main(["import", "--from", source, "--run", "own"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not Path("logs").exists()


def test_a_tokenizer_that_does_not_belong_to_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(Path("."))
    write_folder(Path("theirs"), CONFIGS["gpt2"], weights_of("gpt2"))
    assert cli.main(["import", "--from", "theirs", "--run", "own", "--tokenizer", "."]) == 2
    assert "they do not belong together" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_import_that_is_broken_off_leaves_nothing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(Path("theirs"), CONFIGS["gpt2"], weights_of("gpt2"))
    made, calls = array_of, []

    def breaking(*how: Any) -> Any:
        calls.append(how)
        if len(calls) == 7:
            raise error
        return made(*how)

    monkeypatch.setattr(import_model, "array_of", breaking)
    assert cli.main(["import", "--from", str(folder), "--run", "own"]) in (2, 130)
    assert len(calls) == 7 and not [path for path in Path("logs").rglob("*") if path.suffix == ".safetensors"]
    assert trained_runs() == []
    monkeypatch.setattr(import_model, "array_of", made)
    call("import", "--from", folder, "--run", "own")


def test_tokens_that_were_added_beside_the_vocabulary(tmp_path: Path) -> None:
    write_tables(tmp_path)
    size = BpeTokenizer.find(tmp_path).vocab_size
    added = {"<foo>": size, "<bar>": size + 1}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    about = {"added_tokens_decoder": {str(size + 1): {"content": "<bar>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    found = BpeTokenizer.find(tmp_path)
    assert found.encode("a<foo>b").tolist()[1] == size and found.decode([size]) == "<foo>"
    assert len(found.encode("<bar>")) > 1 and found.encode_marked("<bar>").tolist() == [size + 1]
    assert found.end_of_text == size - 1
    for hostile in ("[]", '{"a": "b"}', "{", '{"<foo>": -1}'):
        (tmp_path / "added_tokens.json").write_text(hostile, encoding="utf-8")
        with pytest.raises(UserError) as told:
            BpeTokenizer.find(tmp_path)
        assert "\n" not in str(told.value)


MISTAKES = [
    (["import", "--from", "words", "--run", "x", "--tokenizer", "nowhere"], "there is no tokenizer in nowhere"),
    (["import", "--from", str(PICOGPT), "--run", "x", "--bfloat16"], "leave --tokenizer and --bfloat16 out"),
    (["export", "--run", "neo", "--out", "x.onnx"], "--out is for other formats"),
    (["train", "--run", "neo", "--data", "text.txt"], "is an imported model: --init-from neo --run ANOTHER"),
    (["train", "--run", "neo", "--fresh", "--data", "text.txt"], "is an imported model: --init-from neo --run ANOTHER"),
]


@pytest.mark.parametrize(("command", "said"), MISTAKES)
def test_mistakes_with_an_imported_model(command: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(Path("words"), **tiny_with_words("gpt_neo"))
    write_tables(folder)
    call("import", "--from", folder, "--run", "neo")
    Path("text.txt").write_text("the shell, the shells and the sea: " * 400, encoding="utf-8")
    capsys.readouterr()
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert language_model.load("neo").config.n_layer == 4  # it is still there


def test_what_is_said_of_an_imported_model(no_plots: None, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(Path("words"), **tiny_with_words("gpt_neo"))
    write_tables(folder)
    call("import", "--from", folder, "--run", "neo", "--tokenizer", folder / "vocab.json")
    call("logs", "neo")
    call("info", "--run", "neo")
    said = capsys.readouterr().out
    assert "imported from words" in said and "adamw" in said
    Path("text.txt").write_text("the shell, the shells and the sea: " * 400, encoding="utf-8")
    call("train", "--init-from", "neo", "--data", "text.txt", "--run", "own", "--steps", "2", "--context", "64")
    call("logs", "own")
    assert "bits/byte" in capsys.readouterr().out


def test_few_bits_of_a_model_without_words_are_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    call("import", "--from", GOLDEN / "gpt2", "--run", "bare")
    call("export", "--run", "bare", "--precision", "int8")
    said = capsys.readouterr()
    assert "was not measured: this model came without a tokenizer" in said.out and said.out.count("\n") == 3
    call("generate", "--run", "bare", "--prompt", "12 " * 5000, "--tokens", "2", "--json")
    assert set(json.loads(capsys.readouterr().out)["prompt"].split()) == {"12"}
