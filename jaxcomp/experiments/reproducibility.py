"""What decides numbers beside the settings: versions, device, JAX's configuration, kind of key.

A run that is continued elsewhere, or under another configuration of JAX, must give the same
numbers or be told apart. So seeds become keys in one way, whatever JAX's default is, and what
cannot be fixed is written down.
"""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np

from jaxcomp import __version__
from jaxcomp.types import PRNGKey

KEY_IMPLEMENTATION = "threefry2x32"
"""How the random numbers of every run are made; the only implementation that gives the same ones
on every device."""

_PACKAGES = ("jax", "jaxlib", "flax", "numpy")
# Without it there are no files, and no sizes of them.
_OPTIONAL = ("constriction",)
_OPTIONS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
)


def random_key(seed: int) -> PRNGKey:
    """Return the key of a seed, the same whatever `jax_default_prng_impl` says.

    Args:
        seed: from 0 to 2^32 - 1.

    Returns:
        A typed key.

    Raises:
        ValueError: for a seed outside the range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie between 0 and 2^32 - 1, got {seed}.")
    return jax.random.key(np.uint32(seed), impl=KEY_IMPLEMENTATION)


def key_to_plain(key: PRNGKey) -> dict[str, Any]:
    """Return a key as plain values, from which `key_from_plain` makes it again."""
    words = np.asarray(jax.random.key_data(key)).tolist()
    return {"implementation": str(jax.random.key_impl(key)), "words": words}


def key_from_plain(plain: dict[str, Any]) -> PRNGKey:
    """Make a key of the implementation it was stored with, whatever the default is now."""
    words = jax.device_put(np.asarray(plain["words"], np.uint32))
    return jax.random.wrap_key_data(words, impl=plain["implementation"])


def environment() -> dict[str, Any]:
    """Return what numbers are made with: numbers made with something else must not meet them.

    Returns:
        `versions` of the packages and of Python, `device`, and `options` of JAX that change
        random numbers or the precision of arithmetic; plain values.
    """
    return {
        "versions": {
            "jaxcomp": __version__,
            **{name: version(name) for name in _PACKAGES},
            **{name: _version_if_installed(name) for name in _OPTIONAL},
            "python": platform.python_version(),
        },
        "device": jax.devices()[0].device_kind,
        "options": numerical_options(),
    }


def _version_if_installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def numerical_options() -> dict[str, Any]:
    """Return the options of JAX that change random numbers or the precision of arithmetic."""
    # A later JAX may know an option no longer: then it shapes nothing.
    return {name: getattr(jax.config, name, None) for name in _OPTIONS}
