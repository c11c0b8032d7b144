"""From Flax modules to pure functions: the one place where Flax meets the rest of the package.

`nnx_predict_fn` and `linen_predict_fn` turn a Flax model into a function of `(variables, inputs)`
that holds no arrays and compares by value, so a kernel that takes one as a static argument compiles
once, however often it is built. `freeze` keeps all but the weights that are compressed constant.
Losses are in nats.
"""

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import linen, nnx
from flax.core import FrozenDict, unfreeze
from jaxtyping import Array, Float, Int

from jaxcomp.trees.leaves import Framed, split_constants
from jaxcomp.trees.paths import leaves_by_path, replace_leaves
from jaxcomp.trees.selection import Select, selected_paths
from jaxcomp.types import Params, PredictFn

Mode: TypeAlias = Literal["evaluation", "training", "statistics"]
"""`statistics`: as in evaluation, but batch normalization uses, and stores, those of the batch."""


def nnx_predict_fn(module: nnx.Module) -> tuple["NnxPredictFn", nnx.State]:
    """Turn a Flax NNX module into a pure function for evaluation.

    The module is left as it is; the function uses a copy in evaluation mode (`module.eval()`:
    dropout off, running statistics of batch normalization).

    Args:
        module: called as `module(inputs) -> logits (batch, classes)`.

    Returns:
        `predict_fn(params, inputs) -> logits`, which is pure and equal to that of every module of
        the same definition, and `params`, an `nnx.State` with all variables except the state of
        random streams. The weight matrices among them are what is compressed by default;
        `nnx.update(module, params)` puts changed ones back into a module.

    Raises:
        TypeError: if `module` is not an NNX module, or its settings cannot be hashed.
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"nnx_predict_fn needs a flax.nnx.Module, got {type(module).__name__}; "
            "for a Linen module use linen_predict_fn(module, variables)."
        )
    evaluated = in_mode(nnx.clone(module), "evaluation")
    definition, streams, params = nnx.split(evaluated, nnx.RngState, ...)
    try:
        hash(definition)
    except TypeError as error:
        raise TypeError(
            f"The definition of the module {type(module).__name__} must be hashable ({error}); "
            "keep its arrays in nnx.Variable and use tuples instead of lists for settings."
        ) from error
    return NnxPredictFn(definition, streams), params


@dataclass(frozen=True)
class NnxPredictFn:
    """A user's NNX module in evaluation mode as a function; equal for equal definitions.

    Attributes:
        definition: what the module is, without its arrays.
        streams: state of its random streams, which evaluation does not use; not compared.
    """

    definition: nnx.GraphDef[Any]
    streams: nnx.State = field(compare=False, repr=False)

    def __call__(self, params: Params, inputs: Any) -> Float[Array, "batch classes"]:
        """Compute logits in evaluation mode, in full precision on every device."""
        with jax.default_matmul_precision("highest"):
            return self.module_of(params, "evaluation")(inputs)

    def module_of(self, variables: Params, mode: Mode) -> Any:
        """Put the variables into a fresh module."""
        # Merging takes over the variables themselves; a copy keeps the caller's from changing.
        streams, copied = jax.tree.map(lambda leaf: leaf, (self.streams, variables))
        return in_mode(nnx.merge(self.definition, streams, copied), mode)

    def variables_of(self, module: nnx.Module) -> nnx.State:
        """Take the variables out of a module."""
        return nnx.state(module, nnx.Not(nnx.RngState))


def linen_predict_fn(
    module: linen.Module, variables: Mapping[str, Any], **apply_kwargs: Hashable
) -> tuple["LinenPredictFn", dict[str, Any]]:
    """Turn a Flax Linen module into a pure function for evaluation.

    Args:
        module: called as `module.apply(variables, inputs, **apply_kwargs) -> logits`.
        variables: its collections, e.g. `{"params": ..., "batch_stats": ...}`.
        **apply_kwargs: what puts the module into evaluation mode, e.g. `train=False` or
            `deterministic=True`; hashable values.

    Returns:
        `predict_fn(params, inputs) -> logits`, which is pure and equal to that of an equal module
        with equal arguments, and `params`, the variables as nested dicts.

    Raises:
        TypeError: if `module` is not a Linen module, or it or an argument cannot be hashed.
        ValueError: for `mutable` or `rngs`: evaluation changes nothing and draws nothing.
    """
    if not isinstance(module, linen.Module):
        raise TypeError(
            f"linen_predict_fn needs a flax.linen.Module, got {type(module).__name__}; "
            "for an NNX module use nnx_predict_fn(module)."
        )
    forbidden = sorted({"mutable", "rngs"} & set(apply_kwargs))
    if forbidden:
        raise ValueError(
            f"linen_predict_fn cannot take {' and '.join(forbidden)}: in evaluation mode nothing "
            "changes and nothing is drawn; pass the arguments that switch training off."
        )
    predict_fn = LinenPredictFn(module, tuple(sorted(apply_kwargs.items())))
    try:
        hash(predict_fn)
    except TypeError as error:
        raise TypeError(
            f"The Linen module and its arguments must be hashable, got {module!r} with "
            f"{apply_kwargs!r}; use tuples instead of lists and functions defined once."
        ) from error
    return predict_fn, unfreeze(FrozenDict(variables))


@dataclass(frozen=True)
class LinenPredictFn:
    """A user's Linen module in evaluation mode as a function; equal for equal modules.

    Attributes:
        module: the Linen module, which holds no arrays.
        apply_kwargs: name and value of every further argument.
    """

    module: linen.Module
    apply_kwargs: tuple[tuple[str, Hashable], ...]

    def __call__(self, params: Params, inputs: Any) -> Float[Array, "batch classes"]:
        """Compute logits in evaluation mode, in full precision on every device."""
        with jax.default_matmul_precision("highest"):
            apply: Any = self.module.apply
            return apply(params, inputs, **dict(self.apply_kwargs))


def predict_fn_of(model: nnx.Module | linen.Module, params: Params) -> Any:
    """Return the function of a Flax model whose weights are held as `params`.

    Args:
        model: an NNX module, or a Linen module that takes no further arguments.
        params: its state, or its variables.

    Returns:
        What `nnx_predict_fn` or `linen_predict_fn` returns first.

    Raises:
        TypeError: as these two.
    """
    if isinstance(model, linen.Module):
        return linen_predict_fn(model, params)[0]
    return nnx_predict_fn(model)[0]


def freeze(
    function: Callable[[Params, Any], Any], params: Params, select: Select = None
) -> tuple[jax.tree_util.Partial, dict[str, Array]]:
    """Keep all but some weights of a model fixed: a function of those alone.

    For curvature of the weights that are compressed: biases, running statistics of batch
    normalization and whatever else is not selected become constants, which cost nothing.

    Args:
        function: `(params, inputs) -> outputs` or `(params, batch) -> loss`, hashable.
        params: any pytree, also one with functions or numbers among its leaves.
        select: which leaves stay variable, as in `jaxcomp.quantize`; by default weight matrices,
            convolution kernels and embeddings, by name and shape.

    Returns:
        The function of `(weights, inputs)`, whose constants are traced by `jit` (a network with
        other constants compiles nothing), and the weights by path.
    """
    leaves = leaves_by_path(params)
    weights = {path: jnp.asarray(leaves[path]) for path in selected_paths(params, select)}
    arrays, frame = split_constants(params)
    of_arrays = function if frame.is_empty else Framed(function, frame)
    return jax.tree_util.Partial(PartlyFrozen(of_arrays), arrays), weights


@dataclass(frozen=True)
class PartlyFrozen:
    """`(params, weights, inputs)`: evaluates with `weights` put into `params`; see `freeze`."""

    function: Callable[[Params, Any], Any]

    def __call__(self, params: Params, weights: Mapping[str, Array], inputs: Any) -> Any:
        """Evaluate the function."""
        return self.function(replace_leaves(params, weights), inputs)


@dataclass(frozen=True)
class CrossEntropyLoss:
    """Mean softmax cross-entropy of a model as a function of weights and batch, in nats.

    Equal for equal models: a cell of a notebook that is run again compiles nothing again.

    Attributes:
        predict_fn: `(params, inputs) -> logits (batch, classes)`, e.g. from `nnx_predict_fn`.
    """

    predict_fn: PredictFn

    def __call__(self, params: Params, batch: tuple[Any, Int[Array, "batch"]]) -> Float[Array, ""]:
        """Return the loss.

        Args:
            params: weights.
            batch: inputs and labels.
        """
        inputs, labels = batch
        logits = self.predict_fn(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@runtime_checkable
class Functional(Protocol):
    """What turns variables into a module and back."""

    def module_of(self, variables: Params, mode: Mode) -> Any:
        """Put the variables into a fresh module."""
        ...

    def variables_of(self, module: nnx.Module) -> Any:
        """Take the variables out of a module."""
        ...


def reestimate_batch_statistics(
    predict_fn: Functional,
    variables: Params,
    inputs: Float[Array, "examples ..."],
    *,
    batch_size: int = 500,
) -> Params:
    """Recompute the statistics of batch normalization for weights that were changed.

    Compressed weights give other activations than those whose mean and variance the network
    keeps. One pass over the inputs, each batch normalized by its own statistics (as in training,
    but without dropout); the results are the mean and the variance over all examples together
    (variances within the batches plus the variance of the batch means), not a running average.
    With all inputs in one batch they are exact in every layer. Pure and vmappable over `variables`.

    Args:
        predict_fn: what `nnx_predict_fn` returned, or a network of `jaxcomp.experiments.networks`
            or its `predict`.
        variables: of that network, e.g. with quantized weights.
        inputs: examples, normally of the training sample.
        batch_size: at most so many examples at once; batches differ by at most one example.
            Static.

    Returns:
        The variables with new means and variances of every batch normalization layer; the same if
        there is none.

    Raises:
        TypeError: for any other kind of function.
        ValueError: without inputs, or for a batch size below 1.
    """
    if not isinstance(predict_fn, Functional):
        raise TypeError(
            "Batch statistics can be re-estimated for a Network or the function that "
            f"nnx_predict_fn returned, got {type(predict_fn).__name__}."
        )
    if batch_size < 1 or not len(inputs):
        raise ValueError(
            f"Batch statistics need at least one input and a batch_size of at least 1, got "
            f"{len(inputs)} inputs and {batch_size}."
        )
    return _reestimate(predict_fn, variables, inputs, batch_size=batch_size)


@functools.partial(jax.jit, static_argnames=("functional", "batch_size"))
def _reestimate(
    functional: Functional,
    variables: Params,
    inputs: Float[Array, "examples ..."],
    *,
    batch_size: int,
) -> Params:
    num_examples = len(inputs)
    # A short last batch would be normalized by the statistics of a few examples.
    size, num_larger = divmod(num_examples, -(-num_examples // batch_size))
    cut = num_larger * (size + 1)
    weighted = []
    for part, part_size in ((inputs[:cut], size + 1), (inputs[cut:], size)):
        if not len(part):
            continue
        batches = part.reshape(-1, part_size, *part.shape[1:])
        moments = jax.lax.map(functools.partial(_batch_moments, functional, variables), batches)
        share = len(part) / num_examples
        weighted.append(jax.tree.map(lambda m, share=share: share * m.mean(0), moments))
    totals = jax.tree.map(lambda *parts: sum(parts), *weighted)
    module = functional.module_of(variables, "statistics")
    for layer, (mean, second) in zip(_batch_norms(module), totals, strict=True):
        layer.mean[...] = mean
        layer.var[...] = jnp.maximum(second - mean**2, 0.0)
    return functional.variables_of(module)


def _batch_moments(
    functional: Functional, variables: Params, batch: Float[Array, "batch ..."]
) -> list[tuple[Array, Array]]:
    """Mean and mean square of what each batch normalization layer sees."""
    module = functional.module_of(variables, "statistics")
    with jax.default_matmul_precision("highest"):
        module(batch)
    return [
        (layer.mean[...], layer.var[...] + layer.mean[...] ** 2) for layer in _batch_norms(module)
    ]


def _batch_norms(module: nnx.Module) -> list[nnx.BatchNorm]:
    return [layer for _, layer in nnx.iter_modules(module) if isinstance(layer, nnx.BatchNorm)]


def in_mode(module: Any, mode: Mode) -> Any:
    """Switch dropout and batch normalization; changes the module and returns it."""
    if mode == "training":
        module.train()
        return module
    module.eval()
    if mode == "statistics":
        # Momentum 0: the stored statistics become those of the batch alone.
        module.set_attributes(
            nnx.BatchNorm, use_running_average=False, momentum=0.0, raise_if_not_found=False
        )
    return module
