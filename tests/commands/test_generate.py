"""`picogpt generate`: prompts from everywhere, text in every form."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import picogpt
from picogpt.commands import generate
from picogpt.config import GenerateConfig
from picogpt.inference.generator import Streams
from picogpt.runs import checkpoints
from picogpt.tokenizers.characters import PicoTokenizer
from tests.support.commands import TINY, TRAIN, is_one_line, shell
from tests.support.running import status_of, typed


def generated(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[str, str]:
    assert status_of("generate", "--tokens", "20", *argv) == 0
    printed = capsys.readouterr()
    return printed.out, printed.err


def test_the_seed_decides(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hot = ("--prompt", "she", "--temperature", "2")
    first, again, other = (generated(capsys, *hot, "--seed", seed)[0] for seed in ("1", "1", "2"))
    assert first == again != other
    assert first.startswith("she") and first.endswith("\n")
    greedy = [generated(capsys, "--prompt", "she", "--temperature", "0")[0] for _ in range(2)]
    assert greedy[0] == greedy[1]


def test_an_empty_prompt(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, error = generated(capsys, "--prompt", "", "--seed", "1")
    assert len(out) >= 21 and not error


def test_an_emoji_prompt_is_shown_and_noticed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, error = generated(capsys, "--prompt", "the 🌞", "--seed", "1")
    assert out.startswith("the <?>")
    assert is_one_line(error) and "not in this model's alphabet: '🌞', read as '<?>'" in error


def test_a_pipe_is_one_prompt(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("she\nsea\n\nLast\n"))
    out, error = generated(capsys, "--temperature", "0", "--tokens", "0")
    assert (out, error) == ("she\nsea\n\nLast\n", "")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert status_of("generate") == 2
    assert capsys.readouterr().err == "picogpt: the standard input is empty: give a prompt with --prompt\n"


def test_a_prompt_from_a_real_pipe(home: Path) -> None:
    status, out, error = shell(home, "inference.py", "--temperature", "0", "--tokens", "3", text="she\nsea ☀\n")
    assert status == 0 and is_one_line(error)
    assert out.startswith("she\nsea <?>")


def test_prompts_that_are_no_text_do_not_trace_back(home: Path) -> None:
    """Strict UTF-8 is what Python expects of a pipe under most locales."""
    argv = ["inference.py", "--tokens", "3"]
    status, _, error = shell(home, *argv, text=b"she \xff\xfe\n", PYTHONIOENCODING="utf-8:strict")
    assert "Traceback" not in error and status in (0, 2)


def test_a_terminal_that_cannot_show_it(home: Path) -> None:
    (home / "cafe.txt").write_text("the caf\u00e9 by the sea.\n" * 60, encoding="utf-8")
    assert status_of("train", *TINY, "--data", "cafe.txt", "--run", "cafe", "--tokenizer", "chars") == 0
    argv = ["inference.py", "--run", "cafe", "--tokens", "3", "--prompt", "caf\u00e9"]
    status, out, error = shell(home, *argv, PYTHONIOENCODING="ascii")
    assert status == 0 and out.startswith("caf?") and "Traceback" not in error


def test_the_newest_run_by_default(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*TRAIN, "--run", "later", "--tokenizer", "chars") == 0
    capsys.readouterr()
    _, error = generated(capsys, "--prompt", "XX")
    assert "'X'" in error  # only the characters of the later run have no capitals


def test_the_prompt_keeps_its_case_and_special_names(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, error = generated(capsys, "--prompt", "She <Q>Sells</Q>", "--tokens", "0")
    assert (out, error) == ("She <Q>Sells</Q>\n", "")


def test_what_stops_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, _ = generated(capsys, "--prompt", "she", "--seed", "3", "--temperature", "1")
    stop = whole[8:10]
    out, _ = generated(capsys, "--prompt", "she", "--seed", "3", "--temperature", "1", "--stop", stop)
    assert out == "she" + whole[3:].partition(stop)[0] + "\n"


def test_samples_side_by_side(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hot = ("--prompt", "she", "--seed", "3", "--temperature", "2")
    out, _ = generated(capsys, *hot, "--samples", "3")
    marks = [f"--- {i} of 3 ---\nshe" for i in (1, 2, 3)]
    assert [out.count(mark) for mark in marks] == [1, 1, 1] and out.startswith(marks[0])
    alone, _ = generated(capsys, *hot)
    assert out.startswith("--- 1 of 3 ---\n" + alone)


@pytest.mark.parametrize("samples", [1, 2])
def test_json(samples: int, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hot = ("--prompt", "The \u2600", "--seed", "3", "--temperature", "2", "--samples", str(samples))
    out, error = generated(capsys, *hot, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == samples and is_one_line(error)
    for fields in found:
        assert fields["prompt"] == "The <?>" and fields["tokens"] == 20 and fields["engine"] == "onnx fp32"
        assert fields["tokens_per_second"] > 0 and fields["first_token_ms"] > 0
    if samples == 1:
        assert generated(capsys, *hot)[0] == "The <?>" + found[0]["text"] + "\n"


def test_json_of_little(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tokens in ("0", "1"):
        fields = json.loads(generated(capsys, "--prompt", "she", "--json", "--tokens", tokens)[0])
        assert fields["tokens"] == int(tokens) and fields["tokens_per_second"] is None
        assert (fields["first_token_ms"] is None) == (tokens == "0")


@pytest.mark.parametrize("engine", ["onnx", "numpy"])
def test_the_engines_write_the_same(engine: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    greedy = ("--prompt", "she", "--temperature", "0", "--tokens", "60")
    expected = picogpt.load("pico-easy").generate("she", temperature=0, tokens=60)
    assert generated(capsys, *greedy, "--engine", engine)[0] == "she" + expected + "\n"
    for context in ("window", "original"):
        expected = picogpt.load("pico-easy").generate("she", temperature=0, tokens=60, context=context)
        assert generated(capsys, *greedy, "--engine", engine, "--context", context)[0] == "she" + expected + "\n"


def test_a_megabyte_on_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("sea shells " * 100_000))
    out, error = generated(capsys, "--tokens", "3", "--temperature", "0")
    assert is_one_line(error) and "1,100,000 characters: the last 12,800 are read" in error
    assert out.startswith(("sea shells " * 2000)[-12_800:]) and len(out) == 12_800 + 3 + 1


# Chat, and conversations on a terminal


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())


def test_a_plus_goes_on_from_the_same_text(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: None
) -> None:
    whole = picogpt.load("pico-easy").generate("she sells", temperature=0, tokens=40)
    typed(monkeypatch, "she", "+ sells", "+", "she sells")
    out, error = generated(capsys, "--temperature", "0")
    first = picogpt.load("pico-easy").generate("she", temperature=0, tokens=20)
    second = picogpt.load("pico-easy").generate("she" + first + " sells", temperature=0, tokens=40)
    assert out == f"she{first}\n{second[:20]}\n{second[20:]}\nshe sells{whole[:20]}\n\n"
    assert "Ctrl-D" in error


def test_ctrl_c_ends_a_text_and_not_the_conversation(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: None
) -> None:
    original, waiting = Streams.write, [True]

    def interrupted(self: Streams, config: GenerateConfig) -> Iterator[list[str]]:
        for i, pieces in enumerate(original(self, config)):
            if i == 5 and waiting and waiting.pop():  # before the sixth piece is shown
                raise KeyboardInterrupt
            yield pieces

    monkeypatch.setattr(Streams, "write", interrupted)
    typed(monkeypatch, "she", "sea")
    out, _ = generated(capsys, "--temperature", "0")
    five = picogpt.load("pico-easy").generate("she", temperature=0, tokens=5)
    assert out.startswith(f"she{five}\nsea") and len(out) == 3 + 5 + 1 + 3 + 20 + 2


def test_chat(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = Streams.read_parts
    monkeypatch.setattr(
        Streams, "read_parts", lambda self, parts: (seen.append("".join(parts)), original(self, parts))[1]
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("who sells?\nwhere \u2600\n"))
    out, error = generated(capsys, "--chat", "--tokens", "5", "--seed", "1")
    assert seen == ["<Q>who sells?</Q>\n<A>", "<Q>where \u2600</Q>\n<A>"]
    assert "<Q>who" not in out and is_one_line(error)


def test_chat_ends_at_the_end_of_the_answer(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Path("logs/pico-easy/checkpoints/00000004")
    found = checkpoints.load(place)
    config, special = found.meta.config.model, PicoTokenizer().special
    table = found.model["wte.weight"]
    table[:], table[special["</A>"]] = 0.0, 1.0  # every hidden state is nearest to </A>, or farthest from it
    found.model["ln_f.weight"][:], found.model["ln_f.bias"][:] = 0.0, 1.0
    checkpoints.save(Path("logs/parrot"), 4, found.model, {}, found.meta)
    assert config.tied_head
    out, _ = generated(capsys, "--run", "parrot", "--prompt", "who?", "--chat", "--temperature", "0")
    assert out == "\n"
    out, _ = generated(capsys, "--run", "parrot", "--prompt", "who?", "--temperature", "0", "--tokens", "2")
    assert out == "who?</A></A>\n"


def test_a_plus_needs_one_text(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: None
) -> None:
    typed(monkeypatch, "she", "+ sells")
    out, error = generated(capsys, "--samples", "2", "--seed", "1")
    assert out.count("--- 1 of 2 ---") == 1 and "+ continues one text" in error


def test_a_chat_with_an_alphabet_that_cannot_spell_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*TRAIN, "--run", "letters", "--tokenizer", "chars") == 0
    capsys.readouterr()
    _, error = generated(capsys, "--run", "letters", "--chat", "--prompt", "she")
    assert is_one_line(error) and "'<Q>/A', read as ' '" in error


# What cannot be


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--engine", "numpy", "--precision", "int8"], "--precision int8 is for the engine onnx"),
        (["--samples", "0"], "samples must be at least 1, not 0"),
        (["--overlap", "16"], "--overlap 16 leaves no room in a window of 16: at most 15"),
        (["--chat", "--overlap", "99"], "leaves no room"),
        (["--overlap", "-1"], "overlap must not be negative"),
        (["--context", "forever"], "invalid choice 'forever' for argument '--context'"),
        (["--precision", "fp64"], "invalid choice 'fp64'"),
        (["--engine", "torch"], "invalid choice 'torch' for argument '--engine'"),
    ],
)
def test_one_line_for_what_cannot_be(
    argv: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("generate", "--prompt", "she", *argv) == 2
    error = capsys.readouterr().err
    assert is_one_line(error) and message in error


def test_rolling_needs_a_slot(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*TRAIN, "--run", "plain", "--no-context-slot") == 0
    capsys.readouterr()
    assert status_of("generate", "--run", "plain", "--prompt", "she", "--context", "rolling") == 2
    error = capsys.readouterr().err
    assert is_one_line(error) and "no context slot" in error
    assert len(generated(capsys, "--run", "plain", "--prompt", "she")[0]) >= 24


def test_a_terminal_is_given_nothing_that_it_would_obey(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal, shown in ((True, "a\n\tb\\x1b[2J\\x07 é\n"), (False, "a\n\tb\x1b[2J\x07 é\n")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        generate._print_text("a\n\tb\x1b[2J\x07 é\n")
        assert capsys.readouterr().out == shown
