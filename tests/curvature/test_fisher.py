"""The empirical Fisher diagonal against NumPy, the closed form of logistic regression, loops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxcomp.curvature import fisher_diagonal

pytestmark = pytest.mark.usefixtures("strict_promotion")


def logistic_loss(params, batch):
    """Mean logistic loss of labels 0 and 1, in nats, in the dtype of the weights."""
    inputs, labels = batch
    logits = inputs.astype(params["w"].dtype) @ params["w"] + params["b"]
    return jnp.mean(jax.nn.softplus(logits) - labels.astype(logits.dtype) * logits)


def make_problem(num_examples, dtype=np.float32):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=3).astype(dtype), "b": np.asarray(0.3, dtype)}
    # As most callers have them: on the device.
    inputs = rng.normal(size=(num_examples, 3)).astype(np.float32)
    labels = rng.integers(0, 2, num_examples).astype(np.int32)
    return params, jax.device_put((inputs, labels))


def closed_form(params, batch):
    """In float64: the gradient of one example is `(p - y) x`, so the mean of its square."""
    w, b = np.asarray(params["w"], np.float64), np.asarray(params["b"], np.float64)
    x, y = np.asarray(batch[0], np.float64), np.asarray(batch[1], np.float64)
    residual = 1 / (1 + np.exp(-(x @ w + b))) - y
    return {"w": np.mean(np.square(residual[:, None] * x), axis=0), "b": np.mean(residual**2)}


@pytest.mark.parametrize("examples_per_chunk", [1, 8, 100])
def test_logistic_regression_in_closed_form_with_a_ragged_chunk(examples_per_chunk):
    params, batch = make_problem(37)
    estimate = fisher_diagonal(logistic_loss, params, batch, examples_per_chunk=examples_per_chunk)
    expected = closed_form(params, batch)
    for name in expected:
        np.testing.assert_allclose(estimate.mean[name], expected[name], rtol=1e-5)
        np.testing.assert_array_equal(estimate.standard_error[name], 0 * expected[name])


@pytest.mark.usefixtures("x64")
def test_double_precision_is_kept():
    params, batch = make_problem(37, np.float64)
    estimate = fisher_diagonal(logistic_loss, params, batch)
    assert estimate.mean["w"].dtype == np.float64
    np.testing.assert_allclose(estimate.mean["w"], closed_form(params, batch)["w"], rtol=1e-13)


def test_half_precision_weights_are_summed_in_float32():
    params, batch = make_problem(37, jnp.bfloat16)
    estimate = fisher_diagonal(logistic_loss, params, batch)
    assert estimate.mean["w"].dtype == np.float32
    # A gradient of a few bfloat16 operations, squared.
    np.testing.assert_allclose(
        estimate.mean["w"], closed_form(params, batch)["w"], rtol=8 * 2.0**-8
    )


def network_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["layers"][0])
    return jnp.mean(jnp.square(hidden @ params["layers"][1] - batch["y"]))


def test_network_against_a_loop_over_examples():
    rng = np.random.default_rng(1)
    layers = [rng.normal(size=s).astype(np.float32) for s in [(3, 4), (4, 2)]]
    params = {"layers": layers, "codes": np.arange(5, dtype=np.int8)}
    batch = {
        "x": rng.normal(size=(7, 3)).astype(np.float32),
        "y": rng.normal(size=(7, 2)).astype(np.float32),
    }

    estimate = fisher_diagonal(network_loss, params, batch, examples_per_chunk=3)

    gradient = jax.jit(jax.grad(lambda layers, example: network_loss({"layers": layers}, example)))
    total = [np.zeros(layer.shape) for layer in layers]
    for i in range(7):
        one = {name: value[i : i + 1] for name, value in batch.items()}
        total = [
            t + np.square(np.asarray(g)) for t, g in zip(total, gradient(layers, one), strict=True)
        ]
    for value, expected in zip(estimate.mean["layers"], total, strict=True):
        np.testing.assert_allclose(value, expected / 7, rtol=1e-5)
    np.testing.assert_array_equal(estimate.mean["codes"], np.zeros(5, np.float32))
    assert estimate.mean["codes"].dtype == np.float32


def test_vmap_is_a_loop_over_models():
    params, batch = make_problem(5)
    stacked = jax.tree.map(lambda x: np.stack([x, 2 * x]), params)
    kernel = partial(fisher_diagonal, logistic_loss, batch=batch, examples_per_chunk=2)
    mapped = jax.vmap(lambda params: kernel(params))(stacked)
    for i in range(2):
        jitted = kernel(jax.tree.map(lambda x, i=i: x[i], stacked))
        np.testing.assert_allclose(mapped.mean["w"][i], jitted.mean["w"], rtol=1e-5)


@pytest.mark.slow
def test_jit_is_eager():
    params, batch = make_problem(5)
    kernel = partial(fisher_diagonal, logistic_loss, batch=batch, examples_per_chunk=2)
    with jax.disable_jit():
        eager = kernel(params)
    np.testing.assert_allclose(eager.mean["w"], kernel(params).mean["w"], rtol=1e-5)


def test_fresh_partial_compiles_nothing():
    num_traces = 0

    def loss_fn(scale, params, batch):
        nonlocal num_traces
        num_traces += 1
        return scale * logistic_loss(params, batch)

    params, batch = make_problem(5)
    one = fisher_diagonal(Partial(loss_fn, np.float32(1.0)), params, batch)
    num_traces_of_one = num_traces
    two = fisher_diagonal(Partial(loss_fn, np.float32(2.0)), params, batch)
    assert num_traces == num_traces_of_one > 0
    np.testing.assert_allclose(two.mean["w"], 4 * one.mean["w"], rtol=1e-6)


def test_memory_does_not_grow_with_examples_times_weights():
    params = {"w": jnp.ones(1000), "b": jnp.float32(0.0)}

    def scratch_bytes(num_examples):
        batch = jnp.ones((num_examples, 1000)), jnp.ones(num_examples, jnp.int32)
        kernel = jax.jit(partial(fisher_diagonal, logistic_loss, examples_per_chunk=8))
        return kernel.lower(params, batch).compile().memory_analysis().temp_size_in_bytes

    # Eight gradients, their squares and a few trees; 256 gradients would take 1 MB.
    assert scratch_bytes(256) < 2 * scratch_bytes(16) < 30 * 4 * 1000 * 8


@pytest.mark.parametrize("examples_per_chunk", [0, -1])
def test_chunk_is_checked(examples_per_chunk):
    with pytest.raises(ValueError, match="examples_per_chunk must be at least 1"):
        fisher_diagonal(logistic_loss, *make_problem(5), examples_per_chunk=examples_per_chunk)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": jnp.ones((4, 3)), "y": jnp.ones(5)}, r"got batch\['x'\]: 4, batch\['y'\]: 5"),
        ({"x": jnp.ones((0, 3)), "y": jnp.ones(0)}, "batch has no examples; leave empty batches"),
        ({"x": jnp.ones((4, 3)), "y": jnp.float32(1)}, r"batch\['y'\] is a scalar, but every"),
        ({}, "batch has no arrays; pass a pytree"),
    ],
)
def test_batch_is_checked(batch, message):
    with pytest.raises(ValueError, match=message):
        fisher_diagonal(network_loss, jnp.ones(3), batch)


def test_loss_of_every_example_at_once_is_refused():
    params, batch = make_problem(5)
    with pytest.raises(ValueError, match=r"returned an array of shape \(1, 3\); average it"):
        fisher_diagonal(lambda p, b: b[0] * p["b"], params, batch)
