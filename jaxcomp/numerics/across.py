"""Sums over devices: kernels of points of which each device holds a part.

Within `jax.shard_map` a kernel sees the points of one device. What it adds up, or takes the least
or the largest of, it combines here over all devices that hold points of the same group; without
such devices nothing is done. Which axes of the mesh those are their names say (`POINTS`, numbered
in the order in which they cut the points): names are among what traced programs are kept by, so
that none is taken for one of another placement.
"""

import numpy as np
from jax import lax, sharding
from jax import numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped, UInt

from jaxcomp.numerics.scaling import group_exponent, is_zero

POINTS = "points"
# Below the exponent of any float.
_NOTHING = -(1 << 20)


def axes_of_points() -> tuple[str, ...]:
    """Return the axes of the mesh over which the points of a group are spread, the major first."""
    names = sharding.get_abstract_mesh().manual_axes
    own = (name for name in names if isinstance(name, str) and name.startswith(POINTS))
    return tuple(sorted(own, key=lambda name: int(name.removeprefix(POINTS))))


def total(values: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Return the sum over devices of what each has."""
    axes = axes_of_points()
    return lax.psum(values, axes) if axes else values


def least(values: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Return the minimum over devices."""
    axes = axes_of_points()
    return lax.pmin(values, axes) if axes else values


def most(values: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Return the maximum over devices."""
    axes = axes_of_points()
    return lax.pmax(values, axes) if axes else values


def everywhere(is_so: Bool[Array, "..."]) -> Bool[Array, "..."]:
    """Return whether it is so on all devices."""
    return least(is_so.astype(jnp.int32)) > 0 if axes_of_points() else is_so


def number_of_points(own: int) -> int:
    """Return how many points all devices have together; `own` are those of one."""
    axes = axes_of_points()
    return own * (lax.axis_size(axes) if axes else 1)


def first_place(own: int) -> Int[Array, ""] | int:
    """Return the place of the first point of this device among all points of its group."""
    axes = axes_of_points()
    return lax.axis_index(axes) * own if axes else 0


def every(values: Shaped[Array, "... points"], stride: int) -> Shaped[Array, "... some"]:
    """Return every so manieth of all points, on each device: few, please."""
    if not axes_of_points():
        return values[..., ::stride]
    own = values.shape[-1]
    places = jnp.arange(0, number_of_points(own), stride, dtype=jnp.int32) - first_place(own)
    is_own = (places >= 0) & (places < own)
    return of_owners(values[..., jnp.clip(places, 0, own - 1)], is_own)


def of_owners(values: Shaped[Array, "..."], is_own: Bool[Array, "..."]) -> Shaped[Array, "..."]:
    """Return values of which each is known to one device, bit for bit.

    Args:
        values: floating.
        is_own: which of them this device knows, broadcastable.
    """
    bits = lax.bitcast_convert_type(values, np.dtype(f"int{8 * values.dtype.itemsize}"))
    return lax.bitcast_convert_type(total(jnp.where(is_own, bits, 0)), values.dtype)


def exponent_of_all(values: Shaped[Array, "... points"]) -> Int[Array, "..."]:
    """As `group_exponent`, of the points of all devices."""
    exponent = group_exponent(values)
    if not axes_of_points():
        return exponent
    is_nothing = jnp.all(is_zero(values), axis=-1)
    largest = most(jnp.where(is_nothing, _NOTHING, exponent))
    return jnp.where(largest == _NOTHING, 0, largest)


def flat_places(
    shape: tuple[int, ...], cuts: tuple[tuple[str, ...], ...], dtype: np.dtype
) -> UInt[Array, "*shape"]:
    """Return where the entries of this device's part stand in the whole array, flattened.

    Args:
        shape: of the part.
        cuts: the axes of the mesh that cut each axis of the array; none at all for a whole array.
        dtype: unsigned, of the places.
    """
    place = jnp.zeros((), dtype)
    stride = 1
    for axis in reversed(range(len(shape))):
        cut = cuts[axis] if cuts else ()
        own = lax.broadcasted_iota(dtype, shape, axis)
        if cut:
            own = own + (lax.axis_index(cut) * shape[axis]).astype(dtype)
        place = place + own * dtype.type(stride)
        stride *= shape[axis] * (lax.axis_size(cut) if cut else 1)
    return place
