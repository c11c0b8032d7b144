"""Where arrays lie: how weights and examples are spread over a mesh of devices.

What is computed for a weight lies where the weight does, and examples stay on the devices that hold
them: sums over a data set are the only thing that is exchanged. Which axes those are is read from
the arguments, before anything is traced, and goes into programs as something static.

Kernels are written for axes that the compiler fills in by itself. Arrays over explicit axes (which
`jax.make_mesh` gives by default) enter as arrays over automatic ones, the same memory, and results
have explicit axes again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


class Placement(NamedTuple):
    """How weights and a batch are spread; a static argument of programs.

    Attributes:
        mesh: of the devices.
        weights: the spec of each leaf of the weights; None for one that is not spread.
        examples: the names of the axes over which the leading axis of the batch is spread.
    """

    mesh: Mesh
    weights: tuple[PartitionSpec | None, ...]
    examples: tuple[str, ...]

    @property
    def num_shards(self) -> int:
        """Over how many devices the examples are spread."""
        return _size(self.mesh, self.examples)

    def like_weights(self, tree: Any, num_leading: int = 0) -> Any:
        """Let what belongs to the weights lie where they do, perhaps with leading axes.

        For use in programs; elsewhere arrays are moved.
        """
        leaves, structure = jax.tree.flatten(tree)
        if len(leaves) != len(self.weights):
            return tree
        return structure.unflatten(
            [
                leaf
                if spec is None or leaf.ndim < num_leading + len(spec)
                else lax.with_sharding_constraint(
                    leaf, NamedSharding(self.mesh, PartitionSpec(*(None,) * num_leading, *spec))
                )
                for leaf, spec in zip(leaves, self.weights, strict=True)
            ]
        )

    def like_examples(self, tree: Any) -> Any:
        """Let arrays with a leading axis of examples lie where the batch does."""
        sharding = NamedSharding(self.mesh, PartitionSpec(self.examples))
        return jax.tree.map(lambda x: lax.with_sharding_constraint(x, sharding), tree)


def placement_of(weights: Any, batch: Any) -> Placement | None:
    """Return how known arrays are spread over a mesh; None if none of them is.

    Args:
        weights: a tree; where it is not known (while a program is traced) nothing is.
        batch: arrays whose leading axes are examples. Only if all are spread alike over it the
            examples count as spread.
    """
    own = [_sharding_of(leaf) for leaf in jax.tree.leaves(weights)]
    of_batch = [_sharding_of(leaf) for leaf in jax.tree.leaves(batch)]
    meshes = {one.mesh for one in (*own, *of_batch) if one is not None}
    if len(meshes) != 1:
        return None
    mesh = meshes.pop()
    specs = tuple(None if one is None or one.is_fully_replicated else one.spec for one in own)
    leading = {_leading_axes(one) for one in of_batch}
    examples = leading.pop() if len(leading) == 1 else ()
    if _size(mesh, examples) == 1:
        examples = ()
    if not examples and all(spec is None for spec in specs):
        return None
    return Placement(mesh, specs, examples)


def _sharding_of(leaf: Any) -> NamedSharding | None:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return None
    return leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None


def _leading_axes(sharding: NamedSharding | None) -> tuple[str, ...]:
    if sharding is None or not sharding.spec or sharding.spec[0] is None:
        return ()
    first = sharding.spec[0]
    return first if isinstance(first, tuple) else (first,)


def _size(mesh: Mesh, axes: tuple[str, ...]) -> int:
    size = 1
    for axis in axes:
        size *= mesh.shape[axis]
    return size


_PLACED: ContextVar[Placement | None] = ContextVar("placement", default=None)


@contextmanager
def placed(placement: Placement | None) -> Iterator[None]:
    """Say, while a program is traced, how its batch is spread; for `placed_examples`."""
    token = _PLACED.set(placement)
    try:
        yield
    finally:
        _PLACED.reset(token)


def placed_examples() -> Placement | None:
    """Return how the batch of the program that is traced is spread; None if it is not."""
    own = _PLACED.get()
    return own if own is not None and own.examples else None


_Move = Callable[[Any], Any]


@contextmanager
def automatic_axes(*trees: Any) -> Iterator[tuple[_Move, _Move]]:
    """Work on arrays over explicit axes of a mesh as on ones over automatic axes.

    Args:
        trees: some of the arrays. If none is over explicit axes, nor the mesh of `jax.set_mesh`,
            nothing is done; nor while a program is traced.

    Yields:
        What makes arrays ones over automatic axes, and what undoes it.
    """
    mesh = _explicit_mesh(trees)
    if mesh is None:
        yield _as_it_is, _as_it_is
        return
    kinds = tuple(AxisType.Auto if k == AxisType.Explicit else k for k in mesh.axis_types)
    own = Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)
    with jax.set_mesh(own):
        yield (lambda tree: _over(tree, own)), (lambda tree: _over(tree, mesh))


def _as_it_is(tree: Any) -> Any:
    return tree


def _explicit_mesh(trees: Any) -> Mesh | None:
    try:
        ambient = jax.sharding.get_mesh()
    except ValueError:  # what JAX says while it traces, when no mesh can be set either
        return None
    own = (_sharding_of(leaf) for leaf in jax.tree.leaves(trees))
    meshes = [one.mesh for one in own if one is not None] + [ambient]
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def _over(tree: Any, mesh: Mesh) -> Any:
    """Return arrays as ones over another mesh of the same devices; nothing is copied."""

    def leaf(x: Any) -> Any:
        own = _sharding_of(x)
        if own is None or own.mesh.axis_names != mesh.axis_names:
            return x
        return jax.device_put(x, NamedSharding(mesh, own.spec))

    return jax.tree.map(leaf, tree)
