"""Weights by name: every leaf of a pytree has a path, and is put back by it.

A path is the leaf's key path joined by `/`, e.g. `params/hidden_0/kernel`; that of a tree that is
a single array is empty. Any pytree that JAX knows will do: nested dicts, Linen variables, NNX
states, lists, named tuples, modules. A key may hold a slash itself (as the names of Haiku's modules
do), as long as no two leaves come to the same path. A path names a leaf of a tree at hand; what
rebuilds a tree from a file is in `jaxcomp.trees.description`.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax

from jaxcomp.types import Params


def leaves_by_path(params: Params) -> dict[str, Any]:
    """Map every leaf's path to the leaf, in the order of the pytree.

    Raises:
        ValueError: if two leaves have the same path.
    """
    return dict(_named_leaves(params)[0])


def replace_leaves(params: Params, leaves: Mapping[str, Any]) -> Params:
    """Return `params` with the named leaves replaced; a name that is not there is a `KeyError`."""
    entries, structure = _named_leaves(params)
    missing = set(leaves) - {path for path, _ in entries}
    if missing:
        raise KeyError(f"no leaves named {sorted(missing)} in the pytree.")
    return structure.unflatten([leaves.get(path, leaf) for path, leaf in entries])


def path_string(path: Sequence[Any]) -> str:
    """Return a key path of JAX as a path."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def matching_paths(paths: Iterable[str], pattern: str) -> list[str]:
    """Return the paths that a glob pattern matches.

    `*` stands for any characters, slashes included, and `?` for one. Brackets stand for
    themselves if that matches a path, as in `w[0]`, else for a choice, as in `layer_[01]/*`.
    """
    paths = list(paths)
    literal = pattern.replace("[", "[[]")
    found = [path for path in paths if fnmatchcase(path, literal)]
    return found or [path for path in paths if fnmatchcase(path, pattern)]


def shorten(names: Iterable[str], limit: int = 8) -> str:
    """List the first few names, for a message."""
    names = list(names)
    shown = [name or "(the whole tree)" for name in names[:limit]]
    return ", ".join(shown) + (", ..." if len(names) > limit else "") or "none"


def _named_leaves(params: Params) -> tuple[list[tuple[str, Any]], Any]:
    entries, structure = jax.tree_util.tree_flatten_with_path(params)
    named = [(path_string(path), leaf) for path, leaf in entries]
    if len({path for path, _ in named}) < len(named):
        seen: set[str] = set()
        twice = next(path for path, _ in named if path in seen or seen.add(path))
        raise ValueError(
            f"two leaves of the tree have the path {twice!r}, since some keys contain '/'; rename "
            "a key, so that each path is that of one leaf."
        )
    return named, structure
