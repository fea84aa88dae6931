"""AdamW and Muon, in place on named arrays, with their work spread over the lanes.

An optimizer turns gradients into new parameters block by block: a block is a slice of one parameter that fits the
cache (AdamW), or a whole matrix (Muon). Blocks are independent and each is done in one fixed way, so the result does
not depend on how many lanes share them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import cos, pi, sqrt

from picogpt.config import TrainConfig
from picogpt.engine.backend import Array, array_module, empty, row_blocks
from picogpt.engine.lanes import Lanes, shared_zeros
from picogpt.model.parameters import is_hidden_matrix

Named = Mapping[str, Array]
MUON_MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_EPS = 1e-8


def learning_rate_factor(config: TrainConfig, step: int, progress: float) -> float:
    """What the peak learning rate is multiplied with at this step; progress in [0, 1) is the share of the run done.

    wsd (warm-up, stable, decay): S. Hu et al., MiniCPM, arXiv 2404.06395. cosine: I. Loshchilov, F. Hutter, 1608.03983.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "cosine":
        falling = 0.5 * (1 + cos(pi * progress))
    else:
        falling = min(1.0, (1 - progress) / config.decay_fraction) if config.decay_fraction else 1.0
    return warmup * (config.min_lr_fraction + (1 - config.min_lr_fraction) * falling)


class Optimizer:
    """AdamW for every parameter, or Muon for the hidden matrices and AdamW for the rest.

    parameters: named arrays, changed in place. gradients: each lane's, by name. All of them in memory that the lanes
    share, as is state: what must be saved to go on, named arrays as well; with the number of steps done it is all.
    """

    def __init__(self, config: TrainConfig, parameters: Named, gradients: Sequence[Named], lanes: Lanes) -> None:
        self.config, self.parameters, self.gradients = config, parameters, gradients
        like: dict[str, Array] = {}
        work: list[tuple[int, Callable[..., None]]] = []  # (elements times what each costs, update)
        for name, array in parameters.items():
            if config.optimizer == "muon" and is_hidden_matrix(name, array.shape):
                like[f"momentum.{name}"] = array
                parts = 3 if name.endswith("c_attn.weight") else 1  # q, k and v are three matrices in one array
                height = len(array) // parts
                for part in range(parts):
                    update = partial(self._muon, name, slice(part * height, (part + 1) * height))
                    work.append((array.size // parts * min(height, array.shape[1]), update))
            else:
                like[f"mean.{name}"] = like[f"square.{name}"] = array
                for block in row_blocks(array.size, 1, array):
                    work.append((block.stop - block.start, partial(self._adamw, name, block)))
        self.state = shared_zeros(like)
        # The dearest first: dealt out in turn, every lane then gets its share of each kind.
        self._work = [update for _, update in sorted(work, key=lambda item: -item[0])]
        self._blocks = [
            (name, block) for name, array in parameters.items() for block in row_blocks(array.size, 1, array)
        ]
        self._update = lanes.task(lambda _, item, *how: self._work[item](*how))
        self._reduce = lanes.task(self._reduce_block)

    def reduce(self, busy: int) -> list[Array]:
        """Sum the first `busy` lanes' gradients into the first one's, in a fixed order.

        Returns 0-d arrays that add up to the square of the sum's global norm.
        """
        return self._reduce(range(len(self._blocks)), busy)

    def step(self, step: int, factor: float, gradient_scale: float) -> None:
        """One update from the first lane's gradients.

        step: how many were done before. factor: of the learning rates. gradient_scale: from clipping.
        """
        self._update(range(len(self._work)), step, factor, gradient_scale)

    def _reduce_block(self, _: int, item: int, busy: int) -> Array:
        name, block = self._blocks[item]
        total = self.gradients[0][name].reshape(-1)[block]
        for other in self.gradients[1:busy]:
            total += other[name].reshape(-1)[block]
        return total @ total

    def _adamw(self, name: str, block: slice, step: int, factor: float, scale: float) -> None:
        """I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", arXiv 1711.05101."""
        config, xp = self.config, array_module(self.parameters[name])
        p, m, v = (
            array.reshape(-1)[block]
            for array in (self.parameters[name], self.state[f"mean.{name}"], self.state[f"square.{name}"])
        )
        rate = config.learning_rate * factor
        g = xp.multiply(self.gradients[0][name].reshape(-1)[block], scale, out=empty(p.shape, p))
        scratch = xp.multiply(g, 1 - config.beta1, out=empty(p.shape, p))
        m *= config.beta1
        m += scratch
        g *= g
        g *= 1 - config.beta2
        v *= config.beta2
        v += g
        xp.sqrt(v, out=scratch)
        scratch *= 1 / sqrt(1 - config.beta2 ** (step + 1))
        scratch += _EPS
        xp.divide(m, scratch, out=scratch)
        scratch *= rate / (1 - config.beta1 ** (step + 1))
        if self.parameters[name].ndim >= 2 and config.weight_decay:
            p *= 1 - rate * config.weight_decay
        p -= scratch

    def _muon(self, name: str, rows: slice, step: int, factor: float, scale: float) -> None:
        """K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); Nesterov momentum."""
        config, xp = self.config, array_module(self.parameters[name])
        p, momentum, g = (
            array[rows] for array in (self.parameters[name], self.state[f"momentum.{name}"], self.gradients[0][name])
        )
        update = xp.multiply(g, scale, out=empty(g.shape, g))
        momentum *= MUON_MOMENTUM
        momentum += update
        update += xp.multiply(momentum, MUON_MOMENTUM, out=empty(g.shape, g))
        update = orthogonalise(update)
        if config.weight_decay:  # at AdamW's rate, so that a decay means the same for every matrix
            p *= 1 - config.learning_rate * factor * config.weight_decay
        update *= config.muon_learning_rate * factor * sqrt(max(1, p.shape[0] / p.shape[1]))
        p -= update


def orthogonalise(matrix: Array) -> Array:  # (M, K) -> (M, K)
    """About U V^T of the singular value decomposition U S V^T: five steps of a quintic Newton-Schulz iteration.

    A step is x <- (a + b g + c g^2) x with g = x x^T. Polynomials of one g commute, so the steps can run on the small
    square matrices alone and x is multiplied once, by their product.
    """
    a, b, c = NEWTON_SCHULZ
    xp = array_module(matrix)
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    m = len(x)
    flat = matrix.reshape(-1)
    x = xp.multiply(x, 1 / (xp.sqrt(flat @ flat) + 1e-7), out=empty(x.shape, matrix))
    gram, scratch, factor, product = (empty((m, m), matrix) for _ in range(4))
    xp.matmul(x, x.T, out=gram)
    for step in range(5):
        xp.matmul(gram, gram, out=scratch)
        scratch *= c
        xp.multiply(gram, b, out=factor)
        factor += scratch
        factor.reshape(-1)[:: m + 1] += a
        if step == 0:
            product[...] = factor
        else:
            product[...] = xp.matmul(factor, product, out=scratch)
        if step < 4:
            xp.matmul(factor, gram, out=scratch)
            xp.matmul(scratch, factor, out=gram)
    update = xp.matmul(product, x, out=empty(x.shape, matrix))
    return update.T if matrix.shape[0] > matrix.shape[1] else update
