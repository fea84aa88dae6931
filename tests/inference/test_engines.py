"""A run's ONNX file: made when it is first needed, made anew when the run has learnt more, and never in the way."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import picogpt
from picogpt.inference import engines
from picogpt.inference.onnx import export
from picogpt.inference.onnx.session import OnnxModel, why_unavailable
from picogpt.runs.layout import ONNX, onnx_path
from picogpt.system import hardware
from tests.support.commands import TRAIN, is_one_line
from tests.support.running import status_of

FILE = Path("logs/pico-easy") / ONNX


def written(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[str, str]:
    assert status_of("generate", "--prompt", "she", "--temperature", "0", "--tokens", "9", *argv) == 0
    printed = capsys.readouterr()
    return printed.out, printed.err


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The precision of every file that is written."""
    seen: list[str] = []
    original = export.export

    def noted(path: Path, config: object, arrays: object, tokenizer: object, precision: str, *rest: object) -> None:
        seen.append(precision)
        original(path, config, arrays, tokenizer, precision, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "export", noted)
    yield seen


def test_it_is_made_once(home: Path, capsys: pytest.CaptureFixture[str], exports: list[str]) -> None:
    first, again = written(capsys), written(capsys)
    assert first == again and first[1] == "" and exports == ["fp32"] and FILE.is_file()


def test_it_is_made_again_when_the_run_has_learnt_more(
    home: Path, capsys: pytest.CaptureFixture[str], exports: list[str]
) -> None:
    before = written(capsys)[0]
    assert status_of(*TRAIN, "--steps", "60") == 0
    capsys.readouterr()
    after = written(capsys)[0]
    assert exports == ["fp32", "fp32"] and after != before
    assert after == "she" + picogpt.load("pico-easy").generate("she", temperature=0, tokens=9) + "\n"


def test_a_precision_stays_until_another_is_asked_for(
    home: Path, capsys: pytest.CaptureFixture[str], exports: list[str]
) -> None:
    for options in ([], ["--precision", "int8"], [], ["--precision", "int8"], ["--precision", "fp32"], []):
        written(capsys, *options)
    assert exports == ["fp32", "int8", "fp32"]


def test_a_portable_file_stays_portable(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = written(capsys)[0]
    assert status_of("export", "--run", "pico-easy", "--portable") == 0
    assert "fp32, portable" in capsys.readouterr().out
    assert written(capsys)[0] == expected
    written(capsys, "--precision", "int8")
    assert OnnxModel(FILE, 1).portable


@pytest.mark.parametrize("damage", [b"", b"hello", None])
def test_a_damaged_file_is_made_again(damage: bytes | None, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = written(capsys)[0]
    FILE.write_bytes(FILE.read_bytes()[:-2000] if damage is None else damage)
    out, error = written(capsys)
    assert out == expected and is_one_line(error) and "exporting it again" in error
    assert written(capsys) == (expected, "")


def test_a_disk_that_refuses_leaves_numpy(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    expected = written(capsys, "--engine", "numpy")[0]
    monkeypatch.setattr(export, "replace", full)
    out, error = written(capsys)
    assert out == expected and is_one_line(error) and "No space left on device" in error
    assert "generating with NumPy" in error and [path.name for path in FILE.parent.glob("*onnx*")] == []


def test_a_processor_that_cannot_leaves_numpy(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = written(capsys, "--engine", "numpy")
    monkeypatch.setattr(engines, "why_unavailable", lambda: "this processor has no AVX, which onnxruntime needs")
    out, error = written(capsys)
    assert out == expected[0] and expected[1] == ""
    assert error == "picogpt: this processor has no AVX, which onnxruntime needs; generating with NumPy\n"


def test_int8_where_memory_is_short(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, exports: list[str]
) -> None:
    monkeypatch.setattr(hardware, "available_memory", lambda: 1000)
    error = written(capsys)[1]
    assert exports == ["int8"] and is_one_line(error) and "int8" in error


def test_int8_where_weights_are_many(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, exports: list[str]
) -> None:
    """However much memory there is, and however few bytes the checkpoint takes."""
    monkeypatch.setattr(hardware, "available_memory", lambda: 10**12)
    monkeypatch.setattr(engines, "parameter_count", lambda config: (1_315_575_808, 0))
    error = written(capsys)[1]
    assert exports == ["int8"] and "int8: 5.3 GB of weights" in error and error.count("\n") == 2
    written(capsys, "--precision", "fp32")
    assert exports == ["int8", "fp32"]
    monkeypatch.setattr(engines, "parameter_count", lambda config: (500_000_000, 0))
    FILE.unlink()
    assert "int8" not in written(capsys)[1] and exports[2:] == ["fp32"]


def test_where_the_file_is(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Path("logs/pico-easy/checkpoints/00000004")
    assert onnx_path(place) == FILE
    shutil.copytree(place, "elsewhere")
    written(capsys, "--run", "elsewhere")
    assert Path("elsewhere", ONNX).is_file() and not FILE.exists()


def test_an_onnx_file_is_a_run_too(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    expected = written(capsys)[0]
    alone = tmp_path / "carried away.onnx"
    shutil.move(FILE, alone)
    shutil.rmtree("logs")
    assert written(capsys, "--run", str(alone)) == (expected, "")
    for options, message in (
        (("--engine", "numpy"), "--engine numpy needs a run"),
        (("--precision", "int8"), "is fp32: export the run again for int8"),
    ):
        assert status_of("generate", "--run", str(alone), "--prompt", "a", *options) == 2
        error = capsys.readouterr().err
        assert is_one_line(error) and message in error
    assert status_of("generate", "--run", "nothing.onnx", "--prompt", "a") == 2
    assert is_one_line(capsys.readouterr().err)


def test_a_checkpoint_that_is_removed_meanwhile(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path("logs/pico-easy/checkpoints/00000004")
    original, waiting = why_unavailable, [True]

    def late() -> str:
        if waiting and waiting.pop():
            place.rename(place.with_name("00000006"))
        return original()

    monkeypatch.setattr(engines, "why_unavailable", late)
    assert written(capsys)[1] == "" and not waiting


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_package_that_cannot_be_loaded(
    missing: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = written(capsys, "--engine", "numpy")[0]
    for name in (
        missing,
        "picogpt.inference.onnx.export",
        "picogpt.inference.onnx.fused",
        "picogpt.inference.onnx.graph",
    ):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    out, error = written(capsys)
    assert out == expected and is_one_line(error) and missing in error and "generating with NumPy" in error
    status, said = status_of("export", "--precision", "int8"), capsys.readouterr()
    if missing == "onnx":
        assert status == 2 and is_one_line(said.err)
    else:
        assert status == 0 and "was not measured: onnxruntime cannot be loaded" in said.out


def test_threads_are_the_cores_that_are_free(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []
    monkeypatch.setattr(engines, "OnnxModel", lambda path, threads, spin: asked.append((threads, spin)))
    monkeypatch.setattr(hardware, "physical_cores", lambda: 2)
    for free in (2.0, 1.8, 1.2, 0.3, -0.5, 7.0):
        monkeypatch.setattr(hardware, "free_cores", lambda free=free: free)
        engines.open_onnx(FILE)
    assert asked == [(2, True), (2, True), (1, False), (1, False), (1, False), (2, True)]


# What an export says of itself


def test_weights_beside_the_file_count(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_INSIDE", 1000)
    assert status_of("export") == 0
    (weights,) = FILE.parent.glob("model.onnx.*.weights")
    size = (weights.stat().st_size + FILE.stat().st_size) / 1e6
    assert f"{size:,.1f} MB in 2 files, {weights.name} beside it" in capsys.readouterr().out
