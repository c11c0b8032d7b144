"""Curvature of a sweep: examples that a sample holds several times are differentiated once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.curvature import gauss_newton_diagonal
from jaxcomp.experiments.sweep import curvature
from jaxcomp.experiments.sweep.tasks import Classification, Regression, Task


def _predict(params: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
    return inputs @ params["kernel"]


@pytest.mark.parametrize("task", [Classification(), Regression()])
def test_repeated_examples_count_as_often_as_they_are_there(
    monkeypatch: pytest.MonkeyPatch, task: Task
):
    """Against all examples at once; four distinct ones in batches of three leave two to fill up."""
    monkeypatch.setattr(curvature, "BATCH_SIZE", 6)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(4, 5)).astype(np.float32)[[0, 1, 0, 2, 3, 3, 0]]
    labels = rng.integers(0, 3, len(inputs)).astype(np.int32)
    targets = labels if isinstance(task, Classification) else np.eye(3, dtype=np.float32)[labels]
    params = {"kernel": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)}
    found = curvature.measure_curvature(
        _predict,
        params,
        (inputs, targets),
        ("gauss_newton",),
        select=lambda *_: True,
        num_probes=2,
        key=jax.random.key(0),
        task=task,
    )
    expected = gauss_newton_diagonal(_predict, params, (inputs, targets), loss=task.output_loss)
    factor = task.curvature_factor(1.0, 3)
    np.testing.assert_allclose(
        found.reference["kernel"], factor * expected.mean["kernel"], rtol=1e-5
    )


def test_batches_of_counted_examples_have_one_size_and_all_the_weight():
    inputs = np.arange(5, dtype=np.float32)[[0, 1, 2, 3, 4, 4, 4, 0]][:, None]
    batches = curvature._counted_batches(inputs, np.zeros(8, np.int32), 3)
    weights = [batch[1][1] for batch in batches]
    np.testing.assert_array_equal(weights, [[2, 1, 1], [1, 3, 0]])
    assert all(len(own) == 3 for own, _ in batches)
