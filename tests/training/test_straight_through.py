from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quantizer_oracles import count_compilations, nearest

from jaxcomp.quantizers import kmeans
from jaxcomp.training import fine_tune_codebook, look_up, quantize_ste

CENTROIDS = np.array([0.4, -1.0, 1.5], np.float32)  # in no order
WEIGHTS = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)


def test_forward_is_the_nearest_centroid_exactly(strict_promotion):
    index = nearest(WEIGHTS.ravel(), CENTROIDS).reshape(WEIGHTS.shape)
    np.testing.assert_array_equal(quantize_ste(WEIGHTS, CENTROIDS), CENTROIDS[index])
    # A tie goes to the lower centroid.
    assert float(quantize_ste(np.float32(-0.3), CENTROIDS)) == -1.0


def test_gradients_pass_to_the_weights_and_add_up_for_the_centroids(strict_promotion):
    target = np.random.default_rng(1).standard_normal(WEIGHTS.shape).astype(np.float32)

    def loss(weights, centroids):
        return jnp.sum(jnp.sin(quantize_ste(weights, centroids)) * target)

    to_weights, to_centroids = jax.jit(jax.grad(loss, argnums=(0, 1)))(WEIGHTS, CENTROIDS)
    index = nearest(WEIGHTS.ravel(), CENTROIDS).reshape(WEIGHTS.shape)
    incoming = np.cos(CENTROIDS[index].astype(np.float64)) * target
    np.testing.assert_allclose(to_weights, incoming, rtol=1e-5, atol=1e-6)
    expected = [incoming[index == k].sum() for k in range(3)]
    np.testing.assert_allclose(to_centroids, expected, rtol=1e-5)
    # That of the centroids is the true one, for assignments as they are.
    step = 1e-2
    for k in range(3):
        shifted = [CENTROIDS + sign * step * np.eye(3, dtype=np.float32)[k] for sign in (1, -1)]
        values = [np.sum(np.sin(c[index].astype(np.float64)) * target) for c in shifted]
        assert float(to_centroids[k]) == pytest.approx(
            (values[0] - values[1]) / (2 * step), rel=1e-3
        )


def test_forward_mode_is_the_transpose_of_reverse_mode(strict_promotion):
    rng = np.random.default_rng(4)
    given = jax.device_put((WEIGHTS, CENTROIDS))
    along = tuple(rng.standard_normal(x.shape).astype(np.float32) for x in given)
    index = nearest(WEIGHTS.ravel(), CENTROIDS).reshape(WEIGHTS.shape)
    both = np.asarray(jax.jit(lambda *own: jax.jvp(quantize_ste, *own)[1])(given, along))
    np.testing.assert_allclose(both, along[0] + along[1][index], rtol=1e-6)
    only = jax.jit(lambda *own: jax.jvp(partial(quantize_ste, given[0]), *own)[1])(
        given[1:], along[1:]
    )
    np.testing.assert_array_equal(only, along[1][index])
    back = jax.jit(lambda own: jax.vjp(quantize_ste, *given)[1](own))(both)
    inner = sum(np.sum(a * b) for a, b in zip(back, along, strict=True))
    assert inner == pytest.approx(np.sum(both * both), rel=1e-5)


def test_under_vmap_and_in_half_precision():
    stacked = np.stack([CENTROIDS, CENTROIDS * 2])
    together = jax.jit(jax.vmap(quantize_ste, in_axes=(None, 0)))(WEIGHTS, stacked)
    for row, centroids in zip(np.asarray(together), stacked, strict=True):
        np.testing.assert_array_equal(row, quantize_ste(WEIGHTS, centroids))
    weights = WEIGHTS.astype(jnp.bfloat16)
    half = quantize_ste(weights, CENTROIDS)
    assert half.dtype == jnp.bfloat16
    gradient = jax.jit(jax.grad(lambda c: quantize_ste(weights, c).sum()))(CENTROIDS)
    assert np.sum(gradient) == WEIGHTS.size


def test_training_through_it_reaches_a_quantized_minimum():
    inputs = np.random.default_rng(2).standard_normal((40, 5)).astype(np.float32)
    truth = np.array([0.4, -1.0, 1.5, 0.4, -1.0], np.float32)

    def loss(weights):
        return jnp.mean((inputs @ (quantize_ste(weights, CENTROIDS) - truth)) ** 2)

    step = jax.jit(lambda weights: weights - 0.05 * jax.grad(loss)(weights))
    weights = np.zeros(5, np.float32)
    for _ in range(200):
        weights = step(weights)
    np.testing.assert_array_equal(quantize_ste(weights, CENTROIDS), truth)


def squared_loss(params, batch):
    """Half the weighted squared distance of the weights to given ones, and of the bias to 1."""
    target, importance = batch
    gap = params["kernel"].astype(jnp.float32) - target
    return 0.5 * jnp.sum(importance * gap**2) + jnp.sum((params["bias"] - 1) ** 2)


@pytest.mark.slow
def test_fine_tuning_finds_the_weighted_means():
    rng = np.random.default_rng(3)
    importance = rng.gamma(1.0, size=WEIGHTS.shape).astype(np.float32)
    plain = kmeans(WEIGHTS.ravel(), num_clusters=4)
    index = plain.assignments.reshape(WEIGHTS.shape)
    centroids = {"kernel": plain.centroids, "bias": jnp.zeros(3)}
    assignments = {"kernel": index, "bias": None}
    steps = 300
    batches = jax.tree.map(
        lambda part: jnp.broadcast_to(part, (steps, *part.shape)), (WEIGHTS, importance)
    )
    optimizer = optax.adam(0.03)
    result = fine_tune_codebook(squared_loss, centroids, assignments, batches, optimizer=optimizer)
    expected = [
        np.average(WEIGHTS[index == k].astype(np.float64), weights=importance[index == k])
        for k in range(4)
    ]
    np.testing.assert_allclose(result.centroids["kernel"], expected, atol=1e-3)
    np.testing.assert_array_equal(result.centroids["bias"], 0)  # kept as it was
    assert result.losses.shape == (steps,)
    start = squared_loss(look_up(centroids, assignments), (WEIGHTS, importance))
    assert float(result.losses[0]) == pytest.approx(float(start), rel=1e-5)
    assert float(result.losses[-1]) < float(start)
    with count_compilations() as num_compilations:
        fine_tune_codebook(squared_loss, centroids, assignments, batches, optimizer=optimizer)
        assert num_compilations() == 0

    # Steps far below the spacing of the dtype add up.
    half = {"kernel": plain.centroids.astype(jnp.bfloat16), "bias": jnp.zeros(3)}
    slow = fine_tune_codebook(squared_loss, half, assignments, batches, optimizer=optax.sgd(1e-3))
    assert slow.centroids["kernel"].dtype == jnp.bfloat16
    assert float(slow.losses[-1]) < float(slow.losses[0])


def test_codebooks_of_vectors_are_looked_up():
    codebook = np.arange(6, dtype=np.float32).reshape(3, 2)
    index = np.array([2, 0], np.uint8)
    np.testing.assert_array_equal(look_up([codebook], [index])[0], [[4, 5], [0, 1]])


def mean_loss(params, batch):
    return jnp.mean(params["kernel"]) * jnp.mean(batch)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"assignments": {"kernel": None}}, ValueError, "at least one leaf, all are None"),
        ({"assignments": {"other": None}}, ValueError, "must have one structure"),
        ({"assignments": {"kernel": np.array([0, 3])}}, ValueError, "from 0 to 2, .* got 0 to 3"),
        ({"assignments": {"kernel": np.array([0.0])}}, TypeError, "assignments must be integers"),
        ({"centroids": {"kernel": np.arange(3)}}, TypeError, "centroids must be floating"),
        ({"centroids": {"kernel": np.float32(1)}}, ValueError, "at least one entry, got shape"),
        ({"batches": np.ones((0, 2))}, ValueError, "leading axis of at least one step"),
        ({"batches": (np.ones(2), np.ones(3))}, ValueError, "leading axis of at least one step"),
    ],
)
def test_bad_input(changes, error, message):
    arguments = {
        "centroids": {"kernel": CENTROIDS},
        "assignments": {"kernel": np.array([0, 2])},
        "batches": np.ones((2, 2), np.float32),
    }
    with pytest.raises(error, match=message):
        fine_tune_codebook(mean_loss, **(arguments | changes), optimizer=optax.sgd(0.1))


def test_bad_straight_through_input():
    with pytest.raises(TypeError, match="weights must be floating, got int32"):
        quantize_ste(np.arange(3, dtype=np.int32), CENTROIDS)
    with pytest.raises(ValueError, match=r"vector of at least one entry, got shape \(1, 3\)"):
        quantize_ste(WEIGHTS, CENTROIDS[None])


def test_double_precision(x64):
    result = quantize_ste(WEIGHTS.astype(np.float64), CENTROIDS.astype(np.float64))
    assert result.dtype == jnp.float64
