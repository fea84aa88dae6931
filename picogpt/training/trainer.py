"""One optimizer step: micro-batches over the lanes, their gradients summed, clipped and applied.

B sequences of a batch   T tokens of a sequence
"""

from math import isfinite

import numpy as np
import numpy.typing as npt

from picogpt.config import RunConfig, UserError
from picogpt.engine import Tape, Tensor, no_grad
from picogpt.engine.backend import to_device
from picogpt.engine.lanes import Lanes, shared_zeros
from picogpt.model.footprint import choose_micro_batch
from picogpt.model.gpt import GPT
from picogpt.model.parameters import Arrays, as_tensors
from picogpt.model.rolling import sequence_loss
from picogpt.rng import generator
from picogpt.training.optim import Optimizer

Ids = npt.NDArray[np.int32]


class Trainer:
    """A model on every lane over the same parameters, each with gradients of its own, and the optimizer.

    arrays: the first values of the parameters, by name. self.arrays: the trained ones, in memory that the lanes share.
    """

    def __init__(self, config: RunConfig, arrays: Arrays, lanes: Lanes) -> None:
        self.config, self.lanes = config, lanes
        self.micro_batch = config.train.micro_batch or choose_micro_batch(config, lanes.count)
        self.arrays = shared_zeros(arrays)
        for name, array in arrays.items():
            self.arrays[name][...] = array
        self.gradients = [shared_zeros(self.arrays) for _ in range(lanes.count)]
        self.replicas = [
            GPT(config.model, as_tensors(self.arrays, own), recompute=config.train.recompute) for own in self.gradients
        ]
        self.optimizer = Optimizer(config.train, self.arrays, self.gradients, lanes)
        self._accumulate_on, self._evaluate_on = lanes.task(self._accumulate), lanes.task(self._evaluate)

    def step(self, x: Ids, y: Ids, step: int, factor: float) -> float:  # (B, T), (B, T) -> loss in nats a token
        """Train on one batch. step: how many were done before. factor: of the learning rates.

        Raises UserError, with the parameters untouched, where the loss or the gradient is not finite.
        """
        loss, norm = self.accumulate(x, y, step)
        if not isfinite(loss + norm):
            raise UserError(
                f"step {step + 1}: loss {loss}, gradient norm {norm}: training diverged. "
                f"What was saved before is sound; start again with a lower learning rate"
            )
        clip = self.config.train.grad_clip
        self.optimizer.step(step, factor, min(1.0, clip / (norm + 1e-6)) if clip else 1.0)
        return loss

    def accumulate(self, x: Ids, y: Ids, step: int) -> tuple[float, float]:
        """The batch's mean loss, and the norm of its gradient, which is then in `gradients[0]`."""
        micros = self._micro_batches(len(x))
        shares = [micros[lane :: self.lanes.count] for lane in range(min(self.lanes.count, len(micros)))]
        losses = self._accumulate_on(shares, x, y, step)
        return sum(map(sum, losses)), self.optimizer.reduce(len(shares))

    def _accumulate(self, lane: int, micros: list[slice], x: Ids, y: Ids, step: int) -> list[float]:
        """A lane's micro-batches: their gradients gather in its own arrays."""
        nodes = [tensor.node for _, tensor in self.replicas[lane].named_parameters() if tensor.node]
        for node in nodes:
            node.clear()
        losses = []
        for micro in micros:
            rng = generator(self.config.train.seed, "dropout", step, micro.start) if self.config.model.dropout else None
            with Tape() as tape:
                loss = self._loss(lane, x, y, micro, rng)
            tape.backward(loss)
            losses.append(float(loss.data))
        for node in nodes:
            node.settle()
        return losses

    def evaluate(self, x: Ids, y: Ids) -> float:
        """The mean loss over these sequences, in nats a token."""
        return sum(self._evaluate_on(self._micro_batches(len(x)), x, y))

    def _evaluate(self, lane: int, micro: slice, x: Ids, y: Ids) -> float:
        with no_grad():
            return float(self._loss(lane, x, y, micro, None).data)

    def _loss(self, lane: int, x: Ids, y: Ids, micro: slice, rng: np.random.Generator | None) -> Tensor:
        like = self.arrays["wte.weight"]
        return sequence_loss(self.replicas[lane], to_device(x[micro], like), to_device(y[micro], like), y.size, rng)

    def _micro_batches(self, count: int) -> list[slice]:
        return [slice(start, min(start + self.micro_batch, count)) for start in range(0, count, self.micro_batch)]
