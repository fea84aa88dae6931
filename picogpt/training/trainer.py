"""One optimizer step: micro-batches over the lanes, their gradients summed, clipped and applied.

B sequences of a batch   T tokens of a sequence
"""

from math import isfinite

import numpy as np
import numpy.typing as npt

from picogpt.config import RunConfig, UserError
from picogpt.engine import Tape, Tensor, no_grad
from picogpt.engine.backend import Array, empty, to_device
from picogpt.engine.lanes import Lanes
from picogpt.model.footprint import choose_micro_batch
from picogpt.model.gpt import GPT
from picogpt.model.parameters import Arrays, as_tensors
from picogpt.model.rolling import sequence_loss
from picogpt.rng import generator
from picogpt.training.optim import Optimizer, reduce_gradients

Ids = npt.NDArray[np.int32]


class Trainer:
    """A model on every lane over the same parameters, each with gradients of its own, and the optimizer.

    arrays: the parameters by name; training changes them in place.
    """

    def __init__(self, config: RunConfig, arrays: Arrays, lanes: Lanes) -> None:
        self.config, self.arrays, self.lanes = config, arrays, lanes
        self.micro_batch = config.train.micro_batch or choose_micro_batch(config, lanes.count)
        gradients = [{name: empty(a.shape, a) for name, a in arrays.items()} for _ in range(lanes.count)]
        self.replicas = [
            GPT(config.model, as_tensors(arrays, own), recompute=config.train.recompute) for own in gradients
        ]
        self.parameters = [dict(replica.named_parameters()) for replica in self.replicas]
        self.optimizer = Optimizer(config.train, arrays)

    def step(self, x: Ids, y: Ids, step: int, factor: float) -> float:  # (B, T), (B, T) -> loss in nats a token
        """Train on one batch. step: how many were done before. factor: of the learning rates.

        Raises UserError, with the parameters untouched, where the loss or the gradient is not finite.
        """
        loss, gradients = self.gradients(x, y, step)
        norm = reduce_gradients(gradients, self.lanes)
        if not isfinite(loss + norm):
            raise UserError(
                f"step {step + 1}: loss {loss}, gradient norm {norm}: training diverged. "
                f"What was saved before is sound; start again with a lower learning rate"
            )
        clip = self.config.train.grad_clip
        self.optimizer.step(gradients[0], step, factor, min(1.0, clip / (norm + 1e-6)) if clip else 1.0, self.lanes)
        return loss

    def gradients(self, x: Ids, y: Ids, step: int) -> tuple[float, list[dict[str, Array]]]:
        """The batch's mean loss and, for each lane that worked, its share of the gradient by name."""
        for parameters in self.parameters:
            for tensor in parameters.values():
                tensor.zero_grad()

        def accumulate(lane: int, micro: slice) -> float:
            rng = generator(self.config.train.seed, "dropout", step, micro.start) if self.config.model.dropout else None
            with Tape() as tape:
                loss = self._loss(lane, x, y, micro, rng)
            tape.backward(loss)
            return float(loss.data)

        micros = self._micro_batches(len(x))
        loss = sum(self.lanes.map(accumulate, micros))
        busy = self.parameters[: min(self.lanes.count, len(micros))]
        return loss, [{name: tensor.grad for name, tensor in parameters.items()} for parameters in busy]

    def evaluate(self, x: Ids, y: Ids) -> float:
        """The mean loss over these sequences, in nats a token."""

        def forward(lane: int, micro: slice) -> float:
            with no_grad():
                return float(self._loss(lane, x, y, micro, None).data)

        return sum(self.lanes.map(forward, self._micro_batches(len(x))))

    def _loss(self, lane: int, x: Ids, y: Ids, micro: slice, rng: np.random.Generator | None) -> Tensor:
        like = self.arrays["wte.weight"]
        return sequence_loss(self.replicas[lane], to_device(x[micro], like), to_device(y[micro], like), y.size, rng)

    def _micro_batches(self, count: int) -> list[slice]:
        return [slice(start, min(start + self.micro_batch, count)) for start in range(0, count, self.micro_batch)]
