"""PicoGPT's own logs as runs of ours."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from picogpt import cli
from picogpt.config import ModelConfig
from picogpt.errors import UserError
from picogpt.inference import language_model
from picogpt.interop.picogpt_log import read_picogpt_log
from picogpt.model.gpt import GPT
from picogpt.model.parameters import as_tensors
from picogpt.model.rolling_context import sequence_logits
from picogpt.runs import checkpoints
from picogpt.runs import log as log_module
from tests.support.paths import GOLDEN as GOLDEN_FOLDER

GOLDEN = GOLDEN_FOLDER / "picogpt_log.pkl"
IMPORT = ["import", "--from", str(GOLDEN), "--run", "old", "--n-head", "2"]


def test_its_model_says_what_it_said_in_pytorch() -> None:
    log = read_picogpt_log(GOLDEN, n_head=2)
    assert log.model == ModelConfig(6, 88, 2, 2, 8, init="gpt2")
    assert (log.best_loss, log.iterations, log.train_losses, log.val_losses) == (
        2.5,
        1500,
        [3.0, 2.5, 2.25],
        [3.125, 2.75, 2.5],
    )
    answer = json.loads(GOLDEN.with_suffix(".json").read_text(encoding="utf-8"))
    logits = sequence_logits(GPT(log.model, as_tensors(log.arrays)), np.array([answer["ids"]])).data[0]
    assert np.abs(logits - np.array(answer["logits"])).max() < 1e-5


def test_the_command_makes_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(IMPORT) == 0
    assert (
        "2,520 parameters (2,464 without the position table), losses of 3 epochs, best loss 2.5"
        in capsys.readouterr().out
    )
    model = language_model.load("old")
    assert np.array_equal(
        model.logits(list(range(5))),
        sequence_logits(GPT(model.config, as_tensors(read_picogpt_log(GOLDEN, 2).arrays)), np.arange(5)[None]).data,
    )
    assert len(model.generate("he is", tokens=9, temperature=0)) >= 9
    log = log_module.read_log(tmp_path / "logs" / "old" / "log.pkl")
    assert [(e.step, e.train_loss, e.val_loss) for e in log.evaluations] == [
        (500, 3.0, 3.125),
        (1000, 2.5, 2.75),
        (1500, 2.25, 2.5),
    ]
    assert cli.main(IMPORT) == 2
    assert "there is a run old already: give another --run NAME" in capsys.readouterr().err


def test_one_can_go_on_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plots: None) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "easy.txt").write_text("she sells sea shells. " * 60, encoding="utf-8")
    tune = ["train", "--init-from", "old", "--data", "easy.txt", "--run", "tuned", "--steps", "2", "--batch-size", "4"]
    assert cli.main(IMPORT) == 0 and cli.main(tune) == 0
    found = checkpoints.latest(tmp_path / "logs" / "tuned")
    assert found is not None and found.step == 2
    old, new = read_picogpt_log(GOLDEN, 2).arrays["wte.weight"], found.model["wte.weight"]
    assert not np.array_equal(old, new) and np.abs(old - new).max() < 0.1
    assert cli.main(["train", "--data", "easy.txt", "--run", "old", "--steps", "9000"]) == 2  # it has no optimizer


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({"best_weight": {}, "best_loss": 1.0}), "no best_weight of named tensors"),
        (pickle.dumps({"losses": {"train": [], "val": []}}), "no best_weight of named tensors"),
        (pickle.dumps([]), "no best_weight of named tensors"),
        (pickle.dumps({"best_weight": {"a": 1}}), "no best_weight of named tensors"),
        (pickle.dumps(Path), "names pathlib"),
        (b"", "damaged or no file"),
        (b"\x80\x04", "damaged or no file"),
    ],
)
def test_what_is_none_of_its_logs(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "log.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as told:
        read_picogpt_log(path, 8)
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_picogpt_log(tmp_path / "none.pkl", 8)


def test_heads_that_do_not_divide_the_width_are_told() -> None:
    with pytest.raises(UserError, match="must be a multiple of n_head"):
        read_picogpt_log(GOLDEN, 3)


@pytest.mark.parametrize(("name", "other"), [(b"h.1.ln_2.bias", b"h.1.ln_9.bias"), (b"ln_f.weight", b"ln_x.weight")])
def test_missing_and_unexpected_weights_are_named(tmp_path: Path, name: bytes, other: bytes) -> None:
    path = tmp_path / "log.pkl"
    shutil.copy(GOLDEN, path)
    path.write_bytes(path.read_bytes().replace(name, other))
    with pytest.raises(UserError, match=f"missing: {name.decode()}; unexpected: {other.decode()}"):
        read_picogpt_log(path, 2)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    content = GOLDEN.read_bytes()
    for size in range(0, len(content), 997):
        (tmp_path / "log.pkl").write_bytes(content[:size])
        with pytest.raises(UserError):
            read_picogpt_log(tmp_path / "log.pkl", 2)
