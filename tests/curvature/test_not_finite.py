"""Where NaN began is told by layer and operation, in networks that break at a known place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from curvature_problems import leaf, perceptron_batch, perceptron_params

from jaxcomp.curvature import (
    GaussNewton,
    Hutchinson,
    check_finite,
    layer_hessians,
    over_batches,
    over_batches_until,
)
from jaxcomp.curvature.not_finite import where_it_began


def network(activation):
    def predict_fn(params, inputs):
        hidden = jnp.tanh(inputs @ params["in"] + params["bias"])
        return activation(hidden @ params["middle"]) @ params["out"]

    return predict_fn


PARAMS = perceptron_params() | {"middle": leaf(np.random.default_rng(5), 4, 4)}


def with_first(array, value):
    """The array with another value in its first row."""
    array = array.copy()
    array[0] = value
    return array


LOG, ROOT = network(jnp.log), network(lambda x: jnp.sqrt(jnp.maximum(x, 0.0)))


def test_estimators_tell_the_layer_and_the_batch():
    fine = perceptron_batch()
    # Where the logarithm is defined: hidden units of large negative inputs are not.
    middle = "it began behind the layer 'middle', in log, for examples of batches[0]"
    for estimate in (
        lambda: over_batches(GaussNewton(LOG, PARAMS), [fine]),
        lambda: layer_hessians(LOG, PARAMS, [fine], select="out"),
    ):
        with pytest.raises(ValueError, match=r"NaN or infinite entries of \d+: it began") as error:
            estimate()
        assert middle in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda p, b: (p | {"bias": with_first(p["bias"], np.inf)}, b), "in the weights bias,"),
        (lambda p, b: (p, (with_first(b[0], np.nan), b[1])), "in the data, in 0 of batches[1]"),
        (
            lambda p, b: (p | {"out": np.full((4, 3), 3e38, np.float32)}, b),
            "in the layer 'out', in dot_general",
        ),
    ],
)
def test_weights_data_and_overflow(spoil, expected):
    params, second = spoil(PARAMS, perceptron_batch(seed=7))
    first = perceptron_batch() if "batches[1]" in expected else second

    def evaluate(params, batch):
        return network(lambda x: x)(params, batch[0])

    assert expected in where_it_began(evaluate, params, [first, second])


def loss_of_roots(params, batch):
    return jnp.mean(jnp.square(ROOT(params, batch[0])))


def test_derivatives_are_looked_through_too():
    # The root of 0 is finite, its derivative is not.
    hutchinson = Hutchinson(loss_of_roots, PARAMS, key=jax.random.key(0), num_probes=2)
    with pytest.raises(ValueError, match=r"in the gradient, behind the layer '(middle|out)', in"):
        over_batches_until(hutchinson, [perceptron_batch()], relative_error=0.1, min_probes=2)


def masked(params, inputs):
    """A mask of minus infinity is a constant; what breaks is the logarithm behind it."""
    scores = jnp.where(inputs > 0, inputs @ params["w"], -jnp.inf)
    weights = jnp.exp(scores)
    return jnp.log(jnp.sum(weights, axis=1) - jnp.sum(weights, axis=1) - 1)


def test_a_constant_infinity_is_no_beginning():
    said = where_it_began(masked, {"w": np.eye(3, dtype=np.float32)}, [perceptron_batch()[0]])
    assert said == "it began behind the layer 'w', in log, for examples of batches[0]"


def test_calls_and_loops_are_walked_through():
    def predict_fn(params, inputs):
        hidden = jax.checkpoint(jax.jit(lambda w, x: jax.nn.relu(x @ w)))(params["first"], inputs)

        def step(carry, weight):
            return jnp.log(carry @ weight), None

        return jax.lax.scan(step, hidden, params["stack"])[0]

    params = {
        "first": np.eye(3, dtype=np.float32),
        "stack": np.stack([np.eye(3, dtype=np.float32), -np.eye(3, dtype=np.float32)]),
    }
    said = where_it_began(predict_fn, params, [perceptron_batch()[0]])
    assert said == "it began in the layer 'stack', in scan, for examples of batches[0]"


def test_what_is_finite_everywhere_is_said():
    said = where_it_began(
        lambda p, x: jnp.tanh(x @ p), np.ones((3, 2), np.float32), [np.ones((2, 3), np.float32)]
    )
    assert said.startswith("weights, data, function and derivatives are finite")


def test_without_a_function_the_leaf_is_named():
    with pytest.raises(ValueError, match=r"curvature\['w'\] has 1 .*over_batches of an estimator"):
        check_finite({"w": np.float32([np.nan])})
