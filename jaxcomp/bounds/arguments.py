"""Arguments of bounds: checks at the host boundary, and what rounding may cost."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcomp.numerics.checks import is_concrete

Number = Float[Array, "*shape"] | float


def check_certificate(train_error, num_examples, delta, *, suffix: str = "") -> None:
    """Refuse errors outside [0, 1], numbers that are not whole, probabilities outside (0, 1)."""
    for name, value, fits, allowed in (
        ("train_error", train_error, lambda v: (v >= 0) & (v <= 1), "between 0 and 1"),
        (
            f"num_{suffix or 'examples'}",
            num_examples,
            lambda v: (v >= 1) & np.isfinite(v) & (v == np.floor(v)),
            "at least 1 and whole",
        ),
        (
            f"delta_{suffix}" if suffix else "delta",
            delta,
            lambda v: (v > 0) & (v < 1),
            "strictly between 0 and 1",
        ),
    ):
        if not is_concrete(value):
            continue
        values = np.asarray(value, np.float64)
        is_bad = ~fits(values)
        if np.any(is_bad):
            raise ValueError(f"{name} must be {allowed}, got {values[is_bad].ravel()[0]:g}.")


def check_at_least_zero(value, name: str) -> None:
    """Refuse negative numbers, where they are known."""
    if is_concrete(value):
        values = np.asarray(value, np.float64)
        if np.any(~(values >= 0)):
            raise ValueError(f"{name} must be at least 0, got {np.min(values):g}.")


def valid(found: Array, cost: Array, n: Array, delta: Array) -> Array:
    """Return NaN for what cannot be refused where values are traced.

    In one choice: JAX 0.12 cannot differentiate a choice of a choice backwards here.
    """
    return jnp.where((cost >= 0) & (n >= 1) & (delta > 0) & (delta < 1), found, jnp.nan)
