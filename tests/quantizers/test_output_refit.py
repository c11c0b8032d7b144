import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.curvature import InputMoments
from jaxcomp.quantizers.output_refit import (
    OutputRefit,
    error_reduction,
    refit_outputs,
)

INPUTS, OUTPUTS = 5, 4


def data(num_examples, seed, drift):
    """Inputs of the original and of the rounded network, and their moments."""
    rng = np.random.default_rng(seed)
    x = 0.5 + rng.standard_normal((2, num_examples, INPUTS))
    changed = 1.1 * x + 0.2 * rng.standard_normal(x.shape) if drift else x
    moments = InputMoments(
        np.swapaxes(changed, 1, 2) @ changed / num_examples,
        changed.mean(axis=1),
        np.swapaxes(changed, 1, 2) @ x / num_examples if drift else None,
        x.mean(axis=1) if drift else None,
    )
    moments = InputMoments(
        *(None if part is None else jnp.asarray(part, jnp.float32) for part in moments)
    )
    return x, changed, moments


def layer():
    rng = np.random.default_rng(9)
    weights = rng.standard_normal((2, INPUTS, OUTPUTS))
    values = np.round(weights)
    # An output whose rounded weights are all 0, and one that rounding left as it was.
    values[0, :, 1] = 0
    weights[1, :, 2] = values[1, :, 2]
    return weights, values


@pytest.mark.usefixtures("strict_promotion")
@pytest.mark.parametrize("drift", [False, True])
def test_refit_is_least_squares_on_the_examples(drift):
    weights, values = layer()
    x, changed, moments = data(50, 0, drift)
    known = jnp.asarray(weights, jnp.float32), jnp.asarray(values, jnp.float32)
    found = refit_outputs(*known, moments, moments)
    reduction = error_reduction(*known, moments, found)
    for group in range(2):
        wanted, rounded = x[group] @ weights[group], changed[group] @ values[group]
        for output in range(OUTPUTS):
            columns = np.stack([rounded[:, output], np.ones(50)], axis=1)
            best = np.linalg.lstsq(columns, wanted[:, output])[0]
            before = np.mean((wanted - rounded)[:, output] ** 2)
            after = np.mean((wanted[:, output] - columns @ best) ** 2)
            if not values[group, :, output].any():
                best[0] = 1
            np.testing.assert_allclose(found.scales[group, output], best[0], rtol=1e-4)
            np.testing.assert_allclose(found.bias_changes[group, output], best[1], atol=1e-4)
            np.testing.assert_allclose(reduction[group, output], before - after, atol=1e-4)
    only = refit_outputs(*known, moments, moments, with_scales=False)
    assert jnp.all(only.scales == 1)
    missing = np.mean(
        np.einsum("gni,gio->gno", x, weights) - np.einsum("gni,gio->gno", changed, values), axis=1
    )
    np.testing.assert_allclose(only.bias_changes, missing, atol=1e-5)


def test_a_refit_is_kept_only_where_other_data_confirms_it():
    weights, values = layer()
    known = jnp.asarray(weights, jnp.float32), jnp.asarray(values, jnp.float32)
    # So few examples that most of what they say is noise.
    _, _, few = data(3, 1, drift=True)
    _, _, others = data(4000, 2, drift=True)
    guarded = refit_outputs(*known, few, others)
    reduction = error_reduction(*known, others, guarded)
    assert jnp.all(reduction >= 0)
    believed = refit_outputs(*known, few, few)
    assert jnp.any(error_reduction(*known, others, believed) < 0)
    # Some outputs keep their refit, others do not.
    is_changed = (guarded.scales != 1) | (guarded.bias_changes != 0)
    assert 0 < jnp.sum(is_changed) < is_changed.size
    nothing = OutputRefit(jnp.ones((2, OUTPUTS)), jnp.zeros((2, OUTPUTS)))
    np.testing.assert_array_equal(error_reduction(*known, others, nothing), 0)
