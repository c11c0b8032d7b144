"""Adam's second moments: found at any depth of optax's state, against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxcomp.curvature import adam_second_moments

B2 = 0.9
NUM_STEPS = 3


def make_params():
    return {"w": np.float32([[0.5, -1.0], [2.0, 0.1]]), "dead": np.zeros(3, np.float32)}


def gradients(step):
    rng = np.random.default_rng(step)
    return {"w": rng.normal(size=(2, 2)).astype(np.float32), "dead": np.zeros(3, np.float32)}


def expected_w():
    """The running mean of squares, bias-corrected, its root divided by its mean."""
    nu = np.zeros((2, 2))
    for step in range(NUM_STEPS):
        nu = B2 * nu + (1 - B2) * np.square(np.asarray(gradients(step)["w"], np.float64))
    root = np.sqrt(nu / (1 - B2**NUM_STEPS))
    return root / root.mean()


def train(optimizer, num_steps=NUM_STEPS):
    params = make_params()
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(num_steps):
        _, state = update(gradients(step), state, params)
    return state


OPTIMIZERS = {
    "adam": lambda: optax.adam(0.1, b2=B2),
    "chain": lambda: optax.chain(optax.clip(10.0), optax.adamw(0.1, b2=B2), optax.scale(0.5)),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1, b2=B2),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(0.1, b2=B2), every_k_schedule=1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_are_found_at_any_depth(name):
    estimate = adam_second_moments(train(OPTIMIZERS[name]()))
    np.testing.assert_allclose(estimate.mean["w"], expected_w(), rtol=1e-5)
    np.testing.assert_array_equal(estimate.mean["dead"], np.zeros(3))
    for leaf in jax.tree.leaves(estimate.standard_error):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


def test_scale_of_the_gradients_does_not_matter():
    state = train(optax.scale_by_adam(b2=B2))
    tiny = state._replace(nu=jax.tree.map(lambda x: np.asarray(x) * np.float32(1e-30), state.nu))
    np.testing.assert_allclose(adam_second_moments(tiny).mean["w"], expected_w(), rtol=1e-5)


def test_stacked_models_by_vmap():
    states = [train(optax.adam(0.1, b2=B2), num_steps) for num_steps in (1, NUM_STEPS)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *states)
    mapped = jax.jit(jax.vmap(adam_second_moments))(stacked)
    for i, state in enumerate(states):
        np.testing.assert_allclose(
            mapped.mean["w"][i], adam_second_moments(state).mean["w"], rtol=1e-6
        )
    with pytest.raises(ValueError, match=r"steps in an array of shape \(2,\), .* with jax.vmap"):
        adam_second_moments(stacked)


def test_state_of_a_flax_optimizer():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    gradient = nnx.grad(lambda m: jnp.mean(jnp.square(m(jnp.ones((4, 3))))))(model)
    optimizer.update(model, gradient)
    # Before 0.12.7 Flax calls it `pure`.
    as_pure = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure
    mean = as_pure(adam_second_moments(as_pure(optimizer.opt_state)).mean)
    size = np.abs(np.asarray(gradient["kernel"].get_value()))
    np.testing.assert_allclose(mean["kernel"], size / size.mean(), rtol=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "num_steps", "message"),
    [
        (optax.sgd(0.1), 1, "holds no optax.ScaleByAdamState, .* got tuple; pass the state of"),
        (
            optax.chain(optax.adam(0.1), optax.adam(0.1)),
            1,
            r"holds 2 states of Adam, at opt_state\[0\]\[0\], opt_state\[1\]\[0\]; pass one",
        ),
        (optax.adam(0.1), 0, "Adam has not made a step yet, so its second moments are empty"),
    ],
)
def test_states_without_one_adam_are_named(optimizer, num_steps, message):
    with pytest.raises(ValueError, match=message):
        adam_second_moments(train(optimizer, num_steps))
