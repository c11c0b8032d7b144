"""Weights by name: which leaves of a pytree are compressed, and how they are put back.

A path is the leaf's key path joined by `/`, e.g. `params/hidden_0/kernel`. Any pytree that JAX
knows will do: nested dicts, Linen variables, NNX states, lists, named tuples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxcomp.types import Params

Select: TypeAlias = Callable[[str, Any], bool] | str | Sequence[str] | None
"""Which leaves: a predicate `(path, leaf) -> bool`, glob patterns, or None for the default,
floating-point leaves with at least two axes (weight matrices and convolution kernels)."""


def leaves_by_path(params: Params) -> dict[str, Any]:
    """Map every leaf's path to the leaf, in the order of the pytree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {_path_string(path): leaf for path, leaf in leaves}


def selected_paths(params: Params, select: Select = None) -> list[str]:
    """Return the paths of the leaves that `select` names, in the order of the pytree.

    Raises:
        ValueError: if a pattern matches no leaf.
        TypeError: if `select` is neither a predicate, a pattern, nor patterns.
    """
    leaves = leaves_by_path(params)
    if select is None:
        return [path for path, leaf in leaves.items() if is_weight(leaf)]
    if callable(select):
        return [path for path, leaf in leaves.items() if select(path, leaf)]
    patterns = [select] if isinstance(select, str) else select
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(
            f"select must be a predicate (path, leaf) -> bool, a glob pattern or several, "
            f"got {select!r}."
        )
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in leaves):
            raise ValueError(
                f"the pattern {pattern!r} in select matches no leaf: paths are {shorten(leaves)}."
            )
    return [path for path in leaves if any(fnmatchcase(path, p) for p in patterns)]


def is_weight(leaf: Any) -> bool:
    """Tell whether a leaf is compressed by default: floating-point, two axes or more, not empty."""
    return is_floating(leaf) and jnp.ndim(leaf) >= 2 and jnp.size(leaf) > 0


def is_floating(leaf: Any) -> bool:
    """Tell whether a leaf holds floating-point numbers."""
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def replace_leaves(params: Params, leaves: Mapping[str, Any]) -> Params:
    """Return `params` with the named leaves replaced; a name that is not there is a `KeyError`."""
    entries, structure = jax.tree_util.tree_flatten_with_path(params)
    missing = set(leaves) - {_path_string(path) for path, _ in entries}
    if missing:
        raise KeyError(f"no leaves named {sorted(missing)} in the pytree.")
    return jax.tree_util.tree_unflatten(
        structure, [leaves.get(_path_string(path), leaf) for path, leaf in entries]
    )


def shorten(names: Iterable[str], limit: int = 8) -> str:
    """List the first few names, for a message."""
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "") or "none"


def _path_string(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
