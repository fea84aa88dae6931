"""What writing costs, against sums made in another way."""

from dataclasses import replace

import pytest

from picogpt.config import ModelConfig
from picogpt.config.presets import PRESETS, preset
from picogpt.inference.onnx.quantize import weight_bytes
from picogpt.model.flops import cache_bytes, read_flops, text_flops, write_flops
from picogpt.model.parameters import parameter_count

GPT2 = preset("gpt2").model
NEO = ModelConfig(2048, 50257, 12, 12, 768, qkv_bias=False, layer_pattern=("global", "local"), context_slot=False)


def test_gpt2() -> None:
    blocks, head = 2 * 12 * 12 * 768**2, 2 * 50257 * 768
    assert read_flops(GPT2, 0) == blocks + 12 * 4 * 768
    assert read_flops(GPT2, 1023) == blocks + 12 * 4 * 768 * 1024
    assert write_flops(GPT2, 9) - read_flops(GPT2, 9) == head
    assert text_flops(GPT2, 50, 100) == 149 * blocks + 100 * head + 12 * 4 * 768 * sum(range(1, 150))
    assert cache_bytes(GPT2) == 12 * 2 * 1024 * 768 * 4


def test_local_blocks_see_and_keep_their_window() -> None:
    assert read_flops(NEO, 1000) - read_flops(NEO, 255) == 6 * 4 * 768 * (1000 - 255)
    assert read_flops(NEO, 255) - read_flops(NEO, 0) == 12 * 4 * 768 * 255
    assert cache_bytes(NEO) == 6 * 2 * (2048 + 2 * 256) * 768 * 4
    assert cache_bytes(replace(NEO, context_len=100)) == 12 * 2 * 100 * 768 * 4


@pytest.mark.parametrize("name", PRESETS)
def test_weights(name: str) -> None:
    model = preset(name).model
    total = parameter_count(model)[0]
    assert weight_bytes(model, 32) == 4 * total and weight_bytes(model, 16) == 2 * total
    if model.n_layer:  # a bigram's table is looked up, not multiplied with
        assert weight_bytes(model, 4) < weight_bytes(model, 8) < weight_bytes(model, 32)


def test_weights_of_few_bits() -> None:
    small, large = (ModelConfig(8, V, 1, 1, 48, context_slot=False) for V in (40, 300))
    matrices = {(3 * 48, 48), (48, 48), (4 * 48, 48), (48, 4 * 48)}  # 48 weights are two groups of 32
    groups = sum(rows * -(-columns // 32) for rows, columns in matrices)
    for model, head in ((small, 0), (large, 300 * 2)):  # the table stays in any case, for the tokens that are read
        others = parameter_count(model)[0] - sum(rows * columns for rows, columns in matrices)
        assert weight_bytes(model, 8) == (groups + head) * 36 + 4 * others
        assert weight_bytes(model, 4) == (groups + head) * 20 + 4 * others


def test_a_bigram_looks_up() -> None:
    bigram = preset("bigram").model
    assert write_flops(bigram, 0) == text_flops(bigram, 50, 100) == cache_bytes(bigram) == 0
