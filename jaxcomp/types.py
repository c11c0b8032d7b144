"""Types that every module shares: a model is a pytree of weights and a function of it."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Array, Float, Key, PyTree, Shaped

Params: TypeAlias = PyTree[Shaped[Array, "..."]]
"""Weights of a network: any pytree of arrays (nested dict, NNX state, Linen variables)."""

Batch: TypeAlias = PyTree[Shaped[Array, "batch ..."]]
"""Examples: any pytree of arrays that share their leading axis."""

AnyArray: TypeAlias = Array | np.ndarray
"""An array on the host or on a device, for shape annotations such as `Float[AnyArray, "n"]`.

Not an `ArrayLike`: those of NumPy and JAX are unions with members that are no classes, which
jaxtyping cannot subscript."""

PRNGKey: TypeAlias = Key[Array, ""]
"""A typed key from `jax.random.key`, consumed by the function that takes it."""

LossFn: TypeAlias = Callable[[Params, Batch], Float[Array, ""]]
"""`(params, batch) -> mean loss over the examples of the batch`, in nats."""

PredictFn: TypeAlias = Callable[[Params, Any], Float[Array, "batch classes"]]
"""`(params, inputs) -> logits`, in evaluation mode."""

OutputsFn: TypeAlias = Callable[[Params, Any], Any]
"""`(params, inputs) -> outputs`, an array or any tree of arrays, in evaluation mode."""
