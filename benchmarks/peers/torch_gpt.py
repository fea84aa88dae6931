"""The same GPT in plain PyTorch, to measure picogpt against. Runs alone, in an environment with nothing but torch.

    python torch_gpt.py train --compile --batch 16      training speed, AdamW
    python torch_gpt.py time --data FILE                nanoGPT's run for a CPU, as its README has it

Either prints one JSON line.   B batch   T positions   C width   H heads   V vocabulary
"""

import argparse
import json
import math
import os
import re
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, C: int, H: int, bias: bool) -> None:
        super().__init__()
        self.heads = H
        self.ln_1, self.ln_2 = nn.LayerNorm(C, bias=bias), nn.LayerNorm(C, bias=bias)
        self.c_attn, self.attn_proj = nn.Linear(C, 3 * C, bias=bias), nn.Linear(C, C, bias=bias)
        self.c_fc, self.mlp_proj = nn.Linear(C, 4 * C, bias=bias), nn.Linear(4 * C, C, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        B, T, C = x.shape
        q, k, v = (p.view(B, T, self.heads, -1).transpose(1, 2) for p in self.c_attn(self.ln_1(x)).split(C, dim=2))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp_proj(functional.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    """The head shares the token table; residual projections begin smaller, as GPT-2's."""

    def __init__(self, V: int, T: int, layers: int, H: int, C: int, bias: bool) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(T, C)
        self.h = nn.ModuleList(Block(C, H, bias) for _ in range(layers))
        self.ln_f = nn.LayerNorm(C, bias=bias)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if "_proj." in name else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:  # (B, T), (B, T) -> ()
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        logits = functional.linear(self.ln_f(x), self.wte.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Training:
    """Steps of fused AdamW, decay on the matrices alone, gradients clipped at 1, on windows drawn from `tokens`."""

    def __init__(self, model: GPT, tokens: Tensor, context: int, args: argparse.Namespace, beta2: float) -> None:
        self.parameters = list(model.parameters())
        self.loss = torch.compile(model) if args.compile else model
        self.tokens, self.context, self.batch = tokens, context, args.batch
        groups = [
            {"params": [p for p in self.parameters if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in self.parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, beta2), fused=True)

    def step(self, learning_rate: float) -> float:
        starts = torch.randint(len(self.tokens) - self.context, (self.batch,)).tolist()
        ids = torch.stack([self.tokens[start : start + self.context + 1] for start in starts])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss = self.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.item())


def train(args: argparse.Namespace) -> dict[str, object]:
    """Tokens a second of training on random ids, after a warm-up."""
    torch.manual_seed(0)
    model = GPT(args.vocab, args.context, args.layers, args.heads, args.width, bias=True)
    training = Training(model, torch.randint(args.vocab, (1_000_000,)), args.context, args, beta2=0.95)
    for _ in range(5):
        training.step(1e-4)
    steps, began = 0, time.perf_counter()
    while steps == 0 or time.perf_counter() - began < args.seconds:
        training.step(1e-4)
        steps += 1
    seconds = time.perf_counter() - began
    return {"tokens_per_second": round(steps * args.batch * args.context / seconds, 1), "batch": args.batch}


def time_to_loss(args: argparse.Namespace) -> dict[str, object]:
    """nanoGPT's configuration for a CPU. `seconds`: from opening the text to the last step, the evaluation aside."""
    context, steps, warmup, peak, least = 64, args.steps, 100, 1e-3, 1e-4
    began = time.perf_counter()
    text = Path(args.data).read_text(encoding="utf-8")
    ids = {character: i for i, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([ids[character] for character in text])
    border = int(len(tokens) * 0.9)
    torch.manual_seed(args.seed)
    model = GPT(len(ids), context, layers=4, H=4, C=128, bias=False)
    args.batch = 12
    training = Training(model, tokens[:border], context, args, beta2=0.99)
    for step in range(steps):
        done = (step - warmup) / max(1, steps - warmup)
        falling = least + (peak - least) * 0.5 * (1 + math.cos(math.pi * done))
        training.step(peak * (step + 1) / (warmup + 1) if step < warmup else falling)
    seconds = time.perf_counter() - began
    val_loss = full_loss(model, tokens[border:], context)
    return {"seconds": round(seconds, 2), "val_loss": round(val_loss, 6), "steps": steps, "seed": args.seed}


@torch.no_grad()
def full_loss(model: GPT, tokens: Tensor, context: int) -> float:
    """The mean loss over every token but the first, each once: windows side by side, the last one shorter."""
    targets = len(tokens) - 1
    whole = targets // context * context
    x, y = (part.view(whole // context, context) for part in (tokens[:whole], tokens[1 : whole + 1]))
    total = sum(float(model(a, b)) * b.numel() for a, b in zip(x.split(64), y.split(64), strict=True))
    if whole < targets:
        total += float(model(tokens[None, whole:-1], tokens[None, whole + 1 :])) * (targets - whole)
    return float(total / targets)


def peak_rss_mb() -> float | None:
    """The most megabytes this process has ever held; None where the standard library cannot tell."""
    if sys.platform == "linux":
        # not getrusage: there, a process starts with the peak of the one that started it
        match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
        return round(int(match[1]) / 1024, 1) if match else None
    if sys.platform == "win32":
        return None
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("train", "time"))
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--compile", action="store_true", help="torch.compile")
    how.add_argument("--eager", action="store_false", dest="compile", help="as it is written (the default)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    speed = parser.add_argument_group("train")
    for name, default in {"batch": 16, "context": 128, "layers": 8, "heads": 8, "width": 256, "vocab": 88}.items():
        speed.add_argument(f"--{name}", type=int, default=default)
    speed.add_argument("--seconds", type=float, default=30.0, help="how long to measure, after the warm-up")
    recipe = parser.add_argument_group("time")
    recipe.add_argument("--data", help="a text file")
    recipe.add_argument("--steps", type=int, default=2000)
    recipe.add_argument("--seed", type=int, default=1337)
    args = parser.parse_args()
    if args.mode == "time" and not args.data:
        parser.error("time needs --data FILE")
    torch.set_num_threads(args.threads)
    result = train(args) if args.mode == "train" else time_to_loss(args)
    common = {
        "how": "compile" if args.compile else "eager",
        "threads": args.threads,
        "peak_rss_mb": peak_rss_mb(),
        "torch": torch.__version__,
    }
    print(json.dumps({**result, **common}))


if __name__ == "__main__":
    main()
