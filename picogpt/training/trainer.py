"""One optimizer step: micro-batches over the lanes, their gradients summed, clipped and applied.

B sequences of a batch   T tokens of a sequence
"""

import sys
from math import isfinite, sqrt

import numpy as np
import numpy.typing as npt

from picogpt.config import RunConfig, UserError
from picogpt.engine import Tape, Tensor, no_grad
from picogpt.engine.backend import Array, check_ids, cuda, empty, fetch, to_device
from picogpt.engine.lanes import Lanes, OneLane
from picogpt.model.footprint import choose_micro_batch
from picogpt.model.gpt import GPT
from picogpt.model.parameters import Arrays, as_tensors
from picogpt.model.rolling import sequence_loss
from picogpt.rng import generator
from picogpt.training.device import gpu_micro_batch, with_usable_device
from picogpt.training.optim import Optimizer, reduce_gradients

Ids = npt.NDArray[np.int32]


def _to_stderr(notice: str) -> None:
    print(f"picogpt: {notice}", file=sys.stderr)


class Trainer:
    """A model on every lane over the same parameters, each with gradients of its own, and the optimizer.

    arrays: the parameters by name, in main memory. `self.arrays` are the trained ones: on a CPU these, changed in
    place; on a GPU copies, with one lane of its own in the place of `lanes`. Where a GPU is asked for and cannot be
    used, a line on stderr says that the CPU trains. Raises UserError where the GPU's memory is too small.
    """

    def __init__(self, config: RunConfig, arrays: Arrays, lanes: Lanes) -> None:
        config = with_usable_device(config, _to_stderr)
        if config.train.device == "cuda":
            self.micro_batch = gpu_micro_batch(config)
            cupy = cuda(config.train.tf32)
            arrays, lanes = {name: cupy.asarray(array) for name, array in arrays.items()}, OneLane()
        else:
            self.micro_batch = config.train.micro_batch or choose_micro_batch(config, lanes.count)
        self.config, self.arrays, self.lanes = config, arrays, lanes
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
        losses, gradients = self.gradients(x, y, step)
        values = fetch([*losses, *reduce_gradients(gradients, self.lanes)])  # the one wait for a GPU in a step
        loss, norm = sum(values[: len(losses)]), sqrt(sum(values[len(losses) :]))
        if not isfinite(loss + norm):
            raise UserError(
                f"step {step + 1}: loss {loss}, gradient norm {norm}: training diverged. "
                f"What was saved before is sound; start again with a lower learning rate"
            )
        clip = self.config.train.grad_clip
        self.optimizer.step(gradients[0], step, factor, min(1.0, clip / (norm + 1e-6)) if clip else 1.0, self.lanes)
        return loss

    def gradients(self, x: Ids, y: Ids, step: int) -> tuple[list[Array], list[dict[str, Array]]]:
        """0-d arrays that add up to the batch's mean loss, and for each lane that worked its share of the gradient."""
        x, y = self._placed(x), self._placed(y)
        for parameters in self.parameters:
            for tensor in parameters.values():
                tensor.zero_grad()

        def accumulate(lane: int, micro: slice) -> Array:
            rng = generator(self.config.train.seed, "dropout", step, micro.start) if self.config.model.dropout else None
            with Tape() as tape:
                loss = self._loss(lane, x, y, micro, rng)
            tape.backward(loss)
            return loss.data

        micros = self._micro_batches(len(x))
        losses = self.lanes.map(accumulate, micros)
        busy = self.parameters[: min(self.lanes.count, len(micros))]
        return losses, [{name: tensor.grad for name, tensor in parameters.items()} for parameters in busy]

    def evaluate(self, x: Ids, y: Ids) -> float:
        """The mean loss over these sequences, in nats a token."""
        x, y = self._placed(x), self._placed(y)

        def forward(lane: int, micro: slice) -> Array:
            with no_grad():
                return self._loss(lane, x, y, micro, None).data

        return sum(fetch(self.lanes.map(forward, self._micro_batches(len(x)))))

    def _placed(self, ids: Ids) -> Array:
        """The ids beside the model, checked while the host has them: a GPU would take a foreign one for another."""
        check_ids(ids, self.config.model.vocab_size)
        return to_device(ids, self.arrays["wte.weight"])

    def _loss(self, lane: int, x: Array, y: Array, micro: slice, rng: np.random.Generator | None) -> Tensor:
        return sequence_loss(self.replicas[lane], x[micro], y[micro], y.size, rng)

    def _micro_batches(self, count: int) -> list[slice]:
        return [slice(start, min(start + self.micro_batch, count)) for start in range(0, count, self.micro_batch)]
