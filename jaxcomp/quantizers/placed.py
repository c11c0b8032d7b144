"""Kernels of groups of points on arrays that lie on many devices: no weight leaves its own.

A kernel runs within `jax.shard_map`: each device has some of the groups, and of these some of the
points. What it adds up over points it adds up over devices (`jaxcomp.numerics.across`): a few
tables as long as there are bins, whatever the number of points. Codes lie where their points do.

Axes of a mesh are named by what they cut, in a mesh of the same devices: `groups0`, `points0`,
`points1`, ... Axes that cut nothing hold copies. Explicit axes are automatic ones there.

Where arrays are traced, under the caller's own `jit`, nothing is known of their devices; XLA
divides the kernel as it sees fit, which may gather the points.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from jaxcomp.numerics.across import POINTS
from jaxcomp.numerics.checks import is_concrete

Axes = tuple[str, ...]


class Spread(NamedTuple):
    """How an array is spread over devices; static.

    Attributes:
        mesh: of the devices, its axes named by what they cut.
        own: the mesh as the caller has it.
        cuts: the axes that cut each axis of the array.
    """

    mesh: Mesh
    own: Mesh
    cuts: tuple[Axes, ...]

    def put(self, values: Any, spec: PartitionSpec) -> Array:
        """Let an array lie so; where it does already nothing is copied."""
        if isinstance(values, jax.Array) and not self.mesh.is_multi_process:
            return jax.device_put(values, NamedSharding(self.mesh, spec))
        if isinstance(values, jax.Array) and values.is_fully_addressable:
            values = np.asarray(values)  # what other processes have as well
        return jax.device_put(values, NamedSharding(self.mesh, spec))

    def leave(self, values: Array) -> Array:
        """Return a result over the mesh of the caller."""
        names = dict(zip(self.mesh.axis_names, self.own.axis_names, strict=True))
        assert isinstance(values.sharding, NamedSharding)
        spec = (_renamed(entry, names) for entry in values.sharding.spec)
        return jax.device_put(values, NamedSharding(self.own, PartitionSpec(*spec)))

    def spec(self, shape: tuple[int, ...], num_core: int = 0) -> PartitionSpec:
        """Return the spec of an array that broadcasts against the leading axes of the points.

        Args:
            shape: of the array.
            num_core: how many axes it has behind these.
        """
        leading = shape[: len(shape) - num_core]
        cuts = self.cuts[:-1][-len(leading) :] if leading else ()
        cuts = ((),) * (len(leading) - len(cuts)) + cuts
        entries = (cut if size > 1 else None for size, cut in zip(leading, cuts, strict=True))
        return PartitionSpec(*(entry or None for entry in entries))


def spread_of(values: Any, *, as_one_group: bool = False) -> Spread | None:
    """Return how a known array is spread over devices; None if it is not.

    Args:
        values: an array, with points along the last axis.
        as_one_group: whether all of it is one group of points.
    """
    if not isinstance(values, jax.Array) or not is_concrete(values):
        return None
    sharding = values.sharding
    if not isinstance(sharding, NamedSharding) or sharding.is_fully_replicated or not values.ndim:
        return None
    try:
        jax.sharding.get_mesh()
    except ValueError:  # what JAX says while it traces, when no mesh can be set either
        return None
    assert isinstance(sharding.mesh, Mesh)
    entries = (*sharding.spec, *(None,) * (values.ndim - len(sharding.spec)))
    cuts = [() if e is None else (e if isinstance(e, tuple) else (e,)) for e in entries]
    names: dict[str, str] = {}
    for place, cut in enumerate(cuts):
        is_points = as_one_group or place == values.ndim - 1
        for axis in cut:
            kind = POINTS if is_points else "groups"
            number = sum(name.startswith(kind) for name in names.values())
            names[axis] = f"{kind}{number}"
    return _spread(sharding.mesh, names, tuple(tuple(names[a] for a in cut) for cut in cuts))


def _spread(own: Mesh, names: dict[str, str], cuts: tuple[Axes, ...]) -> Spread:
    axes = tuple(names.get(axis, f"copies of {axis}") for axis in own.axis_names)
    mesh = Mesh(own.devices, axes, axis_types=(AxisType.Auto,) * len(axes))
    return Spread(mesh, own, cuts)


def _with_whole_groups(spread: Spread) -> Spread:
    """Return where groups are, with all points of a group on each of its devices."""
    roles = zip(spread.mesh.axis_names, spread.own.axis_names, strict=True)
    names = {own: role for role, own in roles if role.startswith("groups")}
    return _spread(spread.own, names, (*spread.cuts[:-1], ()))


def _renamed(entry: Any, names: dict[str, str]) -> Any:
    if entry is None:
        return None
    return tuple(names[axis] for axis in (entry if isinstance(entry, tuple) else (entry,)))


def run(
    kernel: Callable[..., Any],
    spread: Spread,
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None,
    *arguments: tuple[Any, int],
    whole_up_to: int,
    result: Any = None,
    **options: Any,
) -> Any:
    """Run a kernel on devices, each with its groups and points.

    Args:
        kernel: `(points, importance, *arguments, **options)`, of groups along leading axes.
        spread: how the points are spread.
        points: (..., N).
        importance: broadcastable to the points, or None.
        arguments: arrays (or None) that broadcast against the leading axes, each with the number
            of axes behind these.
        whole_up_to: groups of at most so many points are sorted, and therefore whole on each
            device that has a part of one.
        result: a named tuple whose field `assignments` is of points, all others of groups; or
            "points", or None, where all of it is of one kind.
        options: static.

    Returns:
        What the kernel returns, over the mesh of the points.
    """
    original = spread
    if points.shape[-1] <= whole_up_to:
        spread = _with_whole_groups(spread)
    batch, of_points = spread.spec(points.shape, 1), (spread.cuts[-1] or None,)
    specs = [PartitionSpec(*batch, *of_points)]
    values: list[Any] = [points, importance]
    if importance is None:
        specs.append(PartitionSpec())
    else:
        shape = np.shape(importance)
        own = of_points if shape and shape[-1] > 1 else (None,) * bool(shape)
        specs.append(PartitionSpec(*spread.spec(shape, min(len(shape), 1)), *own))
    num_axes = points.ndim - 1
    for value, num_core in arguments:
        values.append(value)
        shape = np.shape(value)
        specs.append(PartitionSpec() if value is None else spread.spec(shape, num_core))
        num_axes = max(num_axes, 0 if value is None else len(shape) - num_core)
    batch = PartitionSpec(*(None,) * (num_axes - points.ndim + 1), *batch)
    out = PartitionSpec(*batch, *of_points)
    if result is None:
        out = batch
    elif result != "points":
        out = result(*(out if name == "assignments" else batch for name in result._fields))
    with jax.set_mesh(spread.mesh):
        placed = [
            None if value is None else spread.put(value, spec)
            for value, spec in zip(values, specs, strict=True)
        ]
        found = compiled(
            *placed,
            kernel=kernel,
            mesh=spread.mesh,
            in_specs=tuple(specs),
            out_specs=out,
            options=tuple(options.items()),
        )
        found = jax.tree.map(spread.leave, found)
    if spread is original or result is None:
        return found
    # Back to where its points are.
    assert isinstance(points.sharding, NamedSharding)
    entries = (*points.sharding.spec, *(None,) * points.ndim)[: points.ndim]
    extra = (None,) * (num_axes - points.ndim + 1)
    sharding = NamedSharding(original.own, PartitionSpec(*extra, *entries))
    if result == "points":
        return jax.device_put(found, sharding)
    return found._replace(assignments=jax.device_put(found.assignments, sharding))


def run_on_parts(
    kernel: Callable[..., Any],
    spread: Spread,
    arrays: tuple[Shaped[Any, "*shape"] | None, ...],
    tables: tuple[Any, ...] = (),
    *,
    result: Any = None,
    **options: Any,
) -> Any:
    """Run a kernel on the parts that devices have of one group of weights of any shape.

    Args:
        kernel: `(*parts, *tables, **options)`.
        spread: how the weights are spread, as one group.
        arrays: of the shape of the weights (or None).
        tables: what every device gets whole.
        result: the specs of what the kernel returns; None if it is shaped like the weights.
        options: static.

    Returns:
        What the kernel returns, over the mesh of the weights.
    """
    own = PartitionSpec(*(cut or None for cut in spread.cuts))
    specs = [PartitionSpec() if array is None else own for array in arrays]
    specs += [PartitionSpec() for _ in tables]
    with jax.set_mesh(spread.mesh):
        placed = [
            jax.tree.map(partial(spread.put, spec=spec), value)
            for value, spec in zip((*arrays, *tables), specs, strict=True)
        ]
        found = compiled(
            *placed,
            kernel=kernel,
            mesh=spread.mesh,
            in_specs=tuple(specs),
            out_specs=own if result is None else result,
            options=tuple(options.items()),
        )
        return jax.tree.map(spread.leave, found)


@partial(jax.jit, static_argnames=("kernel", "mesh", "in_specs", "out_specs", "options"))
def compiled(
    *values: Any,
    kernel: Callable[..., Any],
    mesh: Mesh,
    in_specs: tuple[PartitionSpec, ...],
    out_specs: Any,
    options: tuple[tuple[str, Any], ...],
) -> Any:
    """Return what a kernel makes of the parts of arrays, as one program."""
    on_device = partial(kernel, **dict(options))
    # What is the same on several devices, because it comes from the same sums, is not proven so.
    return jax.shard_map(
        on_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )(*values)


def over_groups(kernel: Callable[..., Any], points: Any, *, whole_up_to: int) -> Callable[..., Any]:
    """Return what runs a kernel where its points are; its arguments as in `run`.

    Args:
        kernel: of groups, whose results are all of groups.
        points: that it will be called with.
        whole_up_to: see `run`.
    """
    spread = spread_of(points)

    def call(points: Any, importance: Any, *arguments: tuple[Any, int], **options: Any) -> Any:
        if spread is None:
            return kernel(points, importance, *(value for value, _ in arguments), **options)
        return run(
            kernel, spread, points, importance, *arguments, whole_up_to=whole_up_to, **options
        )

    return call


def over_devices(
    whole_up_to: Callable[..., int],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a kernel of points and importances, whose results are of groups.

    Args:
        whole_up_to: see `run`; of the options of the kernel. Points that are filled up (the option
            `num_padding`) are not spread over devices.
    """

    def decorate(kernel: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(kernel)
        def wrapped(
            points: Any, importance: Any = None, *, num_padding: Any = None, **options: Any
        ) -> Any:
            if num_padding is not None:
                return kernel(points, importance, num_padding=num_padding, **options)
            call = over_groups(kernel, points, whole_up_to=whole_up_to(**options))
            return call(points, importance, **options)

        return wrapped

    return decorate
