"""Pytrees in files: a description of a tree that JSON can hold, and arrays by path.

Dicts (with their order, and keys that are text, whole numbers or tuples of them), lists, tuples and
None come back as they were; so do numbers and text among the leaves. Nodes of other types (named
tuples, dataclasses, modules, states of Flax) come back as nested dicts by the names of their
fields, and functions not at all, unless a tree of the same structure is at hand. Nothing is
pickled.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.trees.leaves import is_array
from jaxcomp.trees.paths import leaves_by_path, path_string, replace_leaves, shorten
from jaxcomp.types import Params


def describe_tree(tree: Params) -> Any:
    """Return what `rebuild_tree` needs beside the arrays, as JSON can hold it.

    A node is a list: its kind, then what is in it.
    """
    return _describe(tree, ())


def rebuild_tree(
    description: Any, leaves: Mapping[str, Any], *, like: Params | None = None
) -> Params:
    """Undo `describe_tree`.

    Args:
        description: of the tree.
        leaves: its arrays by path.
        like: a tree of the same paths, whose structure, functions and other constants the result
            takes over; None for what the file alone gives.

    Raises:
        ValueError: if `like` lacks an array, a leaf is missing that no file holds, or the
            description is not one.
    """
    if like is not None:
        lacking = set(leaves) - set(leaves_by_path(like))
        if lacking:
            raise ValueError(
                f"like has no leaves {shorten(sorted(lacking))}, which the stored tree has; pass a "
                "tree of the structure that was compressed."
            )
        return replace_leaves(like, leaves)
    missing: list[str] = []
    try:
        tree = _rebuild(description, leaves, missing)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the description of the tree is damaged: {error}; write the file again."
        ) from error
    if missing:
        raise ValueError(
            f"no file holds the leaves {shorten(missing)}, which are no arrays, numbers or text; "
            "pass like=, a tree of the structure that was compressed, such as a new model."
        )
    return tree


def plain_array(leaf: Any) -> np.ndarray:
    """Return an array as any file can hold it: short dtypes as their bits, a random key as data."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def dtype_name(leaf: Any) -> str:
    """Return the name of a leaf's dtype, with which `array_of_dtype` reads its plain array back."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return f"{KEY}{jax.random.key_impl(leaf)}"
    return np.dtype(leaf.dtype).name


def array_of_dtype(array: np.ndarray, name: str) -> Any:
    """Undo `plain_array`, given the name of the dtype."""
    if name.startswith(KEY):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=name.removeprefix(KEY))
    if array.dtype.name == name:
        return array
    return array.view(np.dtype(getattr(jnp, name)))


KEY = "key of "
"""What the name of a dtype of random keys begins with, before that of their implementation."""


def _describe(node: Any, path: tuple[Any, ...]) -> Any:
    if node is None:
        return ["none"]
    if jax.tree_util.all_leaves([node]):
        if is_array(node):
            return ["array", path_string(path)]
        if getattr(node, "dtype", None) == jax.dtypes.float0:
            return ["float0", list(node.shape)]
        value = node.item() if isinstance(node, np.generic) else node
        if type(value) in (bool, int, float, str):
            return ["constant", value, type(node).__name__]
        return ["missing", path_string(path)]
    # One level: everything below the node counts as a leaf.
    entries, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda inner: inner is not node)
    children = [_describe(child, (*path, *key)) for key, child in entries]
    kind = type(node)
    if kind in _DICTS and all(_is_plain_key(key) for key in node):
        # The order of the keys in the dict, not that of JAX.
        by_key = {key[0].key: child for (key, _), child in zip(entries, children, strict=True)}
        return [kind.__name__, [[_plain_key(key), by_key[key]] for key in node]]
    if kind in (list, tuple):
        return [kind.__name__, children]
    fields = [path_string(key) for key, _ in entries]
    return ["fields", list(map(list, zip(fields, children, strict=True)))]


def _rebuild(node: Any, leaves: Mapping[str, Any], missing: list[str]) -> Any:
    kind, *content = node
    match kind:
        case "none":
            return None
        case "array":
            return leaves[content[0]]
        case "constant":
            value, name = content
            return np.dtype(name).type(value) if name not in _PLAIN_TYPES else value
        case "float0":
            return np.zeros(tuple(content[0]), jax.dtypes.float0)
        case "missing":
            missing.append(content[0])
            return None
        case "list":
            return [_rebuild(child, leaves, missing) for child in content[0]]
        case "tuple":
            return tuple(_rebuild(child, leaves, missing) for child in content[0])
        case _:
            make = OrderedDict if kind == "OrderedDict" else dict
            return make(
                (_key_of(key), _rebuild(child, leaves, missing)) for key, child in content[0]
            )


_DICTS = (dict, OrderedDict)
_PLAIN_TYPES = ("bool", "int", "float", "str")


def _is_plain_key(key: Any) -> bool:
    if type(key) is tuple:
        return all(_is_plain_key(part) for part in key)
    return type(key) in (str, int)


def _plain_key(key: Any) -> Any:
    return [_plain_key(part) for part in key] if isinstance(key, tuple) else key


def _key_of(plain: Any) -> Any:
    return tuple(_key_of(part) for part in plain) if isinstance(plain, list) else plain
