"""Make a log as PicoGPT wrote it, tiny: weights of PyTorch's in the middle of a pickle, and what its model computes;
and one of PyTorch's own files in both its kinds.

Run by hand where PyTorch is installed: `python tests/golden/make_interop.py`. The suite only reads the files.
"""

import json
import pickle
from collections import OrderedDict
from pathlib import Path

import torch
from torch.nn import functional

HERE = Path(__file__).parent
W, V, L, H, C = 6, 88, 2, 2, 8  # window, vocabulary, layers, heads, width


def weights() -> "OrderedDict[str, torch.Tensor]":
    """By the names of nanoGPT's modules, whose head is the token table itself."""
    made: OrderedDict[str, torch.Tensor] = OrderedDict()
    for name, shape in (("wte", (V, C)), ("wpe", (W + 1, C))):
        made[f"transformer.{name}.weight"] = torch.randn(shape)
    for layer in range(L):
        h = f"transformer.h.{layer}"
        for name in ("ln_1", "ln_2"):
            made[f"{h}.{name}.weight"], made[f"{h}.{name}.bias"] = 1 + torch.randn(C) / 4, torch.randn(C) / 4
        shapes = {"attn.c_attn": (3 * C, C), "attn.c_proj": (C, C), "mlp.c_fc": (4 * C, C), "mlp.c_proj": (C, 4 * C)}
        for name, shape in shapes.items():
            made[f"{h}.{name}.weight"], made[f"{h}.{name}.bias"] = torch.randn(shape) / 3, torch.randn(shape[0]) / 4
    made["transformer.ln_f.weight"], made["transformer.ln_f.bias"] = 1 + torch.randn(C) / 4, torch.randn(C) / 4
    made["lm_head.weight"] = made["transformer.wte.weight"]
    return made


def logits(w: "OrderedDict[str, torch.Tensor]", ids: torch.Tensor) -> torch.Tensor:
    """Of one window with an empty context slot, whose own logits are dropped: (W,) -> (W, V)."""
    x = torch.cat([torch.zeros(1, C), w["transformer.wte.weight"][ids]]) + w["transformer.wpe.weight"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (C,), w[f"transformer.{name}.weight"], w[f"transformer.{name}.bias"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"transformer.{name}.weight"].T + w[f"transformer.{name}.bias"]

    for layer in range(L):
        h = f"h.{layer}"
        q, k, v = (part.view(-1, H, C // H).transpose(0, 1) for part in linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn").split(C, 1))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(y.transpose(0, 1).reshape(-1, C), f"{h}.attn.c_proj")
        x = x + linear(functional.gelu(linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")), f"{h}.mlp.c_proj")
    return (norm(x, "ln_f") @ w["lm_head.weight"].T)[1:]


def main() -> None:
    torch.manual_seed(1)
    state, ids = weights(), torch.randint(V, (W,))
    parameters = [torch.nn.Parameter(value.clone()) for value in state.values()][:4]
    optimizer = torch.optim.AdamW([{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.0}], betas=(0.9, 0.95))
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape)
    optimizer.step()
    losses = {"train": [3.0, 2.5, 2.25], "val": [3.125, 2.75, 2.5]}
    log = {"best_weight": state, "best_loss": 2.5, "losses": losses, "optimizer": optimizer, "iter_num": 1500}
    (HERE / "picogpt_log.pkl").write_bytes(pickle.dumps(log))
    matrix = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": matrix, "transposed": matrix.T, "row": matrix[1], "half": matrix.half(), "bfloat16": matrix.bfloat16()}
    torch.save(tensors, HERE / "torch_new.bin")
    torch.save(tensors, HERE / "torch_old.bin", _use_new_zipfile_serialization=False)
    answer = {"ids": ids.tolist(), "logits": logits(state, ids).tolist()}
    (HERE / "picogpt_log.json").write_text(json.dumps(answer) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
