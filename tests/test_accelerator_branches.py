"""What kernels compute on accelerators, computed here, against what they compute on CPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcomp import quantizers, training
from jaxcomp.quantizers.assignment import nearest_thresholds
from jaxcomp.quantizers.chunk_errors import counts_of
from jaxcomp.quantizers.input_classes import count_codes
from jaxcomp.quantizers.problems import Chunk
from jaxcomp.quantizers.scalar import trellis
from jaxcomp.quantizers.solution import quantize_points

N, K = 3000, 4


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return (
        rng.standard_t(3, N).astype(np.float32),
        rng.gamma(1, 1, N).astype(np.float32),
    )


def joint(points, importance):
    return quantizers.joint_moments(points, importance, num_bins=16, num_levels=3)


def measured(points, importance):
    centroids = jnp.array([-3.0, -0.5, 0.5, 3.0])
    codebook = quantizers.Codebook(centroids, nearest_thresholds(centroids), jnp.int32(K))
    found = quantize_points(
        points, importance, codebook, num_iterations=jnp.int32(0), converged=jnp.asarray(True)
    )
    return found.counts, found.distortion


def counts(points, importance):
    codes = jnp.clip(jnp.round(points), 0, K - 1).astype(jnp.int32)
    return counts_of(Chunk(points, importance, None, jnp.int32(7)), codes, K)


def counts_of_classes(points, importance):
    codes = jnp.clip(jnp.round(points), -5, 5).astype(jnp.int16).reshape(1, 30, -1)
    classes = jnp.arange(30, dtype=jnp.int32)[None] % 3
    return count_codes(codes, classes, classes < 2, num_classes=3, max_code=5)


def paths(points, importance):
    shape = (30, N // 30)
    chains = trellis.Weights(
        points.reshape(shape), importance.reshape(shape), jnp.full(N // 30, 29)
    )
    return trellis.design(chains, jnp.float32(0.1), num_magnitudes=8).price


def gradients(points, importance):
    def loss(points, codebook):
        return jnp.sum(importance * training.quantize_ste(points, codebook) ** 2)

    return jax.grad(loss, argnums=(0, 1))(points, jnp.array([-2.0, 0.5, 3.0]))


def fine_tuned(points, importance):
    def loss(params, batch):
        return jnp.mean(batch * params["w"] ** 2)

    index = {"w": jnp.arange(N, dtype=jnp.int32) % 3}
    found = training.fine_tune_codebook(
        loss, {"w": jnp.array([-2.0, 0.5, 3.0])}, index, importance[None], optimizer=optax.sgd(0.1)
    )
    return found.centroids


KERNELS = [joint, measured, counts, counts_of_classes, paths, gradients, fine_tuned]


@jax.jit
def everything(points, importance):
    """One program: what kernels do around theirs is compiled with them."""
    return [kernel(points, importance) for kernel in KERNELS]


def test_branches_agree_to_rounding(weights, accelerator_branches):
    on_cpu = jax.tree.map(np.asarray, everything(*weights))
    with accelerator_branches():
        elsewhere = jax.tree.map(np.asarray, everything(*weights))
    for kernel, ours, theirs in zip(KERNELS, elsewhere, on_cpu, strict=True):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            if jnp.issubdtype(a.dtype, jnp.integer):
                np.testing.assert_array_equal(a, b, err_msg=kernel.__name__)
            else:
                scale = float(np.max(np.abs(np.where(np.isfinite(b), b, 0))))
                np.testing.assert_allclose(
                    a, b, rtol=2e-4, atol=1e-5 * scale, err_msg=kernel.__name__
                )
