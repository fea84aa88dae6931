"""`benchmarks.memory` on its tiny shape: what it prints, what it refuses, and where it fails."""

import json

import numpy as np
import pytest

from benchmarks import memory
from benchmarks.memory import RandomWeights, Stage, main, shape
from picogpt.engine.bfloat16 import is_exact
from picogpt.model.parameters import parameter_count, parameter_shapes


def test_stages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "tiny", "--precision", "int4", "--tokens", "4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["model"], result["precision"]) == ("tiny", "int4") and isinstance(result["machine"], str)
    assert [stage["name"] for stage in result["stages"]] == [
        "write the file",
        "import",
        "NumPy",
        "export",
        "load",
        "ONNX Runtime",
    ]
    assert all(0 < stage["peak"] < 1 and stage["seconds"] > 0 for stage in result["stages"])
    assert all("tokens/s" in result["stages"][stage]["note"] for stage in (2, 5))


@pytest.mark.parametrize(("peak", "status"), [(2.9, 0), (3.1, 1)])
def test_a_limit_that_is_passed(
    peak: float, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "measure", lambda args: [Stage("load", 9, 1), Stage("generate", peak, 1, 3)])
    assert main(["--model", "tiny"]) == status
    assert ("passed" in capsys.readouterr().out) is bool(status)


@pytest.mark.parametrize("argv", [["--tokens", "1"], ["--prompt-tokens", "0"], ["--prompt-tokens", "2000"]])
def test_what_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_weights_are_bfloat16_and_the_same_every_time() -> None:
    config = shape("tiny")
    made = RandomWeights(config)
    assert {name: made[name].shape for name in made} == parameter_shapes(config)
    for name in ("wte.weight", "h.1.mlp.c_fc.weight", "ln_f.weight", "h.0.ln_1.bias"):
        whole = np.asarray(made[name])
        assert is_exact(whole) and np.array_equal(whole, np.asarray(made[name]))
        assert 0.01 < whole.std() < 0.03 and abs(whole.mean() - ("ln_" in name and "weight" in name)) < 0.02


def test_the_shapes_are_gpt_neos() -> None:
    counts = {"125m": 125_198_592, "350m": 355_798_016, "1.3b": 1_315_575_808, "2.7b": 2_651_307_520}
    assert {name: parameter_count(shape(f"gpt-neo-{name}"))[0] for name in counts} == counts
