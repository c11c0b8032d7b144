"""Steps of many models: orders, penalties, the best epoch, one model against many."""

import jax
import jax.numpy as jnp
import numpy as np
from small_training import NETWORK, PLAIN, arrays, assert_close

from jaxcomp.experiments.networks import descent
from jaxcomp.experiments.networks.training_data import chunks


def test_early_stopping_keeps_the_earlier_of_equal_epochs():
    variables = {"w": jnp.array([1.0, 2.0, 3.0])}
    best = descent.Best({"w": jnp.zeros(3)}, jnp.array([0.5, 0.5, jnp.inf]), jnp.zeros(3, int))
    better = descent.better(best, variables, jnp.array([0.4, 0.5, jnp.nan]), 2)
    np.testing.assert_array_equal(better.variables["w"], [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(better.epoch, [2, 0, 0])
    np.testing.assert_array_equal(better.loss, jnp.array([0.4, 0.5, jnp.inf]))


def test_validation_loss_ignores_the_filling():
    """Seven examples in chunks of three: two places are filled."""
    task = arrays()
    stacked = jax.vmap(PLAIN.init)(jax.random.split(jax.random.key(0), 2))
    inputs, labels = task["inputs"][:7], task["train_labels"][0][:7].astype(np.int32)
    chunked = chunks(inputs, labels, size=3)
    assert chunked[0].shape == (3, 3, 8, 8, 1)
    logits = jax.vmap(PLAIN.predict, in_axes=(0, None))(stacked, inputs)
    expected = -jax.nn.log_softmax(logits)[:, np.arange(7), labels].mean(1)
    for own in (slice(0, 2), slice(0, 1)):  # many models, and one
        some = jax.tree.map(lambda leaf, own=own: leaf[own], stacked)
        losses = descent.mean_validation_loss(some, *chunked, network=PLAIN)
        np.testing.assert_allclose(losses, expected[own], rtol=1e-5)


def test_every_epoch_is_a_new_order_of_the_sample(strict_promotion):
    keys = jax.random.split(jax.random.key(0), 2)
    indices = jnp.arange(36, dtype=jnp.int32).reshape(2, 18)
    orders = [
        descent.epoch_order(keys, epoch, indices, 100 + indices, num_steps=4, batch_size=4)
        for epoch in (0, 1)
    ]
    for rows, labels, _ in orders:
        assert rows.shape == (2, 4, 4)
        np.testing.assert_array_equal(labels, rows + 100)
        for model in range(2):
            seen = np.unique(rows[model])
            assert len(seen) == 16
            assert np.isin(seen, indices[model]).all()
    assert not np.array_equal(orders[0][0], orders[1][0])
    assert not np.array_equal(orders[0][0][0], orders[0][0][1] - 18)


def test_a_model_alone_is_that_model_among_others(strict_promotion):
    """On a CPU each has a program of its own, on accelerators all have one."""
    keys = descent.model_keys(0, jnp.arange(2))
    rates = descent.Rates(
        *(jnp.full(2, x, jnp.float32) for x in (0.05, 0.9)), jnp.array([1e-4, 0]), jnp.full(2, 1e-3)
    )
    task = arrays()
    order, labels, _ = descent.epoch_order(
        keys.order,
        0,
        jnp.asarray(task["train_indices"], jnp.int32),
        jnp.asarray(task["train_labels"], jnp.int32),
        num_steps=4,
        batch_size=4,
    )

    def trained(own: slice) -> descent.Learner:
        own_rates = descent.Rates(*(rate[own] for rate in rates))
        return descent.run_steps(
            descent.initial_learner(keys.weights[own], network=NETWORK),
            jnp.asarray(task["inputs"]),
            descent.Epoch(order[own], labels[own], jnp.asarray(8)),
            keys.dropout[own],
            own_rates,
            0,
            4,
            network=NETWORK,
            is_proximal=True,
        )

    together = trained(slice(0, 2))
    for number in range(2):
        alone = trained(slice(number, number + 1))
        among = jax.tree.map(lambda leaf, n=number: leaf[n : n + 1], together)
        assert_close(alone, among)


def test_proximal_steps_solve_the_lasso():
    """The update on a quadratic loss ends, momentum and all, where coordinate descent does."""
    rng = np.random.default_rng(3)
    curvature = np.diag(np.array([2.0, 1.0, 0.5])) + 0.2
    slope = np.array([1.0, -0.3, 0.1])
    rates = descent.Rates(*(jnp.float32(x) for x in (0.1, 0.9, 0.0, 0.25)))
    weights, velocity = jnp.asarray(rng.standard_normal(3), jnp.float32), jnp.zeros(3)
    for _ in range(400):
        gradient = jnp.asarray(curvature @ np.asarray(weights) - slope, jnp.float32)
        velocity = descent.accelerated(rates, weights, gradient, velocity)
        weights = descent.moved(rates, weights, velocity, is_proximal=True)
    exact = np.zeros(3)
    for _ in range(200):
        for i in range(3):
            rest = slope[i] - curvature[i] @ exact + curvature[i, i] * exact[i]
            exact[i] = np.sign(rest) * max(abs(rest) - 0.25, 0) / curvature[i, i]
    assert (exact == 0).any()
    assert (exact != 0).any()
    np.testing.assert_array_equal(np.asarray(weights) == 0, exact == 0)
    np.testing.assert_allclose(weights, exact, atol=1e-5)
