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
    meshes = {_mesh_of(one) for one in (*own, *of_batch) if one is not None}
    if len(meshes) != 1:
        return None
    mesh = meshes.pop()
    specs = tuple(None if one is None or one.is_fully_replicated else one.spec for one in own)
    leading = {_leading_axes(one) for one in of_batch}
    examples = leading.pop() if len(leading) == 1 else ()
    number = _size(mesh, examples)
    # What is filled up to be spread evenly is left to the compiler.
    if number == 1 or any(leaf.shape[0] % number for leaf in jax.tree.leaves(batch)):
        examples = ()
    if not examples and all(spec is None for spec in specs):
        return None
    return Placement(mesh, specs, examples)


def _sharding_of(leaf: Any) -> NamedSharding | None:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, Tracer):
        return None
    return leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None


def _mesh_of(sharding: NamedSharding) -> Mesh:
    """Return the mesh of a known array, which has devices."""
    assert isinstance(sharding.mesh, Mesh)
    return sharding.mesh


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


@contextmanager
def automatic_axes(*trees: Any) -> Iterator[Callable[[Any], Any]]:
    """Work on arrays over automatic axes of a mesh, whatever kind of axes they came over.

    Args:
        trees: some of the arrays; those that are worked on go through `to_automatic`.

    Yields:
        What makes results ones over the kind of axes that the arrays, or the mesh of
        `jax.set_mesh`, have. Nothing is done while a program is traced.
    """
    mesh = _explicit_mesh(trees)
    if mesh is None:
        yield lambda tree: tree
        return
    with jax.set_mesh(_automatic(mesh)):
        yield lambda tree: jax.tree.map(lambda x: _over(x, mesh), tree)


def to_automatic(tree: Any) -> Any:
    """Return arrays over explicit axes as ones over automatic axes; nothing is copied.

    An array that occurs twice (tied weights) does so in the result.
    """
    known: dict[int, Any] = {}

    def leaf(x: Any) -> Any:
        own = _sharding_of(x)
        if own is None or not _is_explicit(own.mesh):
            return x
        if id(x) not in known:
            known[id(x)] = _over(x, _automatic(own.mesh))
        return known[id(x)]

    return jax.tree.map(leaf, tree)


def on_one_device(tree: Any) -> Any:
    """Return arrays that several devices hold on the first of them; others as they are."""

    def leaf(x: Any) -> Any:
        if not isinstance(x, jax.Array) or isinstance(x, Tracer) or len(x.devices()) == 1:
            return x
        if x.is_fully_replicated:
            return x.addressable_data(0)
        return jax.device_put(x, min(x.devices(), key=lambda device: device.id))

    return jax.tree.map(leaf, tree)


def _explicit_mesh(trees: Any) -> Mesh | None:
    try:
        ambient = jax.sharding.get_mesh()
    except ValueError:  # what JAX says while it traces, when no mesh can be set either
        return None
    own = (_sharding_of(leaf) for leaf in jax.tree.leaves(trees))
    meshes = [_mesh_of(one) for one in own if one is not None]
    return next((mesh for mesh in (*meshes, ambient) if _is_explicit(mesh)), None)


def _is_explicit(mesh: Any) -> bool:
    return AxisType.Explicit in mesh.axis_types


def _automatic(mesh: Any) -> Mesh:
    kinds = tuple(AxisType.Auto if k == AxisType.Explicit else k for k in mesh.axis_types)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


def _over(x: Any, mesh: Mesh) -> Any:
    """Return an array over a mesh of the same axes; one that lies elsewhere as it is."""
    own = _sharding_of(x)
    if own is None or own.mesh.axis_names != mesh.axis_names:
        return x
    return jax.device_put(x, NamedSharding(mesh, own.spec))
