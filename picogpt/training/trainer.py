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
    """A loss or a gradient is infinite or not a number."""

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what
        super().__init__(
            f"step {step + 1}: {what}: training diverged. "
            "What was saved before is sound; start again with a lower learning rate"
        )


class Trainer:
    """Trains a model on every lane, over the same parameters but with gradients of each lane's own.

    arrays: the first values of the parameters, by name, in main memory. self.trained: the parameters that change, in
    memory that the lanes share, or on a GPU, which one lane uses. self.arrays: these and the frozen ones.
    self.gradients: the gradients of the last batch, by name.
    Raises UserError where a GPU is asked for and cannot be used.
    """

    def __init__(self, config: RunConfig, arrays: Arrays, lanes: Lanes) -> None:
        self._least_depth = _working_blocks(config, arrays)
        if config.train.device == "cuda":
            if lanes.count > 1:
                raise ValueError(f"a GPU is used by one lane, not {lanes.count}")
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
        self._retained = [0] * lanes.count  # sequences whose activations each lane held last; a lane knows its own
        self.optimizer = Optimizer(config.train, parameters, gradients, lanes)
        self._accumulate_on, self._evaluate_on = lanes.task(self._accumulate), lanes.task(self._evaluate)

    def step(
        self, x: Ids, y: Ids, step: int, factor: float, depth: int | None = None
    ) -> float:  # (B, T), (B, T) -> loss in nats a token
        """Train on one batch. step: how many were done before. factor: of the learning rates.

        depth: blocks to train, from the first (default: all); see `depth_at`. Where memory is too small, the trainer
        shrinks. Raises NotFiniteError, with the parameters untouched, where the loss or the gradient is not finite.
        """
        depth = self.config.model.n_layer if depth is None else depth
        loss, norm = self._within_memory(lambda: self.accumulate(x, y, step, depth))
        if not isfinite(loss + norm):
            raise NotFiniteError(step, f"loss {loss:.4g}, gradient norm {norm:.4g}")
        clip = self.config.train.grad_clip
        self.optimizer.step(step, factor, min(1.0, clip / (norm + 1e-6)) if clip else 1.0, depth)
        return loss

    def _within_memory(self, work: Callable[[], Result]) -> Result:
        """Do work that changes nothing but gradients, and shrink as often as it runs out of memory."""
        while True:
            try:
                return work()
            except MemoryError:
                if not self.shrink():
                    raise

    def depth_at(self, progress: float) -> int:
        """Return the blocks to train when this share of the run is done: all that are not the identity, at least."""
        n_layer = self.config.model.n_layer
        return max(self._least_depth, min(n_layer, scheduled_depth(self.config.train, n_layer, progress)))

    def work(self, steps: int) -> Callable[[int], float]:
        """Return a function that gives the cost of the first so many steps of a run; a step costs its blocks."""
        progress = np.linspace(0, 1, 1001)
        work = np.concatenate([[0], np.cumsum([max(1, self.depth_at(share)) for share in progress[:-1]])])
        return lambda step: float(np.interp(step / steps, progress, work))

    def restore(self, model: Arrays, optimizer: Arrays) -> None:
        """Take the arrays of a checkpoint, whose names and shapes must be the trainer's."""
        self._least_depth = _working_blocks(self.config, model)
        for mine, saved in ((self.trained, model), (self.optimizer.state, optimizer)):
            for name, array in mine.items():
                array[...] = to_device(saved[name], array)

    def shrink(self) -> bool:
        """Use less memory: half as many sequences at once or, at one, recomputing. Returns whether it can."""
        if self.micro_batch > 1:
            self.micro_batch //= 2
            return True
        smaller, self.recompute = not self.recompute, True
        return smaller

    def accumulate(self, x: Ids, y: Ids, step: int, depth: int | None = None) -> tuple[float, float]:
        """Return the batch's mean loss and the norm of its gradient, which is then in `gradients`."""
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
        """Add up the gradients of a lane's micro-batches in its own arrays. Returns their losses, 0-d arrays."""
        nodes = self._nodes[lane]
        for node in nodes:
            node.clear()
        retained = 0 if recompute else max(micro.stop - micro.start for micro in micros)
        if retained < self._retained[lane]:
            release()  # the workspace of larger micro-batches
        self._retained[lane] = retained
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
        """Return the mean loss over these sequences, in nats a token."""
        ids = self._placed(x), self._placed(y)
        return self._within_memory(lambda: sum(fetch(self._evaluate_on(self._micro_batches(len(x)), *ids))))

    def _evaluate(self, lane: int, micro: slice, x: Array, y: Array) -> Array:
        with no_grad():
            return self._loss(lane, x, y, micro, None).data

    def _placed(self, ids: Ids) -> Array:
        """Return the ids where the model is, checked on the host: a GPU would not notice one outside the vocabulary."""
        check_ids(ids, self.config.model.vocab_size)
        return to_device(ids, self.arrays["wte.weight"])

    def _loss(self, lane: int, x: Array, y: Array, micro: slice, rng: np.random.Generator | None) -> Tensor:
        return sequence_loss(self.replicas[lane], x[micro], y[micro], y.size, rng)

    def _micro_batches(self, count: int) -> list[slice]:
        return [slice(start, min(start + self.micro_batch, count)) for start in range(0, count, self.micro_batch)]


def _working_blocks(config: RunConfig, arrays: Arrays) -> int:
    """Return the number of blocks up to the last that is not the identity: a block is, while its projections are zero.

    It is all blocks where some are frozen, as those that train may be anywhere.
    """
    if config.train.train != "all":
        return config.model.n_layer
    projections = ("attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias")
    for layer in reversed(range(config.model.n_layer)):
        if any(np.any(arrays[name]) for part in projections if (name := f"h.{layer}.{part}") in arrays):
            return layer + 1
    return 0
