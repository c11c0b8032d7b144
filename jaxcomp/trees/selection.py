"""Which leaves of a pytree are compressed, and why the others are kept.

A leaf can be compressed if it holds floating-point numbers of 16 bits or more. What *is* compressed
is named by `select`; without it, `compressible` decides: by how a function uses the leaf where the
function is known (`jaxcomp.trees.uses`), else by name and shape. Compressed are weight matrices,
convolution kernels and tables of embeddings, those of many positions too; kept are biases, gains,
statistics, short tables of positions and tokens, also where they have several axes, as in stacked
layers.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp

from jaxcomp.trees.paths import leaves_by_path, matching_paths, shorten
from jaxcomp.trees.uses import LeafUse
from jaxcomp.types import Params

Select: TypeAlias = Callable[[str, Any], bool] | str | Sequence[str] | None
"""Which leaves: a predicate `(path, leaf) -> bool`, glob patterns
(`jaxcomp.trees.paths.matching_paths`), or None for what `compressible` says."""


class Decision(NamedTuple):
    """Whether a leaf is compressed, and why (or why not), in a few words."""

    is_compressed: bool
    reason: str


# Words of a leaf's own name, and what such a leaf is.
_NAMED_KINDS: dict[str, str] = {
    **dict.fromkeys(("bias", "biases", "beta", "offset", "shift"), "bias"),
    **dict.fromkeys(("scale", "scales", "gain", "gains", "gamma"), "scale"),
    **dict.fromkeys(("mean", "var", "variance", "std", "average", "ema"), "statistic"),
    **dict.fromkeys(("cls", "pos", "position", "positions", "positional"), "token or position"),
}
# Positions from which on their table is compressed as any other: kept as it is, that of a sentence
# encoder was a tenth of the file, and the other weights lost more.
_MANY_POSITIONS = 64
# Words of the names above it that say it belongs to a normalization.
_NORMALIZATIONS = frozenset(
    {
        *("norm", "norms", "normalization", "layernorm", "batchnorm", "groupnorm", "instancenorm"),
        *("rmsnorm", "ln", "bn", "gn", "stats", "statistics", "ema"),
    }
)
# Names that only matrices, kernels and tables have, also below a normalization.
_MATRIX_NAMES = frozenset({"kernel", "embedding", "embeddings"})
# Words of the names above a stack of layers, as Flax makes them.
_STACK_WORDS = frozenset({"scan", "vmap", "stack", "stacked"})
# The last level of a path in states of Flax, which names no leaf.
_WRAPPERS = frozenset({"value", "raw_value"})


def compressible(
    path: str,
    leaf: Any,
    use: LeafUse | None = None,
    *,
    siblings: Mapping[str, Any] | None = None,
) -> Decision:
    """Decide whether a leaf is compressed by default, and say why.

    Args:
        path: of the leaf.
        leaf: an array, or anything else.
        use: how a function uses it; None if none is known, which leaves its name and shape.
        siblings: the leaves beside it, by the last part of their paths; they tell a bias `b` beside
            a `w`.

    Returns:
        The decision, with its reason as a noun that can follow a number of leaves.
    """
    if (reason := uncompressible(leaf)) is not None:
        return Decision(False, reason)
    shape = jnp.shape(leaf)
    if use is not None:
        if use.kind != "matrix":
            return Decision(False, {"other": "not a factor of a product"}.get(use.kind, use.kind))
        if len(shape) < 2:
            return Decision(False, "less than two axes")
        return Decision(True, "factor of a product")
    if len(shape) < 2:
        return Decision(False, "less than two axes")
    kind = _kind_by_name(path, len(shape), siblings or {})
    is_table = kind == _NAMED_KINDS["pos"] and math.prod(shape[:-1]) >= _MANY_POSITIONS
    if kind is not None and not is_table:
        return Decision(False, f"{kind} by its name")
    if sum(size > 1 for size in shape) < 2:
        return Decision(False, "less than two axes longer than 1")
    return Decision(True, "two axes or more")


def uncompressible(leaf: Any) -> str | None:
    """Say why a leaf cannot be compressed, whoever asks; None if it can."""
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        return "no array"
    if not is_floating(leaf):
        return "not floating"
    if jnp.size(leaf) == 0:
        return "empty"
    if leaf.dtype.itemsize < 2:
        return "fewer than 16 bits"
    return None


def is_floating(leaf: Any) -> bool:
    """Tell whether a leaf holds floating-point numbers."""
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def decide(
    params: Params, select: Select = None, *, uses: Mapping[str, LeafUse] | None = None
) -> dict[str, Decision]:
    """Return the decision on every leaf, by path, in the order of the pytree.

    Args:
        params: any pytree.
        select: which leaves; it overrides everything but what cannot be compressed.
        uses: how a function uses them, if one is known.

    Raises:
        ValueError: if a pattern matches no leaf, or two leaves have one path.
        TypeError: if `select` is neither a predicate, a pattern, nor patterns.
    """
    leaves = leaves_by_path(params)
    if select is None:
        families = _families(leaves)
        return {
            path: compressible(
                path,
                leaf,
                None if uses is None else uses[path],
                siblings=families[_parent(path)],
            )
            for path, leaf in leaves.items()
        }
    chosen = set(_named_by(leaves, select))
    decisions = {}
    for path, leaf in leaves.items():
        reason = uncompressible(leaf)
        is_chosen = path in chosen and reason is None
        why = reason if reason is not None and path in chosen else "not selected"
        decisions[path] = Decision(is_chosen, "selected" if is_chosen else why)
    return decisions


def selected_paths(
    params: Params, select: Select = None, *, uses: Mapping[str, LeafUse] | None = None
) -> list[str]:
    """Return the paths of the leaves that are compressed, in the order of the pytree; see `decide`.

    Raises:
        ValueError: if a pattern matches no leaf, or two leaves have one path.
        TypeError: if `select` is neither a predicate, a pattern, nor patterns.
    """
    decisions = decide(params, select, uses=uses)
    return [path for path, decision in decisions.items() if decision.is_compressed]


def stacked_paths(params: Params, stacked: Select, among: Collection[str]) -> list[str]:
    """Return which of some leaves are stacks of layers along their leading axis.

    Args:
        params: any pytree.
        stacked: which leaves, as `select`; None for those that their names and shapes show: below
            a module that scans or vmaps (`ScanBlock_0/...`, `stack/...`), or beside a bias with
            the same leading axis (`(layers, in, out)` and `(layers, out)`).
        among: paths of the leaves in question.

    Raises:
        ValueError: if a pattern matches no leaf, or a named leaf has less than two axes.
        TypeError: as for `select`.
    """
    leaves = leaves_by_path(params)
    if stacked is None:
        families = _families(leaves)
        return [path for path in among if _is_stack(path, leaves[path], families[_parent(path)])]
    named = set(_named_by(leaves, stacked, name="stacked"))
    chosen = [path for path in among if path in named]
    for path in chosen:
        if jnp.ndim(leaves[path]) < 2:
            raise ValueError(
                f"stacked names {path!r} of shape {jnp.shape(leaves[path])}, but a stack of layers "
                "has a leading axis of layers and at least one more; leave it out."
            )
    return chosen


def _named_by(leaves: Mapping[str, Any], select: Any, *, name: str = "select") -> list[str]:
    if callable(select):
        return [path for path, leaf in leaves.items() if select(path, leaf)]
    patterns = [select] if isinstance(select, str) else select
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(
            f"{name} must be a predicate (path, leaf) -> bool, a glob pattern or several, "
            f"got {select!r}."
        )
    found: set[str] = set()
    for pattern in patterns:
        matching = matching_paths(leaves, pattern)
        if not matching:
            raise ValueError(
                f"the pattern {pattern!r} in {name} matches no leaf: paths are {shorten(leaves)}."
            )
        found.update(matching)
    return [path for path in leaves if path in found]


def _kind_by_name(path: str, num_axes: int, siblings: Mapping[str, Any]) -> str | None:
    """Say what a leaf is, if its name says that it is no matrix."""
    *above, own = _levels(path)
    words = _words(own)
    kinds = [_NAMED_KINDS[word] for word in words if word in _NAMED_KINDS]
    if kinds:  # a bias of positions is a bias
        return next((kind for kind in kinds if kind != _NAMED_KINDS["pos"]), kinds[0])
    if own == "b" and "w" in siblings:
        return _NAMED_KINDS["bias"]
    # A table of positions may be a module of its own.
    if above and {"pos", "position", "positions", "positional"}.intersection(_words(above[-1])):
        return _NAMED_KINDS["pos"]
    # The bias of a normalization is shaped like its gain; a matrix has more axes than its bias.
    has_smaller_bias = any(len(bias) < num_axes for bias in _biases(siblings))
    if own in _MATRIX_NAMES or has_smaller_bias:
        return None
    if _NORMALIZATIONS.intersection(_all_words(above)):
        return "part of a normalization"
    return None


def _is_stack(path: str, leaf: Any, siblings: Mapping[str, Any]) -> bool:
    shape = jnp.shape(leaf)
    if len(shape) < 3:
        return False
    for bias in _biases(siblings):
        # The bias of a single layer is shaped like the last axes of its kernel.
        if len(bias) < 2 or bias != shape[-len(bias) :]:
            return 2 <= len(bias) < len(shape) and bias[:1] == shape[:1]
    return bool(_STACK_WORDS.intersection(_all_words(_levels(path)[:-1])))


def _biases(siblings: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Shapes of the biases among some leaves."""
    return [
        jnp.shape(leaf) for name, leaf in siblings.items() if name == "b" or "bias" in _words(name)
    ]


def _families(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The leaves below each parent, by their own names."""
    families: dict[str, dict[str, Any]] = {}
    for path, leaf in leaves.items():
        families.setdefault(_parent(path), {})[_levels(path)[-1]] = leaf
    return families


def _parent(path: str) -> str:
    return "/".join(_levels(path)[:-1])


def _levels(path: str) -> list[str]:
    levels = re.split(r"[/.]", path)  # PyTorch's state dictionaries join their levels by dots
    return levels[:-1] if len(levels) > 1 and levels[-1] in _WRAPPERS else levels


def _all_words(names: Iterable[str]) -> set[str]:
    return {word for name in names for word in _words(name)}


def _words(name: str) -> list[str]:
    """The words of a name in any of the usual spellings, in lower case: `ScanBlock_0`, `norm1`."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
