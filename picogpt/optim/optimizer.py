"""AdamW and Muon, in place on named arrays, with their work spread over the lanes.

An optimizer turns gradients into new parameters block by block: a block is a slice of one parameter that fits the
cache (AdamW), or a whole matrix (Muon). Blocks are independent and each is done in one fixed way, so the result does
not depend on how many lanes share them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from math import sqrt

from picogpt.config import TrainConfig
from picogpt.engine.backend import Array, array_module, empty, row_blocks
from picogpt.engine.lanes import Lanes, SharedArrays, extent
from picogpt.model.parameters import LORA, is_hidden_matrix
from picogpt.optim.muon import orthogonalise

Named = Mapping[str, Array]

_EPS = 1e-8


def in_groups(config: TrainConfig, arrays: Named) -> dict[str, Array]:
    """The parameters in the order an optimizer wants: decayed by AdamW, not decayed, Muon's; in each block by block."""
    return dict(sorted(arrays.items(), key=lambda item: (_group(config, *item), _layer(item[0]), item[0])))


def _layer(name: str) -> int:
    """The block a parameter belongs to, -1 for none."""
    return int(name.split(".")[1]) if name.startswith("h.") else -1


def _group(config: TrainConfig, name: str, array: Array) -> int:
    if config.optimizer == "muon" and is_hidden_matrix(name, array.shape):
        return 2
    if name.endswith(LORA):  # they begin at nothing, and their rank keeps them small
        return 1
    return 0 if array.ndim >= 2 else 1


def state_shapes(config: TrainConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all that an optimizer of parameters of these shapes keeps."""
    kept: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        by_muon = config.optimizer == "muon" and is_hidden_matrix(name, shape)
        kept |= {f"{kind}.{name}": shape for kind in (("momentum",) if by_muon else ("mean", "square"))}
    return kept


class Optimizer:
    """AdamW for every parameter, or Muon for the hidden matrices and AdamW for the rest.

    parameters: `in_groups`, changed in place. gradients: each lane's, in the same order. state: what must be saved to
    go on, by name; with the number of steps done it is all there is.
    """

    def __init__(
        self, config: TrainConfig, parameters: SharedArrays, gradients: Sequence[SharedArrays], lanes: Lanes
    ) -> None:
        self.config, self.parameters, self.gradients = config, parameters, gradients
        groups: list[dict[str, Array]] = [{}, {}, {}]
        for name, array in parameters.named.items():
            groups[_group(config, name, array)][name] = array
        decayed, plain, hidden = groups
        by_adamw = decayed | plain
        self._mean, self._square, self._momentum = map(SharedArrays.zeros, (by_adamw, by_adamw, hidden))
        kinds = {"mean": self._mean, "square": self._square, "momentum": self._momentum}
        self.state = {f"{kind}.{name}": array for kind, of in kinds.items() for name, array in of.named.items()}
        # (elements times what each costs, the block it belongs to, update)
        work: list[tuple[int, int, Callable[..., None]]] = []
        start, flat = 0, parameters.flat
        # Block by block only where blocks may wait: the fewer the pieces, the better for a small model.
        layer_of = _layer if config.depth_warmup else lambda name: -1
        for layer, arrays in groupby(decayed.items(), key=lambda item: layer_of(item[0])):
            stop = start + extent(dict(arrays))
            work += self._adamw_work(slice(start, stop), layer, config.weight_decay)
            start = stop
        work += self._adamw_work(slice(start, start + extent(plain)), -1, 0.0)
        for name, array in hidden.items():
            parts = 3 if name.endswith("c_attn.weight") else 1  # q, k and v are three matrices in one array
            shape = (parts, len(array) // parts, array.shape[1])
            work.append((array.size * min(shape[1:]), _layer(name), partial(self._muon, name, shape)))
        # The dearest first: dealt out in turn, every lane then gets its share of each kind.
        self._work = [(layer, update) for _, layer, update in sorted(work, key=lambda item: -item[0])]
        self._blocks = list(row_blocks(flat.size, 1, flat))
        self._update = lanes.task(lambda _, item, *how: self._work[item][1](*how))
        self._reduce = lanes.task(self._reduce_block)

    def reduce(self, busy: int) -> list[Array]:
        """Sum the first `busy` lanes' gradients into the first one's, in a fixed order.

        Returns 0-d arrays that add up to the square of the sum's global norm.
        """
        return self._reduce(self._blocks, busy)

    def step(self, step: int, factor: float, gradient_scale: float, depth: int) -> None:
        """One update from the first lane's gradients.

        step: how many were done before. factor: of the learning rates. gradient_scale: from clipping. depth: blocks
        that are trained; the matrices of the others stay as they are.
        """
        items = [item for item, (layer, _) in enumerate(self._work) if layer < depth]
        self._update(items, step, factor, gradient_scale)

    def _adamw_work(self, span: slice, layer: int, decay: float) -> list[tuple[int, int, Callable[..., None]]]:
        blocks = row_blocks(span.stop - span.start, 1, self.parameters.flat)
        spans = [slice(span.start + block.start, span.start + block.stop) for block in blocks]
        return [(span.stop - span.start, layer, partial(self._adamw, span, decay)) for span in spans]

    def _reduce_block(self, _: int, block: slice, busy: int) -> Array:
        total = self.gradients[0].flat[block]
        for other in self.gradients[1:busy]:
            total += other.flat[block]
        return total @ total

    def _adamw(self, block: slice, decay: float, step: int, factor: float, scale: float) -> None:
        """I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", arXiv 1711.05101."""
        config = self.config
        arrays = (self.parameters, self.gradients[0], self._mean, self._square)
        p, g, m, v = (array.flat[block] for array in arrays)
        xp, rate = array_module(p), config.learning_rate * factor
        scratch = xp.multiply(g, scale * (1 - config.beta1), out=empty(p.shape, p))
        m *= config.beta1
        m += scratch
        xp.multiply(g, g, out=scratch)
        scratch *= scale * scale * (1 - config.beta2)
        v *= config.beta2
        v += scratch
        xp.sqrt(v, out=scratch)
        scratch *= 1 / sqrt(1 - config.beta2 ** (step + 1))
        scratch += _EPS
        xp.divide(m, scratch, out=scratch)
        scratch *= rate / (1 - config.beta1 ** (step + 1))
        if decay:
            p *= 1 - rate * decay
        p -= scratch

    def _muon(self, name: str, shape: tuple[int, int, int], step: int, factor: float, scale: float) -> None:
        """K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); Nesterov momentum."""
        config, arrays = self.config, (self.parameters, self._momentum, self.gradients[0])
        p, momentum, g = (array.named[name].reshape(shape) for array in arrays)
        xp = array_module(p)
        update = xp.multiply(g, scale, out=empty(g.shape, g))
        momentum *= config.muon_momentum
        momentum += update
        update += xp.multiply(momentum, config.muon_momentum, out=empty(g.shape, g))
        update = orthogonalise(update)
        if config.weight_decay:  # at AdamW's rate, so that a decay means the same for every matrix
            p *= 1 - config.learning_rate * factor * config.weight_decay
        update *= config.muon_learning_rate * factor * sqrt(max(1, shape[1] / shape[2]))
        p -= update
