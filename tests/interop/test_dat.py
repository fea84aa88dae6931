"""Folders of demo-gpt-java: read in every kind of their layout, refused where picogpt has no such model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from picogpt.config import ModelConfig
from picogpt.errors import UserError
from picogpt.interop.dat import read_dat
from tests.support.datfolders import GPT2, NEO, arrays_of, bits, exact, properties, save
from tests.support.models import lively_arrays


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as told:
        read_dat(folder)
    assert "\n" not in str(told.value) and str(told.value).startswith(str(folder))
    return str(told.value)


# Reading


@pytest.mark.parametrize("config", [GPT2, NEO, replace(GPT2, bias=False)], ids=["gpt2", "neo", "no biases"])
@pytest.mark.parametrize("kind", [">f", "<f", ">e", "<e", ">B", "<B"])
@pytest.mark.parametrize("by_column", [True, False])
def test_a_folder_is_the_model_it_was_made_of(tmp_path: Path, config: ModelConfig, kind: str, by_column: bool) -> None:
    arrays = exact(config, kind[1])
    found = read_dat(save(tmp_path, config, arrays, kind, by_column))
    assert (found.family, found.end_of_text) == ("gpt_neo" if config == NEO else "gpt2", config.vocab_size - 1)
    assert found.model == config
    assert bits(arrays_of(found)) == bits(arrays)


def test_nothing_is_read_before_it_is_wanted(tmp_path: Path) -> None:
    found = read_dat(save(tmp_path, NEO, lively_arrays(NEO)))
    storages = [piece.storage for pieces in found.weights.values() for piece in pieces]
    assert all(storage.open()[1] is not None for storage in storages)
    assert len(found.weights["h.0.attn.c_attn.weight"]) == 3


def test_the_weights_may_lie_beside_the_properties(tmp_path: Path) -> None:
    assert arrays_of(read_dat(save(tmp_path, GPT2, lively_arrays(GPT2), parameters="."))).keys()


def test_storages_of_pytorch_are_found_by_their_numbers(tmp_path: Path) -> None:
    """As the program's map of GPT-Neo names them: little-endian, by columns, in any case."""
    arrays = lively_arrays(NEO)
    save(tmp_path, NEO, arrays, "<f")
    lines, root = properties(NEO, byte_order="little_endian").upper(), tmp_path / "parameters"
    for number, path in enumerate(sorted(root.rglob("*.dat")), 71959168):
        lines += f"FILE.{path.relative_to(root).with_suffix('').as_posix().upper()} = {number}\n"
        path.rename(root / str(number))
    (tmp_path / "model.properties").write_text(lines, encoding="utf-8")
    found = read_dat(tmp_path)
    assert found.model == NEO and bits(arrays_of(found)) == bits(arrays)


def test_a_name_in_the_map_may_have_been_written_in_capitals(tmp_path: Path) -> None:
    save(tmp_path, GPT2, lively_arrays(GPT2), **{"file.input/wte": "Input/WTE.dat"})
    assert "wte.weight" in read_dat(tmp_path).weights


@pytest.mark.parametrize("sizes", [(1,), (64, 64), (130, 3, 200)])
def test_files_in_parts_are_joined(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """Also where one ends in the middle of a number."""
    arrays = lively_arrays(GPT2)
    save(tmp_path, GPT2, arrays)
    for name in ("input/wte", "decoder2/att.key.w", "decoder1/mlp.layer1.w"):
        path = tmp_path / "parameters" / f"{name}.dat"
        whole, begin = path.read_bytes(), 0
        for number, size in enumerate((*sizes, len(whole)), 1):
            path.with_name(f"{path.name}.part{number}").write_bytes(whole[begin : begin + size])
            begin += size
        path.unlink()
    found = read_dat(tmp_path)
    assert bits(arrays_of(found)) == bits(arrays)
    last = tmp_path / "parameters" / f"input/wte.dat.part{len(sizes) + 1}"
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"wte.dat.part1 cannot be read \(its . parts are too short\)"):
        found.weights["wte.weight"][0].read()
    assert "wte.dat.part1 has 351 bytes, not the 352 of its 88 numbers" in refused(tmp_path)
    (tmp_path / "parameters" / "input/wte.dat.part1").unlink()
    assert "missing: wte.weight)" in refused(tmp_path)


def test_a_part_alone_is_mapped(tmp_path: Path) -> None:
    path = save(tmp_path, GPT2, lively_arrays(GPT2)) / "parameters" / "input" / "wte.dat"
    path.rename(path.with_name("wte.dat.part1"))
    assert read_dat(tmp_path).weights["wte.weight"][0].storage.open()[1] is not None


@pytest.mark.parametrize(
    ("spans", "pattern"),
    [
        (["global"] * 4, ("global",)),
        (["local"] * 3, ("local",)),
        (["global", "local", "global"], ("global", "local")),
        (["global", "global", "local"], ("global", "global", "local")),
        (["global", "global", "local", "global"], ("global", "global", "local")),
        (["local"], ("local",)),
    ],
)
def test_the_pattern_of_the_spans_is_the_shortest(tmp_path: Path, spans: list[str], pattern: tuple[Any, ...]) -> None:
    config = replace(GPT2, n_layer=len(spans), layer_pattern=pattern, local_window=3 if "local" in spans else 256)
    said = {f"attention.type.{i}": span for i, span in enumerate(spans, 1)}
    found = read_dat(save(tmp_path, config, lively_arrays(config), **said))
    assert found.model == config and found.family == ("gpt_neo" if "local" in spans else "gpt2")


def test_the_oldest_properties_say_less(tmp_path: Path) -> None:
    """Those of the first GPT-2 know no other position embedding or order of the norms, and no end-of-text."""
    said = {"position.embedding": None, "pre.normalization": None, "end.of.text.token": -1, "data.type": None}
    found = read_dat(save(tmp_path, GPT2, lively_arrays(GPT2), **said))
    assert found.model == GPT2 and found.end_of_text is None


@pytest.mark.parametrize(
    ("dividend", "scale"),
    [("1", "none"), ("1.0f", "none"), ("2", "head"), ("2.82843", "width"), ("2.8284271d", "width")],
)
def test_the_dividend_is_a_scale(tmp_path: Path, dividend: str, scale: Any) -> None:
    config = replace(GPT2, attention_scale=scale)
    assert read_dat(save(tmp_path, config, lively_arrays(config), attention_dividend=dividend)).model == config


REFUSED = {
    "position.embedding = ALIBI": "picogpt reads no model whose position.embedding is 'ALIBI': only learned",
    "position.encoder = ROPE": "position.encoder is 'ROPE': only learned",
    "pre.normalization = false": "pre.normalization is 'false': only true",
    "input.normalization = true": "input.normalization is 'true': only false",
    "merged.qkv = true": "merged.qkv is 'true': only false",
    "epsilon = 1e-6f": "epsilon is 1e-06: only 1e-05",
    "epsilon = small": "epsilon must be a number, not 'small'",
    "epsilon = 1e-5x": "epsilon must be a number",
    "feedforward.size = 31": "feedforward.size is '31': only 4 * hidden.size",
    "attention.dividend = 3": "attention.dividend is 3.0: only 1, or the root of the size of a head (2) or of",
    "attention.dividend = nan": "attention.dividend must be a number",
    "attention.type.2 = none": "attention.type.2 must be global or local, not 'none'",
    "decoder.count = 4": "there is no attention.type.4",
    "decoder.count = 0": "decoder.count is 0: picogpt reads no model without decoders",
    "decoder.count = 99999999": "n_layer must be at most 1,024",
    "decoder.count = -1": "n_layer must not be negative",
    "hidden.size = 7": "n_embd (7) must be a multiple of n_head (2)",
    "hidden.size = 1_0": "hidden.size must be a whole number, not '1_0'",
    "token.count = ": "token.count must be a whole number, not ''",
    "token.count = 99999999999999999999": "token.count must be a whole number",
    "max.length = 0": "context_len must be at least 1",
    "end.of.text.token = 11": "end.of.text.token must be a token, not 11",
    "data.type = INT8": "data.type must be float32 or float16 or bfloat16, not 'int8'",
    "byte.order = MIDDLE": "byte.order must be big_endian or little_endian, not 'middle'",
    "weights.transposed = yes": "weights.transposed must be false or true, not 'yes'",
    "attention.type.1 = local": "there is no attention.local.size",
    "file.decoder2/att.key.b = <null>": "decoder2/att.key.b is <null> and decoder1/att.query.b is not: picogpt",
    "file.decoder1/mlp.layer2.b = <NULL>": "decoder1/mlp.layer2.b is <null> and decoder1/att.proj.b is not",
    "file.decoder1/att.norm.w = <null>": "(missing: h.0.ln_1.weight)",
    "file.input/wte = <null>": "(missing: wte.weight)",
    "file.input/wpe = nowhere": "(missing: wpe.weight)",
    "file.input/norm.w = 5": "(unexpected: input/norm.w)",
    "file.decoder4/att.norm.w = 5": "(unexpected: decoder4/att.norm.w)",
    "file.input/wpe = input/wte.dat": "wte.dat has 352 bytes, not the 160 of its 40 numbers",
    "file.input/wpe = ../../model/../x": "names a file outside of it: '../../model/../x'",
    "file.input/wpe = /etc/hostname": "names a file outside of it",
    "file.input/wpe = input/../../../x": "names a file outside of it",
    "file.input/wpe = input": "(missing: wpe.weight)",
    "file.input/wpe = a\0b": "has no file 'a\\x00b' (",
    f"file.input/wpe = {'x' * 5000}": "has no file 'xxx",
    "no equals sign": "model.properties has no `name = value` in line ",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_picogpt_has_not_is_refused(tmp_path: Path, line: str) -> None:
    path = save(tmp_path / "model", GPT2, lively_arrays(GPT2), attention_local_size=None) / "model.properties"
    path.write_text(f"{path.read_text(encoding='utf-8')}{line}\n", encoding="utf-8")
    told = refused(tmp_path / "model")
    assert REFUSED[line] in told and len(told) < 400


@pytest.mark.parametrize("name", ["token.count", "max.length", "hidden.size", "epsilon", "attention.dividend"])
def test_what_is_not_said_is_named(tmp_path: Path, name: str) -> None:
    assert f"there is no {name}" in refused(save(tmp_path, GPT2, lively_arrays(GPT2), **{name: None}))


def test_a_link_leads_nowhere_else(tmp_path: Path) -> None:
    wte = save(tmp_path / "model", GPT2, lively_arrays(GPT2)) / "parameters" / "input" / "wte.dat"
    wte.rename(tmp_path / "elsewhere")
    wte.symlink_to(tmp_path / "elsewhere")
    assert "names a file outside of it: 'input/wte.dat'" in refused(tmp_path / "model")
    wte.unlink()
    wte.symlink_to(wte)
    assert "wte.dat" in refused(tmp_path / "model")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "model.properties cannot be read: No such file"),
        (b"\xff\xfe", "is not a text"),
        (b"# " + bytes(5 << 20), "is too large"),
        (b"", "there is no epsilon"),
    ],
)
def test_what_is_no_such_folder(tmp_path: Path, text: bytes | None, reason: str) -> None:
    if text is not None:
        (tmp_path / "model.properties").write_bytes(text)
    assert reason in refused(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed_properties_are_refused_or_a_model(tmp_path: Path, data: st.DataObject) -> None:
    path = save(tmp_path, GPT2, lively_arrays(GPT2)) / "model.properties"
    lines = path.read_text(encoding="utf-8").splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(lines) - 1))
        values = (
            st.text(max_size=9) | st.integers().map(str) | st.sampled_from(["<null>", "true", "local", "../x", "9e9"])
        )
        lines[where] = data.draw(st.text(max_size=9) | st.just(lines[where].partition("=")[0] + "= ")) + data.draw(
            values
        )
    path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    try:
        arrays_of(read_dat(tmp_path))
    except UserError as told:
        assert "\n" not in str(told)
