"""One network under test, and the three parts of its data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jaxcomp.experiments.samples import Examples
from jaxcomp.experiments.sweep.codebooks import Layers
from jaxcomp.experiments.sweep.tasks import Classification, Task
from jaxcomp.quantizers import Method
from jaxcomp.trees.paths import leaves_by_path
from jaxcomp.types import Params, PredictFn


def _as_they_are(params: Params) -> Params:
    return params


class Parts(NamedTuple):
    """Three disjoint parts: what was learned, what choices are made on, and one look."""

    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class Subject:
    """One trained network under test.

    Attributes:
        predict_fn: `(params, inputs) -> outputs`, evaluation mode, hashable.
        params: all of its arrays.
        layers: names of the layers to compress: paths of leaves, or of a leaf that is a stack of
            layers those of its layers, `path[0]` and so on.
        otherwise: arrays of the same network trained or changed otherwise, by the method of the
            control that they are, `early_stopping` and so on; as far as they are known.
        last_layer: path of the layer that makes the logits, if known.
        refresh_fn: `(params, inputs) -> params`, re-estimates batch statistics after a
            change of the weights; None to keep them.
        model_seed: which of several networks this is.
        num_distinct: distinct training examples (draws with replacement repeat some).
        stacks: leaves that are stacks of layers: path, and the axis of the layers.
        as_given: `params -> params`, puts arrays back into the tree that was handed in.
        task: what it is for.
        methods: of the user, by the name that variants give them.
        score_fn: `predict_fn` in a form that is faster where only outputs are wanted, the same to
            rounding: nothing differentiates it or looks for layers in it; None if there is none.
    """

    predict_fn: PredictFn
    params: Params
    layers: tuple[str, ...]
    otherwise: Mapping[str, Params] = field(default_factory=dict)
    last_layer: str | None = None
    refresh_fn: Callable[[Params, Any], Params] | None = None
    model_seed: int = 0
    num_distinct: int | None = None
    stacks: tuple[tuple[str, int], ...] = ()
    as_given: Callable[..., Params] = _as_they_are
    task: Task = Classification()  # noqa: RUF009
    methods: Mapping[str, Method] = field(default_factory=dict)
    score_fn: PredictFn | None = None

    def weights(self) -> Layers:
        """The layers to compress, by name."""
        return self.layers_of(leaves_by_path(self.params))

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Paths of the leaves that hold the layers."""
        inside = {name: path for path, axis in self.stacks for name in self._names(path, axis)}
        return tuple(dict.fromkeys(inside.get(name, name) for name in self.layers))

    def layers_of(self, leaves: Mapping[str, Any]) -> Layers:
        """Return the layers, by name, of leaves by path (weights, or what is shaped like them)."""
        axes = dict(self.stacks)
        layers = {}
        for path in self.paths:
            leaf = jnp.asarray(leaves[path])
            if path in axes:
                names = self._names(path, axes[path])
                layers |= dict(zip(names, jnp.moveaxis(leaf, axes[path], 0), strict=True))
            else:
                layers[path] = leaf
        return layers

    def leaves_of(self, layers: Layers) -> dict[str, Array]:
        """Undo `layers_of`."""
        axes = dict(self.stacks)
        return {
            path: jnp.stack([layers[name] for name in self._names(path, axes[path])], axes[path])
            if path in axes
            else layers[path]
            for path in self.paths
        }

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {path: jnp.shape(leaf) for path, leaf in leaves_by_path(self.params).items()}

    def _names(self, path: str, axis: int) -> list[str]:
        return [f"{path}[{number}]" for number in range(self._shapes[path][axis])]
