"""One optimizer step: micro-batches over the lanes, their gradients summed, clipped and applied.

B sequences of a batch   T tokens of a sequence
"""

from collections.abc import Callable
from itertools import chain
from math import isfinite, sqrt
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from picogpt.config import RunConfig
from picogpt.engine import Tape, Tensor, no_grad
from picogpt.engine.backend import Array, check_ids, cuda, fetch, to_device
from picogpt.engine.lanes import Lanes, SharedArrays
from picogpt.engine.workspace import release
from picogpt.errors import UserError
from picogpt.model.gpt import GPT
from picogpt.model.memory import choose_micro_batch
from picogpt.model.parameters import Arrays, as_tensors, trained_shapes
from picogpt.model.rolling_context import sequence_loss
from picogpt.optim.optimizer import Optimizer, in_groups
from picogpt.optim.schedule import scheduled_depth
from picogpt.rng import generator

Ids = npt.NDArray[np.int32]

Result = TypeVar("Result")


class NotFiniteError(UserError):
    """A loss or a gradient that is not a number, or infinite."""

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what
        super().__init__(
            f"step {step + 1}: {what}: training diverged. "
            "What was saved before is sound; start again with a lower learning rate"
        )


class Trainer:
    """A model on every lane over the same parameters, each with gradients of its own, and the optimizer.

    arrays: the first values of the parameters, by name, in main memory. self.trained: those that change, in memory that
    the lanes share, or on a GPU, which is fed by one lane. self.arrays: with the frozen ones, which are as they came.
    self.gradients: of the last batch, by name.
    Raises UserError where a GPU is asked for and cannot be used.
    """

    def __init__(self, config: RunConfig, arrays: Arrays, lanes: Lanes) -> None:
        self._least_depth = _working_blocks(config, arrays)
        if config.train.device == "cuda":
            if lanes.count > 1:
                raise ValueError(f"a GPU is fed by one lane, not {lanes.count}")
            cupy = cuda(config.train.tf32)
            arrays = {name: cupy.asarray(np.asarray(array)) for name, array in arrays.items()}
        self.config, self.lanes = config, lanes
        self.recompute = config.train.recompute
        self.micro_batch = config.train.micro_batch or choose_micro_batch(config, lanes.count)
        own = in_groups(config.train, {name: arrays[name] for name in trained_shapes(config)})
        parameters, *gradients = (SharedArrays.zeros(own) for _ in range(1 + lanes.count))
        for name, array in own.items():
            parameters.named[name][...] = array
        self.trained, self.gradients = parameters.named, gradients[0].named
        self.arrays = {**arrays, **self.trained}
        self.replicas = [
            GPT(config.model, as_tensors(self.arrays, own.named), config.train.recompute) for own in gradients
        ]
        self._nodes = [[leaf.node for _, leaf in replica.named_parameters() if leaf.node] for replica in self.replicas]
        self._kept = [0] * lanes.count  # sequences whose activations each lane kept last; a lane knows its own
        self.optimizer = Optimizer(config.train, parameters, gradients, lanes)
        self._accumulate_on, self._evaluate_on = lanes.task(self._accumulate), lanes.task(self._evaluate)

    def step(
        self, x: Ids, y: Ids, step: int, factor: float, depth: int | None = None
    ) -> float:  # (B, T), (B, T) -> loss in nats a token
        """Train on one batch. step: how many were done before. factor: of the learning rates.

        depth: blocks to train, from the first (default: all); see `depth_at`.
        Raises NotFiniteError, with the parameters untouched, where the loss or the gradient is not finite. Where there
        is not the memory for it, the trainer shrinks.
        """
        depth = self.config.model.n_layer if depth is None else depth
        loss, norm = self._within_memory(lambda: self.accumulate(x, y, step, depth))
        if not isfinite(loss + norm):
            raise NotFiniteError(step, f"loss {loss:.4g}, gradient norm {norm:.4g}")
        clip = self.config.train.grad_clip
        self.optimizer.step(step, factor, min(1.0, clip / (norm + 1e-6)) if clip else 1.0, depth)
        return loss

    def _within_memory(self, work: Callable[[], Result]) -> Result:
        """Work that has touched nothing but gradients when it fails, in as small a way as it takes."""
        while True:
            try:
                return work()
            except MemoryError:
                if not self.shrink():
                    raise

    def depth_at(self, progress: float) -> int:
        """Blocks to train when this share of the run is done: never fewer than do something already."""
        n_layer = self.config.model.n_layer
        return max(self._least_depth, min(n_layer, scheduled_depth(self.config.train, n_layer, progress)))

    def work(self, steps: int) -> Callable[[int], float]:
        """What so many first steps of a run cost: each as much as it trains blocks."""
        progress = np.linspace(0, 1, 1001)
        work = np.concatenate([[0], np.cumsum([max(1, self.depth_at(share)) for share in progress[:-1]])])
        return lambda step: float(np.interp(step / steps, progress, work))

    def restore(self, model: Arrays, optimizer: Arrays) -> None:
        """Be as a checkpoint has it, whose names and shapes are the trainer's."""
        self._least_depth = _working_blocks(self.config, model)
        for mine, saved in ((self.trained, model), (self.optimizer.state, optimizer)):
            for name, array in mine.items():
                array[...] = to_device(saved[name], array)

    def shrink(self) -> bool:
        """Need less memory from now on: half as many sequences at once, at last recomputing. Returns whether it can."""
        if self.micro_batch > 1:
            self.micro_batch //= 2
            return True
        smaller, self.recompute = not self.recompute, True
        return smaller

    def accumulate(self, x: Ids, y: Ids, step: int, depth: int | None = None) -> tuple[float, float]:
        """The batch's mean loss, and the norm of its gradient, which is then in `gradients`."""
        depth = self.config.model.n_layer if depth is None else depth
        micros = self._micro_batches(len(x))
        shares = [micros[lane :: self.lanes.count] for lane in range(min(self.lanes.count, len(micros)))]
        losses = list(
            chain(*self._accumulate_on(shares, self._placed(x), self._placed(y), step, depth, self.recompute))
        )
        values = fetch(losses + self.optimizer.reduce(len(shares)))  # the one wait for a GPU in a step
        return sum(values[: len(losses)]), sqrt(sum(values[len(losses) :]))

    def _accumulate(
        self, lane: int, micros: list[slice], x: Array, y: Array, step: int, depth: int, recompute: bool
    ) -> list[Array]:
        """A lane's micro-batches: their gradients gather in its own arrays. Returns their losses, 0-d arrays."""
        nodes = self._nodes[lane]
        for node in nodes:
            node.clear()
        kept = 0 if recompute else max(micro.stop - micro.start for micro in micros)
        if kept < self._kept[lane]:
            release()  # what larger micro-batches took
        self._kept[lane] = kept
        self.replicas[lane].depth, self.replicas[lane].recompute = depth, recompute
        losses = []
        for micro in micros:
            rng = generator(self.config.train.seed, "dropout", step, micro.start) if self.config.model.dropout else None
            with Tape() as tape:
                loss = self._loss(lane, x, y, micro, rng)
            tape.backward(loss)
            losses.append(loss.data)
        for node in nodes:
            node.settle()
        return losses

    def evaluate(self, x: Ids, y: Ids) -> float:
        """The mean loss over these sequences, in nats a token."""
        ids = self._placed(x), self._placed(y)
        return self._within_memory(lambda: sum(fetch(self._evaluate_on(self._micro_batches(len(x)), *ids))))

    def _evaluate(self, lane: int, micro: slice, x: Array, y: Array) -> Array:
        with no_grad():
            return self._loss(lane, x, y, micro, None).data

    def _placed(self, ids: Ids) -> Array:
        """The ids beside the model, checked while the host has them: a GPU would take a foreign one for another."""
        check_ids(ids, self.config.model.vocab_size)
        return to_device(ids, self.arrays["wte.weight"])

    def _loss(self, lane: int, x: Array, y: Array, micro: slice, rng: np.random.Generator | None) -> Tensor:
        return sequence_loss(self.replicas[lane], x[micro], y[micro], y.size, rng)

    def _micro_batches(self, count: int) -> list[slice]:
        return [slice(start, min(start + self.micro_batch, count)) for start in range(0, count, self.micro_batch)]


def _working_blocks(config: RunConfig, arrays: Arrays) -> int:
    """Blocks up to the last one that is not the identity, which it is while its projections are zero.

    All of them where some are frozen: what is trained may stand anywhere.
    """
    if config.train.train != "all":
        return config.model.n_layer
    projections = ("attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias")
    for layer in reversed(range(config.model.n_layer)):
        if any(np.any(arrays[name]) for part in projections if (name := f"h.{layer}.{part}") in arrays):
            return layer + 1
    return 0
