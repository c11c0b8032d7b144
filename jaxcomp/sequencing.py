"""One computation after another, where nothing else would order them.

Decompositions of many matrices must not run side by side in one program: on a CPU of two cores
jaxlib's batched LAPACK calls take a thread each and wait for the other's, for ever (seen in
jaxlib 0.10). Barriers of XLA are gone by the time it schedules; a dependence in the data is not.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def after(values: Float[Array, "..."], first: Float[Array, "*shape"]) -> Float[Array, "..."]:
    """Return the values, available only when `first` has been computed.

    Args:
        values: any shape.
        first: at least one number, of the same dtype. Only NaN in it would change the values
            (and denormal values become 0, as in any arithmetic on most backends).
    """
    # 0 for every number, but not to a compiler, which has to think of NaN.
    return values + jnp.minimum(jnp.abs(first.ravel()[0]), 0)
