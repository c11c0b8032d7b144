"""Checks of input that several modules of this package take; values are checked where known."""

from typing import Any

import numpy as np
from jax.core import Tracer


def check_curvature(name: str, values: Any) -> None:
    """Refuse curvature, or eigenvalues of it, that is negative or not finite.

    Raises:
        ValueError: one sentence with the first such value.
    """
    if isinstance(values, Tracer):
        return
    values = np.asarray(values, np.float64)
    bad = values[~((values >= 0) & np.isfinite(values))]
    if bad.size:
        raise ValueError(
            f"{name} must be finite and at least 0, got {bad.flat[0]:g}; apply a policy for "
            "negative curvature first."
        )
