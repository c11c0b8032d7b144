"""A network as it was handed in, the form in which a sweep works on it, and the way back.

A sweep works on a tree of arrays on the same devices, in dtypes that JAX has. A tree that is handed
in may be a module with functions among its leaves, hold tensors of PyTorch or NumPy's float64, or
be spread over devices.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from jaxcomp import storage
from jaxcomp.trees.description import plain_array
from jaxcomp.trees.leaves import (
    Frame,
    Framed,
    is_wide,
    split_constants,
    warn_of_wide,
    with_readable_leaves,
)
from jaxcomp.trees.paths import leaves_by_path, replace_leaves
from jaxcomp.types import Params, PredictFn


@dataclass(frozen=True)
class Given:
    """A network that was handed in.

    Attributes:
        predict_fn: of `params`, hashable.
        params: its arrays.
        frame: all other leaves, in their places.
        dtypes: of the leaves that JAX would cut, by path.
        shardings: of the leaves that were moved, by path.
    """

    predict_fn: PredictFn
    params: Params
    frame: Frame
    dtypes: dict[str, np.dtype]
    shardings: dict[str, Sharding]

    @classmethod
    def from_params(cls, predict_fn: PredictFn, params: Params) -> "Given":
        """Take a function and a tree of parameters.

        Raises:
            TypeError: if the function cannot be hashed, or a leaf is a masked array.
            ValueError: if two leaves have the same path.

        Warns:
            UserWarning: if leaves are float64 while JAX has 32 bits.
        """
        try:
            hash(predict_fn)
        except TypeError:
            raise TypeError(
                "predict_fn must be hashable: pass a function, not an object with mutable state."
            ) from None
        arrays, frame = split_constants(with_readable_leaves(params))
        leaves = leaves_by_path(arrays)
        warn_of_wide(leaves)
        dtypes = {path: leaf.dtype for path, leaf in leaves.items() if _is_wide(leaf)}
        narrow = {path: leaves[path].astype(np.float32) for path in dtypes}
        moved = _on_the_same_devices({**leaves, **narrow})
        shardings = {path: leaves[path].sharding for path in moved if path not in dtypes}
        arrays = replace_leaves(arrays, {**narrow, **moved})
        function = predict_fn if frame.is_empty else Framed(predict_fn, frame)
        return cls(function, arrays, frame, dtypes, shardings)

    def arrays_of(self, params: Params, name: str) -> Params:
        """Return the arrays of another tree of the same structure, on the same devices.

        Args:
            params: the tree.
            name: what it is called in messages.

        Raises:
            ValueError: if its structure is another, or a leaf has another shape or dtype.
        """
        arrays, frame = split_constants(with_readable_leaves(params))
        self._check_like(arrays, frame, name)
        placed = leaves_by_path(self.params)
        return replace_leaves(
            arrays,
            {
                path: _like(np.asarray(leaf, np.float32) if _is_wide(leaf) else leaf, placed[path])
                for path, leaf in leaves_by_path(arrays).items()
            },
        )

    def check_same_kind(self, other: "Given", name: str) -> None:
        """Refuse another network that is not of the same kind.

        Args:
            other: the network.
            name: what it is called in messages.

        Raises:
            ValueError: if its structure is another, a leaf has another shape, or what is no array
                in it differs.
        """
        self._check_like(other.params, other.frame, name)
        if other.predict_fn != self.predict_fn:
            raise ValueError(
                f"{name} must have the functions and numbers of the first network among its "
                "leaves: only arrays may differ."
            )

    def _check_like(self, arrays: Params, frame: Frame, name: str) -> None:
        if frame.structure != self.frame.structure:
            raise ValueError(
                f"{name} must have the structure of the first network's params, got "
                f"{frame.structure} instead of {self.frame.structure}."
            )
        own = leaves_by_path(self.params)
        for path, leaf in leaves_by_path(arrays).items():
            if jnp.shape(leaf) != jnp.shape(own[path]):
                raise ValueError(
                    f"{name} must be shaped like the first network's params, but {path} is "
                    f"{jnp.shape(leaf)} instead of {jnp.shape(own[path])}."
                )

    def restore(self, arrays: Params) -> Params:
        """Return the tree that was handed in with other arrays: its dtypes, devices, constants."""
        leaves = leaves_by_path(arrays)
        wide = {path: np.asarray(leaves[path], dtype) for path, dtype in self.dtypes.items()}
        placed = {
            path: jax.device_put(leaves[path], sharding)
            for path, sharding in self.shardings.items()
        }
        return self.frame.fill(replace_leaves(arrays, {**placed, **wide}))

    def spread(self) -> "Given":
        """Return the same with arrays that every local device may compute with.

        Arrays of one device that are bound to it become ones that go where a program runs. The
        same object if arrays are spread over devices already, or there is one device only.
        """
        leaves = {p: x for p, x in leaves_by_path(self.params).items() if isinstance(x, jax.Array)}
        if len(jax.local_devices()) < 2 or any(
            len(leaf.sharding.device_set) > 1 for leaf in leaves.values()
        ):
            return self
        bound = {
            p: x for p, x in leaves.items() if not jnp.issubdtype(x.dtype, jax.dtypes.extended)
        }
        free = {path: jnp.asarray(np.asarray(leaf)) for path, leaf in bound.items()}
        places = {path: leaf.sharding for path, leaf in bound.items()} | self.shardings
        return replace(self, params=replace_leaves(self.params, free), shardings=places)

    def refreshed_by(self, refresh_fn: Callable[..., Params]) -> Callable[..., Params]:
        """Return a function that re-estimates statistics as one of the arrays alone."""

        def refresh(arrays: Params, inputs: Any) -> Params:
            return split_constants(refresh_fn(self.frame.fill(arrays), inputs))[0]

        return refresh_fn if self.frame.is_empty else refresh

    def fingerprint(self) -> str:
        """Hash the arrays and constants."""
        constants = [
            None if held is None else _name_of(held.value) for held in self.frame.constants
        ]
        return fingerprint_of(self.params, constants)


def fingerprint_of(params: Params, constants: Any = None) -> str:
    """Hash the arrays of a tree, by path."""
    arrays = {path: plain_array(leaf) for path, leaf in leaves_by_path(params).items()}
    return storage.fingerprint([arrays, constants] if constants is not None else arrays)


def _is_wide(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and is_wide(leaf.dtype)


def _name_of(value: Any) -> Any:
    """A constant as it can be hashed alike in every process."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return value.item()
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', '')}.{name}"


def _on_the_same_devices(leaves: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves that have to move so that all are on the same devices, moved.

    One program has one set of devices. Leaves move to those of the most widely spread leaf, to
    each of them; to the first leaf's device if none is spread.
    """
    arrays = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, jax.Array)}
    if len({frozenset(leaf.sharding.device_set) for leaf in arrays.values()}) < 2:
        return {}
    widest = max(arrays.values(), key=lambda leaf: len(leaf.sharding.device_set)).sharding
    target: Any = widest
    if isinstance(widest, NamedSharding):
        target = NamedSharding(widest.mesh, PartitionSpec())
    elif len(widest.device_set) > 1:
        target = min(widest.device_set, key=lambda device: device.id)
    devices = {target} if not isinstance(target, Sharding) else target.device_set
    return {
        path: jax.device_put(leaf, target)
        for path, leaf in arrays.items()
        if leaf.sharding.device_set != devices
    }


def _like(leaf: Any, placed: Any) -> Any:
    """Put a leaf where another one is."""
    if isinstance(placed, jax.Array) and isinstance(leaf, jax.Array):
        return jax.device_put(leaf, placed.sharding)
    return jnp.asarray(leaf) if isinstance(placed, jax.Array) else leaf
