"""Make a GPT-2 and a GPT-Neo as Hugging Face keeps them, tiny, with what they say of 600 tokens.

Run by hand where PyTorch and transformers are installed: `python tests/golden/make_huggingface.py`. The suite only
reads the files. The weights are large enough for every token of the window to matter; the logits are those of the same
weights in float32, float16 and bfloat16, computed in float32.
"""

import copy
import json
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM

HERE = Path(__file__).parent / "huggingface"
T, V, C, L, H = 640, 61, 16, 4, 4
SHOWN = [0, 1, 254, 255, 256, 257, 258, 400, 511, 512, 513, 599]


def main() -> None:
    torch.manual_seed(7)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=T, n_embd=C, n_layer=L, n_head=H, bos_token_id=60, eos_token_id=60))
    neo = GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=V,
            max_position_embeddings=T,
            hidden_size=C,
            num_layers=L,
            num_heads=H,
            attention_types=[[["global", "local"], L // 2]],
            window_size=256,
            bos_token_id=60,
            eos_token_id=60,
        )
    )
    ids = torch.randint(V, (1, 600))
    answers = {"ids": ids[0].tolist(), "positions": SHOWN}
    for name, model in (("gpt2", gpt2), ("gpt_neo", neo)):
        for key, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, 1.0 if "ln_" in key and key.endswith("weight") else 0.0, 0.3)
        folder = HERE / name
        folder.mkdir(parents=True, exist_ok=True)
        model.config.to_json_file(folder / "config.json")
        if name == "gpt2":
            model.save_pretrained(folder, safe_serialization=True)
            (folder / "generation_config.json").unlink()
        else:  # as EleutherAI's files are: matrices stored transposed, a head that shares the table, masks beside them
            state = {}
            for key, value in model.state_dict().items():
                turned = value.ndim == 2 and ".h." in key
                state[key] = value.T.contiguous().T if turned else value
            for layer in range(L):
                state[f"transformer.h.{layer}.attn.attention.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
                state[f"transformer.h.{layer}.attn.attention.masked_bias"] = torch.tensor(-1e9)
            state["lm_head.weight"] = state["transformer.wte.weight"]
            torch.save(state, folder / "pytorch_model.bin")
        answers[name] = {}
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            rounded = copy.deepcopy(model).to(dtype).float().eval()
            with torch.no_grad():
                logits = rounded(ids).logits[0, SHOWN]
            answers[name][str(dtype).removeprefix("torch.")] = [[round(x, 6) for x in row] for row in logits.tolist()]
    (HERE / "logits.json").write_text(json.dumps(answers) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
