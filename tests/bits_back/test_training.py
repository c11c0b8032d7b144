import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.bits_back import VariationalConfig, fit, negative_elbo
from jaxcomp.bits_back.training import prior_bytes, prior_from_bytes

CURVATURES = {"a": np.float32([1.0, 10.0, 100.0]), "b": np.float32([[3.0], [0.01]])}
NUM_EXAMPLES = 20
TARGETS = {
    "a": np.random.default_rng(0).normal(1.0, 0.3, (NUM_EXAMPLES, 3)).astype(np.float32),
    "b": np.random.default_rng(1).normal(0.5, 0.3, (NUM_EXAMPLES, 2, 1)).astype(np.float32),
}
CONFIG = VariationalConfig(num_steps=1500, learning_rate=0.03, annealing_steps=100, num_samples=2)


def loss_fn(params, batch):
    """Mean over examples of 1/2 sum c (w - x)^2: everything about it is known in closed form."""
    parts = [
        0.5 * jnp.sum(CURVATURES[name][None] * jnp.square(params[name][None] - batch[name]))
        for name in params
    ]
    return sum(parts) / batch["a"].shape[0]


def init_fn(key):
    del key
    return {"a": jnp.zeros(3, jnp.float32), "b": jnp.zeros((2, 1), jnp.float32)}


def closed_form(weight=1.0):
    """Fixed point of the posterior given the prior's scale, and of the scale given both."""
    result = {}
    for name, c in CURVATURES.items():
        h, target = NUM_EXAMPLES * np.asarray(c), np.mean(np.asarray(TARGETS[name]), axis=0)
        t2 = 1.0
        for _ in range(5000):
            precision = h + weight / t2
            mean, variance = h * target / precision, weight / precision
            t2 = np.mean(mean**2 + variance)
        result[name] = mean, np.sqrt(variance), np.sqrt(t2)
    return result


@pytest.fixture(scope="module")
def found():
    return fit(loss_fn, init_fn, TARGETS, jax.random.key(0), config=CONFIG)


def test_learns_the_exact_posterior_and_prior_of_a_quadratic_loss(found):
    for name, (mean, scale, prior_scale) in closed_form().items():
        # Noise of the gradient remains in the means: a few percent of their spread.
        assert np.all(np.abs(found.posterior.mean[name] - mean) < 0.1 * scale + 0.005)
        np.testing.assert_allclose(found.posterior.scale[name], scale, rtol=0.1)
        # Up to half a step of the grid of 2^(1/8), and the noise.
        assert abs(np.log2(float(found.prior[name].scale) / prior_scale)) < 1 / 16 + 0.06
    assert found.loss_history.shape == (1500,)
    # The bound at the optimum: expected quadratic loss plus KL, both known.
    elbo = negative_elbo(loss_fn, found, TARGETS, jax.random.key(1), num_samples=256)
    expected = 0.0
    for name, (mean, scale, prior_scale) in closed_form().items():
        c, x = np.asarray(CURVATURES[name]), np.asarray(TARGETS[name])
        expected += np.sum(0.5 * c * ((mean - x) ** 2 + scale**2))
        expected += np.sum(np.log(prior_scale / scale))
    assert abs(float(elbo.total) - expected) < 4 * float(elbo.standard_error) + 0.1


def test_seeds_side_by_side_are_the_seeds_alone_and_repeat_to_the_bit():
    config = VariationalConfig(num_steps=40, batch_size=8, annealing_steps=0)
    keys = jax.random.split(jax.random.key(3), 3)
    weights = np.float32([1.0, 0.1, 10.0])
    together = fit(loss_fn, init_fn, TARGETS, keys, config=config, kl_weight=weights)
    alone = fit(loss_fn, init_fn, TARGETS, keys[1], config=config, kl_weight=0.1)
    again = fit(loss_fn, init_fn, TARGETS, keys[1], config=config, kl_weight=0.1)
    for one, two in zip(jax.tree.leaves(alone), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, two)
    for many, one in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(np.asarray(many)[1], one, rtol=2e-4, atol=1e-5)
    # A heavier KL keeps posteriors wider.
    scales = np.asarray(together.posterior.scale["a"])
    assert np.all(scales[2] > scales[1])


def test_prior_travels_in_one_byte_for_each_leaf(found):
    side = prior_bytes(found.prior)
    assert len(side) == 2
    back = prior_from_bytes(side, found.posterior.mean)
    for name in found.prior:
        assert back[name].scale == pytest.approx(float(found.prior[name].scale), rel=1e-6)
    with pytest.raises(ValueError, match="has 3 bytes, the weights 2 leaves"):
        prior_from_bytes(b"abc", found.posterior.mean)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: VariationalConfig(num_steps=0),
            "num_steps must be at least 1, got 0",
        ),
        (lambda: VariationalConfig(batch_size=0), "batch_size must be at least 1"),
        (lambda: VariationalConfig(learning_rate=-1.0), "learning_rate must be positive"),
        (lambda: VariationalConfig(initial_scale=np.nan), "initial_scale must be positive"),
        (
            lambda: fit(
                loss_fn, init_fn, TARGETS, jax.random.key(0), config=CONFIG, kl_weight=-1.0
            ),
            "kl_weight must be at least 0, got -1",
        ),
        (
            lambda: fit(
                loss_fn,
                init_fn,
                TARGETS,
                jax.random.key(0),
                config=CONFIG,
                kl_weight=np.ones(2, np.float32),
            ),
            "kl_weight must be one number or one for each key",
        ),
        (
            lambda: negative_elbo(loss_fn, None, TARGETS, jax.random.key(0), num_samples=1),
            "num_samples must be at least 2",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
