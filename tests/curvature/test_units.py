"""Weights of 2^-110 and 2^100: curvature is that of the same network at ordinary size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from curvature_problems import perceptron_batch, perceptron_params, relu_network
from slow_cases import some_slow

from jaxcomp import compress
from jaxcomp.curvature import (
    DiagonalEstimate,
    Fisher,
    GaussNewton,
    Hutchinson,
    HutchinsonBlocks,
    layer_hessians,
    mean_over_batches,
    over_batches,
    over_batches_until,
)
from jaxcomp.quantizers import Uniform

KEY = jax.random.key(0)
BATCH = perceptron_batch()
# Leaves whose largest weight is in [1, 2): probes are then the same in the units of any of them.
ORDINARY = {
    name: np.ldexp(leaf, -int(np.floor(np.log2(np.max(np.abs(leaf))))))
    for name, leaf in perceptron_params().items()
} | {"unused": np.zeros(3, np.float32)}
# By how much each leaf is scaled, so that the network is the same function: ReLU is homogeneous.
SHIFTS = {shift: {"in": shift, "bias": shift, "out": -shift, "unused": 0} for shift in (-110, 100)}


def scaled(shift):
    return {name: np.ldexp(leaf, SHIFTS[shift][name]) for name, leaf in ORDINARY.items()}


def loss_fn(params, batch):
    logits = relu_network(params, batch[0])
    chosen = jnp.take_along_axis(logits, batch[1].reshape(-1, 1), axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)


ESTIMATORS = {
    "exact": lambda params: GaussNewton(relu_network, params),
    "labels": lambda params: GaussNewton(relu_network, params, num_label_samples=2, key=KEY),
    "fisher": lambda params: Fisher(loss_fn, params),
    "hutchinson": lambda params: Hutchinson(loss_fn, params, key=KEY, num_probes=3),
    "blocks": lambda params: HutchinsonBlocks(loss_fn, params, key=KEY, num_probes=3, block_size=2),
}


def assert_same_but_for_units(found, expected, shift):
    assert expected.exponent is None
    for name, mean in expected.mean.items():
        assert int(found.exponent[name]) == -2 * SHIFTS[shift][name]
        np.testing.assert_allclose(found.mean[name], mean, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(
            found.standard_error[name], expected.standard_error[name], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", some_slow(ESTIMATORS, "labels", "blocks"))
def test_curvature_is_not_lost(name, shift):
    make = ESTIMATORS[name]
    plain, found = make(ORDINARY)(BATCH), make(scaled(shift))(BATCH)
    assert_same_but_for_units(found, plain, shift)


@pytest.mark.parametrize("shift", SHIFTS)
def test_over_batches_too(shift):
    params, batches = scaled(shift), [BATCH, perceptron_batch(seed=2)]
    for name, average in (("hutchinson", over_batches), ("exact", mean_over_batches)):
        expected, found = (average(ESTIMATORS[name](p), batches) for p in (ORDINARY, params))
        assert_same_but_for_units(found, expected, shift)
    options = {"relative_error": 0.5, "min_probes": 2}
    ordinary, precise = (
        over_batches_until(ESTIMATORS["hutchinson"](p), batches, **options)
        for p in (ORDINARY, params)
    )
    assert precise.num_probes == ordinary.num_probes
    assert_same_but_for_units(precise.estimate, ordinary.estimate, shift)


def test_a_dead_leaf_of_tiny_weights_keeps_its_ordinary_curvature():
    """What is tiny by itself has the curvature of any bias, which its own unit would lose."""
    params = ORDINARY
    tiny = params | {"bias": np.ldexp(params["bias"], -110)}
    found = GaussNewton(relu_network, tiny)(BATCH)
    assert found.exponent is None
    assert np.all(np.asarray(found.mean["bias"]) > 1e-3)
    # And one that nothing depends on stays at zero, in no unit.
    unused = params | {"unused": np.full(3, 1e-35, np.float32)}
    found = GaussNewton(relu_network, unused)(BATCH)
    np.testing.assert_array_equal(found.mean["unused"], 0.0)
    assert found.exponent is None


def test_inside_jit_nothing_is_looked_at():
    mean = jax.jit(lambda p: GaussNewton(relu_network, p)(BATCH).mean["in"])(scaled(-110))
    assert not np.all(np.isfinite(mean))


@pytest.mark.parametrize("shift", SHIFTS)
def test_compress_weighs_leaves_against_each_other_as_before(shift):
    expected, found = (
        compress(p, Uniform(2), importance=GaussNewton(relu_network, p)(BATCH))
        for p in (ORDINARY, scaled(shift))
    )
    for name in ("in", "out"):
        np.testing.assert_array_equal(found.codes(name), expected.codes(name))
        # Weighted means of the weights of a cluster.
        centroids = np.ldexp(found.codebook(name), -SHIFTS[shift][name])
        np.testing.assert_allclose(centroids, expected.codebook(name), rtol=1e-5)
    assert found.report().distortion == pytest.approx(expected.report().distortion, rel=1e-4)


def test_tied_leaves_add_up_in_one_unit():
    weights = perceptron_params()["in"]
    ones = np.ones_like(weights)
    mean = {"a": ones, "b": 4 * ones}
    exponent = {"a": np.int32(2), "b": np.int32(0)}
    tied = {"a": weights, "b": weights}
    found = compress(tied, Uniform(2), importance=DiagonalEstimate(mean, mean, exponent))
    expected = compress(tied, Uniform(2), importance={"a": 4 * ones, "b": 4 * ones + 0})
    assert found.report().distortion == pytest.approx(expected.report().distortion, rel=1e-6)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("per_output", [False, True])
def test_hessians_of_layers_are_not_lost(per_output, shift):
    """Inputs of a layer are as far from 1 as its weights, the other way."""
    batches = [BATCH, perceptron_batch(seed=2)]
    expected, found = (
        layer_hessians(relu_network, p, batches, per_output=per_output)
        for p in (ORDINARY, scaled(shift))
    )
    # The first layer has the data as its inputs.
    assert per_output or found["in"].exponent is None
    for name, layer in found.items():
        exponent = 0 if layer.exponent is None else int(layer.exponent[0])
        assert exponent == (-2 * SHIFTS[shift][name] if per_output or name == "out" else 0)
        np.testing.assert_allclose(layer.hessian, expected[name].hessian, rtol=1e-6, atol=1e-9)
