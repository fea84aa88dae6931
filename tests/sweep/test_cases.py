"""The cases that a sweep compares: from the command line, with equal budgets or their own."""

import re
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picogpt.config import ModelConfig, RunConfig, TrainConfig
from picogpt.config.presets import preset
from picogpt.errors import UserError
from picogpt.sweep.cases import exercise, varied, within

BASE = RunConfig(ModelConfig(context_len=32, n_embd=64), train=TrainConfig(steps=100, batch_size=8))


def test_every_combination_comes_and_the_first_values_are_the_base() -> None:
    cases = varied(BASE, ["n_head=4,8", "steps=5000,10000"])
    assert [case.name for case in cases] == [
        "n_head=4, steps=5000",
        "n_head=4, steps=10000",
        "n_head=8, steps=5000",
        "n_head=8, steps=10000",
    ]
    assert [(case.config.model.n_head, case.config.train.steps) for case in cases] == [
        (4, 5000),
        (4, 10_000),
        (8, 5000),
        (8, 10_000),
    ]
    assert all(re.fullmatch(r"[\w.+-]+", case.run_folder(1)) for case in cases)
    assert cases[1].config == replace(
        BASE, model=replace(BASE.model, n_head=4), train=replace(BASE.train, steps=10_000)
    )


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("learning-rate=0.001,1e-2", [0.001, 0.01]),
        ("tied_head=true,False", [True, False]),
        ("activation=gelu,relu", ["gelu", "relu"]),
        ("layer_pattern=global,global+local", [("global",), ("global", "local")]),
        ("min_lr_fraction=0,1", [0.0, 1.0]),
    ],
)
def test_values_are_of_the_kind_of_their_field(option: str, values: list[object]) -> None:
    name = option.partition("=")[0].replace("-", "_")
    found = []
    for case in varied(BASE, [option]):
        part = next(part for part in (case.config.model, case.config.data, case.config.train) if hasattr(part, name))
        found.append(getattr(part, name))
    assert found == values and [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["heads=4,8"], "is not NAME=VALUE"),
        (["n_head"], "is not NAME=VALUE"),
        (["n_head=4,"], "empty, or twice"),
        (["n_head=4,4"], "empty, or twice"),
        (["n_head=4,x"], "a whole number, not 'x'"),
        (["n_head=4,1.5"], "a whole number"),
        (["learning_rate=fast,1"], "a number, not 'fast'"),
        (["tied_head=yes,no"], "true or false"),
        (["activation=tanh,relu"], "one of relu, gelu, gelu_tanh"),
        (["n_head=4,7"], "must be a multiple of n_head"),
        (["seed=1,2"], "--seeds"),
        (["data=a,b"], "do not compare"),
        (["n_head=4,8", "n-head=2"], "given twice"),
        (["steps=100,1_00"], "are the same"),
        (["learning_rate=0.1,0.10"], "are the same"),
        ([f"steps={','.join(map(str, range(1, 100)))}", "n_head=1,2,4"], "at most: vary less"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(options: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        varied(BASE, options)
    assert "\n" not in str(error.value)


@given(st.lists(st.text(max_size=30), max_size=3))
def test_any_text_is_cases_or_one_line(options: list[str]) -> None:
    try:
        cases = varied(BASE, options)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert len({case.run_folder(1) for case in cases}) == len(cases)


@given(
    st.sampled_from([field.name for field in fields(TrainConfig) if field.name != "seed"]),
    st.lists(st.text("0123456789.e-+truefalsn", min_size=1, max_size=6), min_size=1, max_size=3),
)
def test_any_value_of_any_field_is_cases_or_one_line(name: str, values: list[str]) -> None:
    try:
        varied(BASE, [f"{name}={','.join(values)}"])
    except UserError as error:
        assert len(str(error).splitlines()) == 1


def test_equal_tokens() -> None:
    cases = within(varied(BASE, ["context_len=32,64", "batch_size=8,16"]), "tokens")
    assert [case.config.train.steps for case in cases] == [100, 50, 50, 25]
    with pytest.raises(UserError, match="do not vary them"):
        within(varied(BASE, ["steps=5,6"]), "tokens")


def test_equal_minutes() -> None:
    timed = replace(BASE, train=replace(BASE.train, minutes=2.0))
    cases = within(varied(timed, ["n_head=4,8"]), "minutes")
    assert all(case.config.train.minutes == 2 and case.config.train.steps > 10**6 for case in cases)
    with pytest.raises(UserError, match="give --minutes"):
        within(varied(BASE, ["n_head=4,8"]), "minutes")


def test_the_course_s_cases_are_the_presets_with_what_it_found() -> None:
    cases = exercise(lambda start: start)
    assert [case.config for case in cases] == [preset(f"exercise-{case.name}") for case in cases]
    first = cases[0].published
    assert first is not None and first.difference is None
    for case in cases[1:]:
        assert case.published is not None and case.published.difference is not None
        assert case.published.difference == pytest.approx(
            (case.published.val_loss / first.val_loss - 1) * 100, abs=0.005
        )
    assert cases[3].published is not None and cases[3].published.difference is not None
    assert cases[3].published.difference > 0  # eight heads were worse


def test_options_go_to_every_case_and_steps_keep_their_ratio() -> None:
    def shorter(start: RunConfig) -> RunConfig:
        return replace(start, train=replace(start.train, steps=200, batch_size=4))

    cases = exercise(shorter)
    assert [case.config.train.steps for case in cases] == [200, 400, 200, 200]
    assert {case.config.train.batch_size for case in cases} == {4}
    same = exercise(lambda start: replace(start, train=replace(start.train, steps=5000)))
    assert [case.config.train.steps for case in same] == [5000, 10_000, 5000, 5000]
    with pytest.raises(UserError, match="base and heads are the same"):
        exercise(lambda start: replace(start, model=replace(start.model, n_head=2)))
