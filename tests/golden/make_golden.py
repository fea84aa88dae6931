"""Make the golden files: picogpt's model written a second time, in PyTorch and float64, for the tests to compare with.

Run by hand where PyTorch is installed: `python tests/golden/make_golden.py`. The suite only reads the files.
Shapes: B sequences, T tokens, S positions of a window, C width, H heads, D head size, V vocabulary.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).parent
BATCH = 3
STEPS = 10
LEARNING_RATE = 1e-2
BETAS = (0.9, 0.95)
EPS = 1e-8
WEIGHT_DECAY = 0.1
GRAD_CLIP = 1.0
ACTIVATIONS = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


@dataclass(frozen=True)
class Config:
    """The fields of picogpt's ModelConfig that decide what the model computes."""

    context_len: int = 8
    vocab_size: int = 17
    n_layer: int = 2
    n_head: int = 2
    n_embd: int = 16
    bias: bool = True
    qkv_bias: bool = True
    activation: str = "gelu"
    attention_scale: str = "head"
    layer_pattern: tuple[str, ...] = ("global",)
    local_window: int = 256
    tied_head: bool = True
    head_bias: bool = False
    context_slot: bool = True

    def divisor(self) -> float:
        """What attention scores are divided by."""
        return {"head": math.sqrt(self.n_embd / self.n_head), "width": math.sqrt(self.n_embd), "none": 1.0}[
            self.attention_scale
        ]

    def visible(self, layer: int, length: int) -> Tensor:
        """(S, S) booleans: may query i see key j?"""
        ahead = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        local = self.layer_pattern[layer % len(self.layer_pattern)] == "local"
        return (ahead >= 0) & (ahead < (self.local_window if local else length))


@dataclass(frozen=True)
class Case:
    """One golden file."""

    name: str
    config: Config
    length: int
    """Tokens of a sequence."""
    parameters: str
    """The case whose file holds the initial parameters."""
    trains: bool = True
    """With targets, loss, gradients and AdamW steps; without, the logits alone."""


SLOT = Config()
LECTURE = Config(
    qkv_bias=False, activation="relu", attention_scale="width", tied_head=False, head_bias=True, context_slot=False
)
NEO = Config(
    n_layer=3,
    qkv_bias=False,
    activation="gelu_tanh",
    attention_scale="none",
    layer_pattern=("global", "local"),
    local_window=3,
    context_slot=False,
)
CASES = (
    Case("plain", SLOT, 8, "plain"),
    Case("rolling", SLOT, 24, "plain"),
    Case("ragged", SLOT, 19, "plain", trains=False),
    Case("lecture", LECTURE, 8, "lecture"),
    Case("neo", NEO, 8, "neo"),
)


class Attention(nn.Module):
    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.qkv_bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, S, C) -> (B, S, C)
        q, k, v = (part.unflatten(2, (self.config.n_head, -1)) for part in self.c_attn(x).chunk(3, dim=2))  # B S H D
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / self.config.divisor()
        hidden = ~self.config.visible(self.layer, x.shape[1])
        weights = scores.masked_fill(hidden, -math.inf).softmax(dim=3)
        return self.c_proj(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, S, C) -> (B, S, C)
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:  # (B, S, C) -> (B, S, C)
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.context_len + config.context_slot, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=1e-5)
        if not config.tied_head:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)

    def head(self, x: Tensor) -> Tensor:  # (B, S, C) -> (B, S, V)
        return functional.linear(x, self.wte.weight) if self.config.tied_head else self.lm_head(x)

    def states(self, x: Tensor) -> Tensor:  # (B, S, C) -> (B, S, C)
        """The final layer norm's output for embeddings that have no positions yet."""
        x = x + self.wpe.weight[: x.shape[1]]
        for block in self.h:
            x = block(x)
        return self.ln_f(x)

    def forward(self, ids: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        tokens = self.wte(ids)
        if not self.config.context_slot:
            return self.head(self.states(tokens))
        context = torch.zeros_like(tokens[:, :1])  # (B, 1, C), zeros for the first window
        logits = []
        for window in tokens.split(self.config.context_len, dim=1):
            states = self.states(torch.cat([context, window], dim=1))
            context = states.mean(dim=1, keepdim=True)
            logits.append(self.head(states[:, 1:]))
        return torch.cat(logits, dim=1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all positions of all sequences."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def initial(config: Config, random: torch.Generator) -> dict[str, Tensor]:
    """Values of about N(0, 0.2) for every parameter, gains around 1, rounded to float32."""
    values = {}
    for name, parameter in GPT(config).named_parameters():
        value = torch.randn(parameter.shape, generator=random, dtype=torch.float64) * 0.2
        gain = name.endswith("weight") and parameter.dim() == 1
        values[name] = (value + gain).float()
    return values


def built(config: Config, values: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> GPT:
    model = GPT(config).to(dtype)
    model.load_state_dict(values)
    return model


def drawn_tokens(shape: tuple[int, ...], config: Config, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids and the ids that follow them, both of the given (..., T) shape."""
    ids = torch.randint(config.vocab_size, (*shape[:-1], shape[-1] + 1), generator=random)
    return ids[..., :-1], ids[..., 1:]


def gradients(model: GPT, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    cross_entropy(model(x), y).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def train(model: GPT, xs: Tensor, ys: Tensor) -> tuple[Tensor, Tensor]:
    """Ten AdamW steps, in place. Returns the losses and the gradient norms before each step."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS)
    losses, norms = [], []
    for x, y in zip(xs, ys, strict=True):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(parameters, GRAD_CLIP))
        losses.append(loss.detach())
        optimizer.step()
    return torch.stack(losses), torch.stack(norms)


def check_gradients(model: GPT, x: Tensor, y: Tensor, grads: dict[str, Tensor]) -> None:
    """Every parameter's gradient against a central difference along a random direction."""
    random = torch.Generator().manual_seed(1)
    step = 1e-5
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        kept = parameter.detach().clone()
        losses = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.copy_(kept + sign * step * direction)
                losses.append(cross_entropy(model(x), y))
            parameter.copy_(kept)
        slope = (losses[0] - losses[1]) / (2 * step)
        torch.testing.assert_close((grads[name] * direction).sum(), slope, rtol=1e-6, atol=1e-9)


def library_block(model: GPT, layer: int) -> nn.TransformerEncoderLayer:
    """PyTorch's pre-norm block with the weights of block `layer`; q is scaled, as its divisor is always sqrt(D)."""
    config, state = model.config, model.h[layer].state_dict()
    width = config.n_embd
    block = nn.TransformerEncoderLayer(
        width, config.n_head, 4 * width, 0.0, ACTIVATIONS[config.activation], batch_first=True, norm_first=True
    ).double()
    q_scale = torch.ones(3 * width, dtype=torch.float64)
    q_scale[:width] = math.sqrt(width / config.n_head) / config.divisor()
    names = {
        "norm1": "ln_1", "self_attn.out_proj": "attn.c_proj",
        "norm2": "ln_2", "linear1": "mlp.c_fc", "linear2": "mlp.c_proj",
    }  # fmt: skip
    values = {f"{to}.{part}": state[f"{of}.{part}"] for to, of in names.items() for part in ("weight", "bias")}
    values["self_attn.in_proj_weight"] = state["attn.c_attn.weight"] * q_scale[:, None]
    values["self_attn.in_proj_bias"] = state.get("attn.c_attn.bias", torch.zeros(3 * width)) * q_scale
    block.load_state_dict(values)
    return block


def check_logits(model: GPT, x: Tensor, logits: Tensor) -> None:
    """The logits against a model put together from PyTorch's transformer blocks, window by window."""
    config, slot = model.config, model.config.context_slot
    blocks = [library_block(model, layer) for layer in range(config.n_layer)]
    context = torch.zeros(len(x), 1, config.n_embd, dtype=torch.float64)
    for start in range(0, x.shape[1], config.context_len):
        states = model.wte.weight[x[:, start : start + config.context_len]]
        if slot:
            states = torch.cat([context, states], dim=1)
        states = states + model.wpe.weight[: states.shape[1]]
        for layer, block in enumerate(blocks):
            states = block(states, src_mask=~config.visible(layer, states.shape[1]))
        states = model.ln_f(states)
        context = states.sum(dim=1, keepdim=True) / states.shape[1]
        torch.testing.assert_close(
            model.head(states)[:, int(slot) :], logits[:, start : start + config.context_len], rtol=1e-9, atol=1e-9
        )


def make(case: Case, values: dict[str, Tensor], random: torch.Generator) -> dict[str, Tensor]:
    """Everything one golden file holds, checked, and a line about it."""
    config = case.config
    model = built(config, values)
    x, y = drawn_tokens((BATCH, case.length), config, random)
    logits = model(x).detach()
    check_logits(model, x, logits)
    arrays = {"x": x, "logits": logits}
    if case.parameters == case.name:
        arrays |= {f"param.{name}": value for name, value in values.items()}
    if not case.trains:
        return arrays
    grads = gradients(model, x, y)
    check_gradients(model, x, y, grads)
    xs, ys = drawn_tokens((STEPS, BATCH, case.length), config, random)
    losses, norms = train(model, xs, ys)
    print(case.name, "losses", *(f"{loss:.6f}" for loss in losses))
    print(case.name, "gradient norms", *(f"{norm:.3f}" for norm in norms))
    arrays |= {"y": y, "loss": cross_entropy(logits, y), "batches.x": xs, "batches.y": ys, "adamw_losses": losses}
    arrays |= {f"grad.{name}": grad for name, grad in grads.items()}
    return arrays | {f"final.{name}": parameter.detach() for name, parameter in model.named_parameters()}


def stored(array: Tensor) -> Tensor:
    return (array.float() if array.is_floating_point() else array).contiguous()


def check_one_window(values: dict[str, Tensor], arrays: dict[str, dict[str, Tensor]]) -> None:
    """The first window of a rolling sequence is a plain one: what follows it must not reach back."""
    model = built(SLOT, values)
    window = arrays["rolling"]["x"][:, : SLOT.context_len]
    torch.testing.assert_close(model(window), arrays["rolling"]["logits"][:, : SLOT.context_len], rtol=0, atol=1e-12)


def main() -> None:
    parameters: dict[str, dict[str, Tensor]] = {}
    made: dict[str, dict[str, Tensor]] = {}
    for seed, case in enumerate(CASES):
        random = torch.Generator().manual_seed(seed)
        if case.parameters == case.name:
            parameters[case.name] = initial(case.config, random)
        made[case.name] = make(case, parameters[case.parameters], random)
    check_one_window(parameters["plain"], made)
    for name, arrays in made.items():
        save_file({key: stored(array) for key, array in arrays.items()}, HERE / f"{name}.safetensors")
    described = {
        "training": {
            "steps": STEPS,
            "learning_rate": LEARNING_RATE,
            "beta1": BETAS[0],
            "beta2": BETAS[1],
            "eps": EPS,
            "weight_decay": WEIGHT_DECAY,
            "grad_clip": GRAD_CLIP,
        },
        "cases": {
            case.name: {
                "config": asdict(case.config),
                "batch_size": BATCH,
                "length": case.length,
                "parameters": case.parameters,
                "trains": case.trains,
            }
            for case in CASES
        },
    }
    (HERE / "golden.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
