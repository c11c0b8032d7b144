import jax.numpy as jnp
import numpy as np

from jaxcomp.quantizers.output_importance import output_importance


def test_it_is_the_mean_squared_gradient_weighed_by_the_inputs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 50, 5))
    gradients = rng.gamma(1.0, size=(2, 50, 3))
    # A group whose inputs are always 0.
    x[1] = 0
    diagonal = np.einsum("gni,gno->gio", x**2, gradients**2) / 50
    second = np.einsum("gni,gnj->gij", x, x) / 50
    found = output_importance(jnp.asarray(diagonal), jnp.asarray(second))
    mass = np.sum(x[0] ** 2, axis=1)
    expected = np.sum(mass[:, None] * gradients[0] ** 2, axis=0) / mass.sum()
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[1], 0)
