"""Arrays that the host can read where they are.

A program is compiled for the shape of its input. What is little work and done for arrays of many
sizes, such as a check or filling them up, is therefore done by NumPy where the host holds the
values; on an accelerator it costs a program for every size.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental.multihost_utils import process_allgather
from jaxtyping import Array, Shaped


def default_device() -> Any:
    """Return the device that a computation of arrays that are on none runs on."""
    # None, a device, or the name of a platform.
    chosen = cast(Any, jax.config).jax_default_device
    is_named = chosen is None or isinstance(chosen, str)
    return jax.local_devices(backend=chosen)[0] if is_named else chosen


def is_on_host(*stored: Any) -> bool:
    """Tell whether the host can read arrays (or None) without a copy: NumPy's, or of a CPU."""
    return all(
        part is None
        or isinstance(part, np.ndarray)
        or (
            not isinstance(part, Tracer)
            and part.is_fully_addressable
            and all(device.platform == "cpu" for device in part.devices())
        )
        for part in stored
    )


def is_on_one_cpu(*stored: Any) -> bool:
    """Tell whether the host can read arrays (or None), none of which is dealt out to devices."""
    return is_on_host(*stored) and all(
        part is None or isinstance(part, np.ndarray) or len(part.devices()) == 1 for part in stored
    )


def as_array(values: Any) -> Shaped[Array, "..."]:
    """Return values as an array of JAX; `jnp.asarray` compiles a program for the size."""
    is_plain = isinstance(values, np.ndarray) and values.dtype.isnative
    return jax.device_put(values) if is_plain else jnp.asarray(values)


def part_of(tree: Any, place: int | slice) -> Any:
    """Return a part of every array of a tree; cut on the host, it compiles nothing."""
    return jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf)[place], tree))


def whole(values: Any) -> Shaped[np.ndarray, "..."]:
    """Return an array on the host, of which processes may hold parts: all of them have to ask."""
    if not isinstance(values, jax.Array) or values.is_fully_addressable:
        return np.asarray(values)
    if values.is_fully_replicated:
        return np.asarray(values.addressable_data(0))
    # Codes of 2 and 4 bits have no transport of their own.
    is_short = jnp.issubdtype(values.dtype, jnp.integer) and jnp.iinfo(values.dtype).bits < 8
    sent = values.astype(jnp.uint8) if is_short else values
    return np.asarray(process_allgather(sent, tiled=True)).astype(values.dtype, copy=False)


def view(values: Any) -> Shaped[np.ndarray, "..."]:
    """Return what the host can read; for `jax.transfer_guard` that is explicit."""
    return np.asarray(jax.device_get(values))


def placed_like(values: Shaped[np.ndarray, "..."], other: Any) -> Shaped[Array, "..."]:
    """Return values on the one device of another array, whatever its shape."""
    # Uncommitted arrays go wherever what they are combined with lies.
    is_free = isinstance(other, np.ndarray) or not other.committed
    return jax.device_put(values, None if is_free else other.device)
