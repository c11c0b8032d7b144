"""Inputs that blocks of examples have in common: nothing is lost, outputs stay what they were."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.experiments import networks
from jaxcomp.experiments.samples import Examples
from jaxcomp.experiments.sweep import common_inputs, evaluator
from jaxcomp.experiments.sweep.common_inputs import (
    CommonInputs,
    in_common,
    multiplies_inputs,
    predict_in_common,
)
from jaxcomp.experiments.sweep.evaluator import Evaluator
from jaxcomp.experiments.sweep.subject import Parts, Subject

SHAPE = (6, 5, 1)
BLOCK = 8


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common_inputs, "BLOCK", BLOCK)
    monkeypatch.setattr(evaluator, "BLOCK", BLOCK)


def bars(number: int) -> np.ndarray:
    """Images of a bar in one of five columns, on a background that is not zero."""
    rng = np.random.default_rng(0)
    images = np.full((number, *SHAPE), -0.4, np.float32)
    column = np.arange(number) % SHAPE[1]
    images[np.arange(number), :, column] = rng.normal(size=(number, SHAPE[0], 1))
    return images


def unpacked(found: CommonInputs) -> np.ndarray:
    """Every place of every block."""
    inputs = np.repeat(found.common[:, None], found.varying.shape[1], axis=1)
    for own, columns, varying in zip(inputs, found.columns, found.varying, strict=True):
        own[:, columns] += varying
    return inputs.reshape(-1, inputs.shape[-1])


def test_examples_are_what_is_common_and_what_varies():
    """43 examples take six blocks of eight, the last with three; a seventh is not computed."""
    examples = bars(43)
    found = in_common(examples, 7)
    assert found is not None
    common, where = found
    assert len(np.unique(where)) == 43
    np.testing.assert_array_equal(unpacked(common)[where], examples.reshape(43, -1))
    varies = (np.asarray(common.varying) != 0).any(axis=1).sum(axis=1)
    # Of each bar there are eight or nine: as many blocks with one, and what is left over.
    assert varies[:6].mean() <= 2 * SHAPE[0]
    assert common.ends[-1] == 6
    assert np.all(np.diff(varies[:6]) >= 0)


@pytest.mark.parametrize("number", [1, 3])
def test_few_examples_are_one_block(number: int):
    examples = bars(number)
    found = in_common(examples, 1)
    assert found is not None
    common, where = found
    np.testing.assert_array_equal(unpacked(common)[where], examples.reshape(number, -1))


def test_examples_that_have_nothing_in_common_stay_as_they_are():
    rng = np.random.default_rng(0)
    assert in_common(rng.normal(size=(40, *SHAPE)).astype(np.float32), 5) is None
    # Half of the inputs are usual ones, but no two examples have them in the same places.
    scattered = np.where(rng.random((400, 64)) < 0.35, rng.normal(size=(400, 64)), 0.0)
    assert in_common(scattered.astype(np.float32), 50) is None


def _perceptron() -> networks.Network:
    return networks.build("mlp", input_shape=SHAPE, num_classes=3, width=1 / 32)


def test_networks_that_begin_with_a_dense_layer_are_known():
    network = _perceptron()
    params: Any = network.init(jax.random.key(0))
    example = bars(1)
    assert multiplies_inputs(network.score, params, example)
    assert multiplies_inputs(jax.jit(network.predict), params, example)
    flat, kernel = example.reshape(1, -1), jnp.ones((30, 2))
    two_branches = jnp.ones((30, 1))
    assert multiplies_inputs(lambda w, x: x @ w + jnp.sin(x @ two_branches), kernel, flat)
    for otherwise in (
        lambda w, x: (x - 1) @ w,
        lambda w, x: x @ w + x[:, :2],
        lambda w, x: (w.T @ x.T).T,
        lambda w, x: x @ x.T @ w[:1],
        lambda w, x: jnp.einsum("nf,fn->n", x, w[:, :1])[:, None],
        lambda w, x: x,
        lambda w, x: jnp.dot(x, w, preferred_element_type=jnp.bfloat16),
    ):
        assert not multiplies_inputs(otherwise, kernel, flat)
    assert not multiplies_inputs(lambda w, x: x.mean(axis=(1, 2)) @ w, jnp.ones((1, 2)), example)


def test_outputs_are_the_same_to_rounding():
    network = _perceptron()
    params = network.init(jax.random.key(1))
    examples = bars(43)
    found = in_common(examples, 7)
    assert found is not None
    common, where = found
    outputs = np.asarray(predict_in_common(network.score, params, common, SHAPE))
    expected = np.asarray(network.predict(params, examples))
    np.testing.assert_allclose(
        outputs.reshape(-1, 3)[where], expected, rtol=2e-5, atol=2e-6 * np.abs(expected).max()
    )
    assert not outputs[6].any()


def test_an_evaluator_of_many_networks_uses_it(monkeypatch: pytest.MonkeyPatch):
    """Examples drawn twice and another sample need no further program."""
    monkeypatch.setattr(evaluator, "LEAST_SIZE", 0)
    network = _perceptron()
    params = network.init(jax.random.key(2))
    images = bars(43)
    drawn = Examples(images[[0, 1, 1, 2, 0, 3, 4]], np.zeros(7, np.int32))
    validation = Examples(images[7:20], np.zeros(13, np.int32))
    test = Examples(images[20:], np.zeros(23, np.int32))
    subject = Subject(network.predict, params, ("params/hidden_0/kernel",), score_fn=network.score)
    scored = Evaluator(subject, Parts(drawn, validation, test), num_chunk_variants=1)
    for train in (drawn, Examples(images[:7], drawn.labels)):
        parts = Parts(train, validation, test)
        blocks = scored.blocks_of(*parts)
        assert isinstance(blocks.inputs, CommonInputs)
        outputs = scored.outputs([params], blocks)
        expected = network.predict(params, np.concatenate([own.inputs for own in parts]))
        np.testing.assert_allclose(outputs[0], expected, rtol=1e-4, atol=1e-5)
        shapes = jax.tree.map(jnp.shape, blocks.inputs)
        assert shapes.varying == (6, BLOCK, 30)
    assert not isinstance(scored.blocks(test.inputs).inputs, CommonInputs)
