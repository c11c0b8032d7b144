"""Models whose examples depend on each other are refused; rounding and token weights are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from curvature_problems import leaf, perceptron_batch, perceptron_params, tanh_network
from jax.tree_util import Partial
from slow_cases import some_slow

from jaxcomp.curvature import (
    Fisher,
    GaussNewton,
    fisher_diagonal,
    gauss_newton_diagonal,
    layer_hessians,
    over_batches,
)
from jaxcomp.curvature.independence import (
    _difference_of_outputs,
    check_outputs_are_independent,
)

REFUSED = r"the outputs for an example depend on the others .* evaluation mode"
NO_MEAN = r"the loss of a batch is no mean of the losses of its examples .* evaluation mode"


def normalised_by_batch(params, inputs):
    """Batch normalization in training mode between two layers."""
    hidden = inputs @ params["in"] + params["bias"]
    centred = hidden - jnp.mean(hidden, axis=0)
    return jax.nn.relu(centred / jnp.sqrt(jnp.var(hidden, axis=0) + 1e-5)) @ params["out"]


def dropped_out(params, inputs):
    """Dropout that is left on, with a key of its own."""
    hidden = jnp.tanh(inputs @ params["in"] + params["bias"])
    kept = jax.random.bernoulli(jax.random.key(0), 0.5, hidden.shape)
    return jnp.where(kept, 2 * hidden, 0) @ params["out"]


def cross_entropy(predict_fn):
    def loss_fn(params, batch):
        logits = predict_fn(params, batch[0])
        chosen = jnp.take_along_axis(logits, batch[1][:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)

    return loss_fn


LOSS_OF = {fn: cross_entropy(fn) for fn in (normalised_by_batch, dropped_out, tanh_network)}


@pytest.mark.parametrize("predict_fn", some_slow([normalised_by_batch, dropped_out], dropped_out))
def test_every_estimator_by_examples_refuses_it(predict_fn):
    params, batch = perceptron_params(), perceptron_batch()
    with pytest.raises(ValueError, match=REFUSED):
        gauss_newton_diagonal(predict_fn, params, batch)
    with pytest.raises(ValueError, match=REFUSED):
        over_batches(GaussNewton(predict_fn, params), [batch, batch])
    with pytest.raises(ValueError, match=REFUSED):
        layer_hessians(predict_fn, params, [batch])
    with pytest.raises(ValueError, match=NO_MEAN):
        fisher_diagonal(LOSS_OF[predict_fn], params, batch)
    with pytest.raises(ValueError, match=NO_MEAN):
        over_batches(Fisher(LOSS_OF[predict_fn], params), [batch])


def test_where_nothing_is_known_nothing_is_compared():
    params, batch = perceptron_params(), perceptron_batch()
    inside = jax.jit(lambda p: gauss_newton_diagonal(normalised_by_batch, p, batch).mean)(params)
    # What silence gave: nothing but what stands behind the normalization is curved.
    np.testing.assert_array_equal(inside["in"], 0.0)
    scaled = jax.jit(
        lambda s: gauss_newton_diagonal(lambda p, x: s * tanh_network(p, x), params, batch).mean
    )(1.0)
    assert np.all(np.isfinite(scaled["in"]))
    check_outputs_are_independent(Partial(normalised_by_batch), params, batch[0][:1])


def test_rounding_is_no_dependence():
    def half(params, inputs):
        short = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        return tanh_network(short, inputs.astype(jnp.bfloat16)).astype(jnp.float32)

    params, batch = perceptron_params(), perceptron_batch()
    assert np.all(np.isfinite(gauss_newton_diagonal(half, params, batch).mean["in"]))
    # What is not finite is found by others.
    inputs = batch[0].copy()
    inputs[0] = np.nan
    found = gauss_newton_diagonal(tanh_network, params, (inputs, batch[1])).mean
    assert np.any(np.isnan(found["in"]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding_of_long_sums_is_far_below_the_tolerance(dtype):
    """Sums and products of 65,536 terms, whose order may depend on the size of the batch."""

    def sums(params, inputs):
        inputs = inputs.astype(dtype)
        return jnp.concatenate(
            [jnp.sum(inputs * params[:, 0], axis=1)[:, None], inputs @ params], 1
        )

    rng = np.random.default_rng(0)
    params = rng.normal(size=(65_536, 2)).astype(dtype)
    inputs = rng.normal(size=(4, 65_536)).astype(np.float32)
    difference, tolerance = _difference_of_outputs(Partial(sums), params, inputs)
    assert float(difference) < float(tolerance) / 100


@pytest.mark.parametrize("weigh", ["by tokens", "as a sum"])
def test_losses_that_are_weighted_means_or_sums_are_allowed(weigh):
    rng = np.random.default_rng(4)
    params = {"w": leaf(rng, 3, 3)}
    tokens, mask = leaf(rng, 6, 4, 3), rng.integers(0, 2, (6, 4)) | np.eye(6, 4, dtype=int)
    mask[4:, :2] = 1  # no example without a token
    mask = mask.astype(np.int32)

    def loss_fn(params, batch):
        tokens, mask = batch
        losses = jax.nn.logsumexp(tokens @ params["w"], axis=2) * mask
        return jnp.sum(losses) / (jnp.sum(mask) if weigh == "by tokens" else 1)

    assert np.all(np.asarray(fisher_diagonal(loss_fn, params, (tokens, mask)).mean["w"]) >= 0)
