"""Diagonal blocks by probing, against dense Hessians, their variance, and the diagonal itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_cases import some_slow

from jaxcomp.curvature import (
    HutchinsonBlocks,
    check_finite,
    estimate_memory,
    hutchinson_blocks,
    hutchinson_diagonal,
    over_batches,
)

pytestmark = pytest.mark.usefixtures("strict_promotion")

BLOCK_SIZE = 3


def make_hessian(size=7):
    half = np.random.default_rng(0).normal(size=(size, size))
    return (half + half.T).astype(np.float32)


def quadratic_loss(params, batch):
    """`1/2 w^T H w` of all weights, averaged over the H in the batch."""
    flat = jnp.concatenate([params["a"].reshape(-1), params["b"]])
    return 0.5 * jnp.mean(jnp.einsum("i,nij,j->n", flat, batch, flat))


PARAMS = {"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32), "codes": np.arange(4)}


def exact_blocks(hessian):
    """Blocks (0 1 2), (3) of the first leaf and (4 5 6) of the second."""
    a = np.zeros((2, 3, 3))
    a[0], a[1, 0, 0] = hessian[:3, :3], hessian[3, 3]
    return {"a": a, "b": hessian[4:, 4:][None], "codes": np.zeros((2, 3, 3))}


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_blocks_of_a_known_hessian_lie_within_the_standard_errors(distribution):
    hessian = make_hessian()
    estimate = hutchinson_blocks(
        quadratic_loss,
        PARAMS,
        hessian[None],
        jax.random.key(1),
        num_probes=4096,
        block_size=BLOCK_SIZE,
        distribution=distribution,
    )
    for name, exact in exact_blocks(hessian).items():
        mean, error = np.asarray(estimate.mean[name]), np.asarray(estimate.standard_error[name])
        assert mean.dtype == np.float32
        np.testing.assert_array_less(np.abs(mean - exact), 5 * error + 1e-5)
        # To rounding: a compiler may contract the two products of an entry in either order.
        np.testing.assert_allclose(mean, np.swapaxes(mean, 1, 2), rtol=1e-6, atol=1e-6)
        # What fills the last block up is zero, and known to be.
        np.testing.assert_array_equal(mean[exact == 0], 0)


def test_variance_of_an_entry_is_that_of_the_formula():
    hessian, num_probes = make_hessian(), 4096
    estimate = hutchinson_blocks(
        quadratic_loss,
        PARAMS,
        hessian[None],
        jax.random.key(2),
        num_probes=num_probes,
        block_size=BLOCK_SIZE,
    )
    i, j = 4, 6
    others = [k for k in range(7) if k not in (i, j)]
    squares = np.sum(hessian[i, others] ** 2) + np.sum(hessian[j, others] ** 2)
    expected = (squares + (hessian[i, i] + hessian[j, j]) ** 2) / 4
    actual = num_probes * float(estimate.standard_error["b"][0, 0, 2]) ** 2
    # An estimated variance of a bounded variable of 4,096 samples: 2 to 4 %.
    np.testing.assert_allclose(actual, expected, rtol=0.15)


def test_diagonal_of_the_blocks_is_that_of_the_diagonal_estimate():
    batch = make_hessian()[None]
    arguments = quadratic_loss, PARAMS, batch, jax.random.key(3)
    blocks = hutchinson_blocks(*arguments, num_probes=4, block_size=BLOCK_SIZE)
    diagonal = hutchinson_diagonal(*arguments, num_probes=4)
    for name in ("a", "b"):
        from_blocks = np.diagonal(blocks.mean[name], axis1=1, axis2=2).ravel()
        expected = np.ravel(diagonal.mean[name])
        np.testing.assert_allclose(from_blocks[: expected.size], expected, rtol=1e-5)


@pytest.mark.parametrize("examples_per_probe", some_slow([None, 2], None))
def test_batches_do_not_matter(examples_per_probe):
    batch = np.stack([scale * make_hessian() for scale in (1, 2, 3, 4, 5)])
    kernel = HutchinsonBlocks(
        quadratic_loss,
        PARAMS,
        key=jax.random.key(4),
        num_probes=5,
        block_size=BLOCK_SIZE,
        examples_per_probe=examples_per_probe,
    )
    whole = kernel(batch)
    split = over_batches(kernel, [batch[:2], batch[2:4], batch[4:]], probes_per_chunk=2)
    for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    check_finite(split)
    # Sums with their corrections of 2 probes, mean and deviation; the three leaves have blocks of
    # 2, 1 and 2 times 9 numbers. A count and a flag beside them.
    plan = estimate_memory(kernel, batch[:2], probes_per_chunk=2)
    assert plan.state_bytes == (2 * 2 + 2) * 4 * 45 + 4 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"num_probes": 1}, "num_probes must be at least 2, got 1"),
        ({"distribution": "uniform"}, "distribution must be one of .*gaussian.*, got 'uniform'"),
    ],
)
def test_options_are_checked(options, message):
    options = {"num_probes": 2, "block_size": 2} | options
    with pytest.raises(ValueError, match=message):
        hutchinson_blocks(
            quadratic_loss, PARAMS, np.ones((1, 7, 7), np.float32), jax.random.key(0), **options
        )
