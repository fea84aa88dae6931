"""The optimizer of a run: which parameter AdamW or Muon updates, what they keep, and how lanes share the work.

The work is cut into items: slices of the parameters that fit the cache, for AdamW, and whole matrices, for Muon. Items
do not depend on each other and each is done in one fixed way, so the updates of given gradients are the same bits
however many lanes share them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from itertools import groupby

from picogpt.config import TrainConfig
from picogpt.engine.backend import Array, row_blocks
from picogpt.engine.lanes import Lanes, SharedArrays, extent
from picogpt.model.parameters import LORA, is_hidden_matrix
from picogpt.optim import adamw, muon

_NO_LAYER = -1
"""The layer of what belongs to no transformer block, or never waits for its block to be trained."""


class _Group(IntEnum):
    """Says how a parameter is updated; the parameters lie in memory in this order."""

    DECAYED = 0  # by AdamW
    PLAIN = 1  # by AdamW, without weight decay
    MUON = 2


@dataclass(frozen=True)
class _Item:
    """Describes a part of an update that one lane does by itself."""

    cost: int  # elements, times what each of them costs
    layer: int  # of the transformer block it belongs to
    update: Callable[[int, float, float], None]  # called with step, factor and gradient_scale, as in `Optimizer.step`


def in_groups(config: TrainConfig, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the parameters in the order that `Optimizer` needs.

    First come those that AdamW decays, then those it does not decay, then Muon's; within a group, those outside the
    transformer blocks, then block by block.
    """
    return dict(
        sorted(arrays.items(), key=lambda item: (_group(config, item[0], item[1].shape), _layer(item[0]), item[0]))
    )


def state_shapes(config: TrainConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the arrays in `Optimizer.state`, for parameters of these names and shapes."""
    kept: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        by_muon = _group(config, name, shape) is _Group.MUON
        kept |= {f"{kind}.{name}": shape for kind in (("momentum",) if by_muon else ("mean", "square"))}
    return kept


def _group(config: TrainConfig, name: str, shape: tuple[int, ...]) -> _Group:
    """Return the group of the parameter of this name and shape."""
    if config.optimizer == "muon" and is_hidden_matrix(name, shape):
        return _Group.MUON
    if name.endswith(LORA):  # their product begins at zero, and their rank keeps it small
        return _Group.PLAIN
    return _Group.DECAYED if len(shape) >= 2 else _Group.PLAIN


def _layer(name: str) -> int:
    """Return the number of the transformer block that the parameter of this name belongs to, or _NO_LAYER."""
    return int(name.split(".")[1]) if name.startswith("h.") else _NO_LAYER


class Optimizer:
    """Updates all parameters with AdamW, or hidden matrices with Muon and the rest with AdamW, over the lanes.

    parameters: in the order of `in_groups`; they are changed in place. gradients: those of each lane, under the same
    names and in the same order. lanes: must not have begun yet.
    self.state: name -> array of what must be saved to go on, "mean.NAME" and "square.NAME" for AdamW and
    "momentum.NAME" for Muon. With the number of steps done it is all that there is.
    """

    def __init__(
        self, config: TrainConfig, parameters: SharedArrays, gradients: Sequence[SharedArrays], lanes: Lanes
    ) -> None:
        self.config, self.parameters, self.gradients = config, parameters, gradients
        groups: list[dict[str, Array]] = [{} for _ in _Group]
        for name, array in parameters.named.items():
            groups[_group(config, name, array.shape)][name] = array
        decayed, plain, hidden = groups
        # AdamW's parameters come first, so that what it keeps of an element has the element's place in `flat`.
        self._mean, self._square = (SharedArrays.zeros(decayed | plain) for _ in range(2))
        self._momentum = SharedArrays.zeros(hidden)
        kinds = {"mean": self._mean, "square": self._square, "momentum": self._momentum}
        self.state = {f"{kind}.{name}": array for kind, kept in kinds.items() for name, array in kept.named.items()}
        items = self._decayed_items(decayed)
        items += self._adamw_items(extent(decayed), extent(decayed | plain), _NO_LAYER, weight_decay=0.0)
        items += self._muon_items(hidden)
        # The costliest come first: items are dealt out in turn, so every lane gets its share of each kind.
        self._items = sorted(items, key=lambda item: -item.cost)
        self._slices = list(row_blocks(parameters.flat.size, 1, parameters.flat))
        self._update_items, self._reduce_slices = lanes.task(self._update_item), lanes.task(self._reduce_slice)

    def reduce(self, busy: int) -> list[Array]:
        """Add the gradients of the first `busy` lanes up in those of the first lane, in a fixed order.

        Returns 0-d arrays that add up to the square of the sum's global norm.
        """
        return self._reduce_slices(self._slices, busy)

    def step(self, step: int, factor: float, gradient_scale: float, depth: int) -> None:
        """Update the parameters once, from the first lane's gradients.

        step: the number of steps done before. factor: what the learning rates are multiplied with. gradient_scale:
        what the gradients are multiplied with, for clipping. depth: the number of transformer blocks that are trained,
        from the first. The matrices of the others are left out, since weight decay would shrink them; their gains and
        biases are not decayed, so that gradients of zero leave them as they are.
        """
        trained = [number for number, item in enumerate(self._items) if item.layer < depth]
        self._update_items(trained, step, factor, gradient_scale)

    def _decayed_items(self, decayed: Mapping[str, Array]) -> list[_Item]:
        """Return the items of the group that AdamW decays, with which the parameters begin."""
        # Block by block only where blocks may wait: the fewer the slices, the better for a small model.
        layer_of = _layer if self.config.depth_warmup else lambda name: _NO_LAYER
        items: list[_Item] = []
        start = 0
        for layer, arrays in groupby(decayed.items(), key=lambda item: layer_of(item[0])):
            stop = start + extent(dict(arrays))
            items += self._adamw_items(start, stop, layer, self.config.weight_decay)
            start = stop
        return items

    def _adamw_items(self, start: int, stop: int, layer: int, weight_decay: float) -> list[_Item]:
        """Return the items of the elements from start to stop of the parameters."""
        return [
            _Item(part.stop - part.start, layer, partial(self._update_slice, part, weight_decay))
            for part in adamw.slices(start, stop, self.parameters.flat)
        ]

    def _muon_items(self, hidden: Mapping[str, Array]) -> list[_Item]:
        """Return the items of Muon's matrices, a parameter each."""
        items = []
        for name, array in hidden.items():
            shape = muon.stacked_shape(name, array.shape)
            update = partial(self._update_matrices, name, shape)
            items.append(_Item(array.size * min(shape[1:]), _layer(name), update))
        return items

    def _update_item(self, _: int, number: int, step: int, factor: float, gradient_scale: float) -> None:
        """Do one item of the work, on the lane that it fell to."""
        self._items[number].update(step, factor, gradient_scale)

    def _update_slice(self, part: slice, weight_decay: float, step: int, factor: float, gradient_scale: float) -> None:
        """Update a slice of the parameters with AdamW."""
        config, rate = self.config, self.config.learning_rate * factor
        adamw.update(
            self.parameters.flat[part],
            self.gradients[0].flat[part],
            self._mean.flat[part],
            self._square.flat[part],
            step=step,
            rate=rate,
            decay=rate * weight_decay,
            betas=(config.beta1, config.beta2),
            gradient_scale=gradient_scale,
        )

    def _update_matrices(
        self, name: str, shape: tuple[int, int, int], _: int, factor: float, gradient_scale: float
    ) -> None:
        """Update the parameter of this name with Muon, as a stack of matrices of this shape."""
        config = self.config
        muon.update(
            self.parameters.named[name].reshape(shape),
            self.gradients[0].named[name].reshape(shape),
            self._momentum.named[name].reshape(shape),
            rate=config.muon_learning_rate * factor,
            # At AdamW's rate, so that a weight decay means the same for every matrix.
            decay=config.learning_rate * factor * config.weight_decay,
            beta=config.muon_momentum,
            gradient_scale=gradient_scale,
        )

    def _reduce_slice(self, _: int, part: slice, busy: int) -> Array:
        """Add up the lanes' gradients in a slice; return the sum of their squares, a 0-d array."""
        total = self.gradients[0].flat[part]
        for other in self.gradients[1:busy]:
            total += other.flat[part]
        return total @ total
