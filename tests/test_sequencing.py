import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.sequencing import after


def test_values_are_the_same_and_come_second(strict_promotion):
    values = jnp.asarray([[1.5, -0.25], [3e38, 1e-30]], jnp.float32)
    for first in (jnp.ones(3), -jnp.ones((2, 2)), jnp.full((1,), jnp.inf)):
        np.testing.assert_array_equal(jax.jit(after)(values, first), values)

    def two(matrices):
        early = jnp.linalg.cholesky(matrices)
        return early, jnp.linalg.eigh(after(matrices, early))[0]

    # The compiler has not seen through it.
    compiled = jax.jit(jax.vmap(two)).lower(jnp.ones((4, 3, 3))).compile().as_text()
    assert "minimum" in compiled
