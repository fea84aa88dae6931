"""The programs of docs/onnx.md: they write what picogpt writes, with nothing but the file and ONNX Runtime."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picogpt.config import GenerateConfig, ModelConfig
from picogpt.inference.generator import Generator
from picogpt.inference.numpy_reader import NumpyReader
from picogpt.inference.onnx.export import export
from picogpt.model.gpt import GPT
from picogpt.model.parameters import as_tensors
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.bpe import BpeTokenizer
from picogpt.tokenizers.bytes import ByteTokenizer
from picogpt.tokenizers.characters import CharTokenizer, PicoTokenizer
from tests.support.models import lively_arrays
from tests.support.paths import ROOT
from tests.support.vocabularies import small_bpe

PAGE = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
PYTHON, JAVASCRIPT = (
    re.search(rf"<!-- client\.{suffix} -->\n```\w+\n(.*?)^```", PAGE, re.S | re.M)[1]  # type: ignore[index]
    for suffix in ("py", "mjs")
)
NODE = os.environ.get("PICOGPT_TEST_NODE", "")  # a folder in which .ci/run installs onnxruntime-node
TEXT = "Der K\u00e4fer l\u00e4uft, don't 12\u00bd \u98df\u3079\u308b  \n she'll  x\u0301!"
SHAPE = ModelConfig(context_len=16, vocab_size=1, n_layer=2, n_head=2, n_embd=32)


@dataclass(frozen=True)
class Case:
    tokenizer: Tokenizer
    config: ModelConfig = SHAPE
    rolls: bool = False


PLAIN = replace(SHAPE, context_slot=False)
CASES = {
    "picogpt": Case(PicoTokenizer(), rolls=True),
    "picogpt with an empty slot": Case(PicoTokenizer()),
    "chars": Case(CharTokenizer(TEXT), PLAIN),
    "chars with marks": Case(CharTokenizer(TEXT).with_marks(), PLAIN),
    "bytes": Case(ByteTokenizer(), PLAIN),
    "bpe": Case(BpeTokenizer.from_corpus([TEXT * 20], 330), PLAIN),
    "bpe of another program": Case(small_bpe(), PLAIN),
    "bigram": Case(CharTokenizer(TEXT), replace(PLAIN, n_layer=0, n_head=1)),
}


def written(name: str, folder: Path, prompt: str) -> tuple[Path, str]:
    """Export the case as a portable file, and return what picogpt writes with it."""
    case = CASES[name]
    config = replace(case.config, vocab_size=case.tokenizer.vocab_size)
    arrays = lively_arrays(config)
    export(folder / "model.onnx", config, arrays, case.tokenizer, portable=True, rolls=case.rolls)
    model = GPT(config, as_tensors(arrays))
    generator = Generator(config, case.tokenizer, lambda batch: NumpyReader(model, batch), case.rolls)
    return folder / "model.onnx", "".join(generator.stream(prompt, GenerateConfig(tokens=50, temperature=0)))


@pytest.mark.parametrize(("name", "prompt"), [*((name, TEXT) for name in CASES), ("bytes", ""), ("bpe", "")])
def test_the_client_in_python(name: str, prompt: str, tmp_path: Path) -> None:
    path, text = written(name, tmp_path, prompt)
    (tmp_path / "client.py").write_text(PYTHON, encoding="utf-8")
    words = [sys.executable, "-W", "error", str(tmp_path / "client.py"), str(path), prompt, "50"]
    done = subprocess.run(words, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == text + "\n"


@pytest.mark.skipif(not NODE, reason="PICOGPT_TEST_NODE names no folder with onnxruntime-node, as .ci/run makes one")
@pytest.mark.parametrize("name", CASES)
def test_the_client_in_javascript(name: str, tmp_path: Path) -> None:
    path, text = written(name, tmp_path, TEXT)
    (tmp_path / "client.mjs").write_text(JAVASCRIPT, encoding="utf-8")
    done = subprocess.run(
        ["node", str(tmp_path / "client.mjs"), str(path), TEXT, "50"], cwd=NODE, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == text + "\n"


def test_the_client_in_python_is_short() -> None:
    assert len(PYTHON.splitlines()) < 80 and max(map(len, PYTHON.splitlines())) <= 120
    imported = re.findall(r"^import (\w+)", PYTHON, re.M)
    assert [name for name in imported if name not in sys.stdlib_module_names] == ["numpy", "onnxruntime"]


@given(st.text() | st.lists(st.sampled_from([*TEXT, "\x1c", "\u2028", "\u0300", "'s", "\u4e8c"])).map("".join))
def test_its_split_is_that_of_gpt2(text: str) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    program = PYTHON[PYTHON.index("suffix, run =") : PYTHON.index("def merged")]
    names: dict[str, object] = {}
    exec("import re, unicodedata\n" + program, names)
    spans = [span for _, span in ByteLevel(add_prefix_space=False).pre_tokenize_str(text)]
    assert [*names["split"](text)] == [text[start:end] for start, end in spans]  # type: ignore[operator]
