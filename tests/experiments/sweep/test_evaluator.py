"""Outputs of many networks: one after the other, as on CPUs, or stacked, as on accelerators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.experiments.samples import Examples
from jaxcomp.experiments.sweep.evaluator import Evaluator
from jaxcomp.experiments.sweep.subject import Parts, Subject


def predict(params: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
    return jnp.tanh(inputs @ params["hidden"]) @ params["output"]


def _never(params: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
    raise AssertionError("this function is for derivatives")


@pytest.mark.parametrize("is_on_cpu", [True, False])
def test_outputs_do_not_depend_on_blocks_and_neighbours(is_on_cpu: bool):
    """Seven examples in blocks of three: two places are filled; so is one of three networks."""
    rng = np.random.default_rng(0)
    networks = [
        {
            "hidden": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32),
            "output": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
        }
        for _ in range(2)
    ]
    inputs = rng.normal(size=(7, 5)).astype(np.float32)
    examples = Examples(inputs, np.zeros(7, np.int32))
    # Scores take the faster of two functions, which no test could tell from the other by values.
    subject = Subject(_never, networks[0], layers=("hidden", "output"), score_fn=predict)
    evaluator = Evaluator(subject, Parts(examples, examples, examples), num_chunk_variants=3)
    evaluator.block, evaluator.is_on_cpu = 3, is_on_cpu
    outputs = evaluator.outputs(networks, evaluator.blocks(inputs[:2], inputs[2:]))
    expected = np.stack([predict(params, inputs) for params in networks])
    assert outputs.shape == (2, 7, 3)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_on_cpu", [True, False])
def test_repeated_examples_are_evaluated_once(is_on_cpu: bool):
    """Shapes stay those of all examples on a CPU; blocks without any are not computed."""
    network = {"hidden": jnp.eye(5, 4), "output": jnp.ones((4, 3))}
    few = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    inputs = few[[0, 1, 0, 1, 2, 2, 3]]
    examples = Examples(inputs, np.zeros(7, np.int32))
    subject = Subject(predict, network, layers=("hidden", "output"))
    evaluator = Evaluator(subject, Parts(examples, examples, examples), num_chunk_variants=1)
    evaluator.block, evaluator.is_on_cpu = 2, is_on_cpu
    blocks = evaluator.blocks(inputs[:3], inputs[3:])
    others = evaluator.blocks(np.arange(35, dtype=np.float32).reshape(7, 5))
    assert others.inputs.shape == blocks.inputs.shape
    assert (others.num_blocks, blocks.num_blocks) == (4, 2)
    outputs = evaluator.outputs([network], blocks)
    np.testing.assert_allclose(outputs[0], predict(network, inputs), rtol=1e-5, atol=1e-6)
