"""What JAX can do to a function, or set for all of them, works for every public kernel.

One table of small calls; every test runs it in another mode, against the results of the default
mode (which itself runs under strict promotion). The arrays of all modes have the same few shapes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcomp
from jaxcomp import bounds, curvature, quantizers, rate_distortion
from jaxcomp.transformations import counted_loop

RNG = np.random.default_rng(0)
POINTS = jnp.asarray(RNG.normal(size=24), jnp.float32)
IMPORTANCE = jnp.asarray(RNG.uniform(0.5, 2, size=24), jnp.float32)
CENTRES = jnp.asarray([-1.0, 0.25, 1.0], jnp.float32)
NETWORK = {
    "a": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32),
}
INPUTS = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 2, size=6), jnp.int32)
KEY = jax.random.key(0)
INDEX = jnp.arange(3, dtype=jnp.int32)
LENGTHS = jnp.asarray([1.0, 2.0, 2.0], jnp.float32)
MULTIPLIERS = jnp.asarray([0.1, 0.5], jnp.float32)


def predict(params, inputs):
    return jnp.tanh(inputs @ params["a"]) @ params["b"]


def loss(params, batch):
    inputs, labels = batch
    log_probabilities = jax.nn.log_softmax(predict(params, inputs))
    chosen = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)
    return -jnp.mean(chosen)


def matrix(values):
    return values.reshape(4, 6)


def vectors(values):
    return values.reshape(12, 2)


# Solvers of points and importances: codebooks.
SOLVERS = {
    "kmeans": lambda w, h: quantizers.kmeans(w, h, num_clusters=3),
    "kmeans of bins": lambda w, h: quantizers.kmeans(
        w, h, num_clusters=3, num_bins=8, diameter_penalty=0.01
    ),
    "uniform": lambda w, h: quantizers.uniform(w, h, num_clusters=3),
    "polish": lambda w, h: quantizers.polish_kmeans(w, h, initial_centroids=CENTRES),
    "blocks": lambda w, h: quantizers.block_kmeans(
        matrix(w), matrix(h), block_shape=(2, 6), num_clusters=3
    ),
    "vectors": lambda w, h: quantizers.vector_kmeans(
        vectors(w), vectors(h), num_clusters=3, key=KEY
    ),
    "optimal": lambda w, h: quantizers.optimal_kmeans(w, h, max_clusters=3),
    "optimal codebook": lambda w, h: quantizers.optimal_kmeans(w, h, max_clusters=3).codebook(2),
    "optimal diameter": lambda w, h: quantizers.optimal_diameter_kmeans(
        w, h, max_clusters=3, num_outer=4
    ).solve(3, 0.01),
    "entropy": lambda w, h: quantizers.entropy_constrained(
        w, h, multipliers=MULTIPLIERS, max_clusters=4
    ),
}
# Those whose distortion has a derivative, at a codebook held fixed.
MEASURING = ("kmeans", "kmeans of bins", "uniform", "polish", "blocks", "vectors")

# Everything else of points and importances.
OTHERS = {
    "rounding": lambda w, h: quantizers.round_to_nearest(matrix(w), num_bits=3),
    "pruning": lambda w, h: quantizers.prune_by_magnitude(w, 0.5),
    "straight through": lambda w, h: quantizers.quantize_ste(w, CENTRES),
    "looked up": lambda w, h: quantizers.look_up(CENTRES, INDEX),
    "assignment by cost": lambda w, h: quantizers.assign_by_cost(
        w, h, CENTRES, LENGTHS, 0.1
    ),
    "tree": lambda w, h: jaxcomp.quantize({"w": matrix(w)}, num_clusters=3).dequantize(),
    "catoni": lambda w, h: bounds.catoni(0.1, 50.0, num_examples=1000, delta=0.05),
    "occam": lambda w, h: bounds.occam(0.1, 50.0, num_examples=1000, delta=0.05, tail="chernoff"),
    "gaussian complexity": lambda w, h: bounds.gaussian_complexity(w, 0.1),
}
# Those that call a function of the caller.
CURVATURE = {
    "gauss_newton": lambda: curvature.gauss_newton_diagonal(predict, NETWORK, (INPUTS, LABELS)),
    "fisher": lambda: curvature.fisher_diagonal(loss, NETWORK, (INPUTS, LABELS)),
    "hutchinson": lambda: curvature.hutchinson_diagonal(
        loss, NETWORK, (INPUTS, LABELS), KEY, num_probes=2
    ),
    "over batches": lambda: curvature.over_batches(
        partial(curvature.gauss_newton_diagonal, predict, NETWORK), [(INPUTS, LABELS)] * 2
    ),
}


def call(name):
    if name in CURVATURE:
        return CURVATURE[name]()
    return (SOLVERS | OTHERS)[name](POINTS, IMPORTANCE)


NAMES = [*SOLVERS, *OTHERS, *CURVATURE]


@pytest.fixture(scope="module")
def expected():
    """Results of the default mode, each computed once, under strict promotion."""
    found = {}

    def of(name):
        if name not in found:
            with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
                found[name] = jax.tree.map(np.asarray, call(name))
        return found[name]

    return of


def assert_same(found, wanted, **tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), **tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_runs_without_jit(name, expected):
    wanted = expected(name)
    with jax.disable_jit():
        assert_same(call(name), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_runs_with_checks_for_nan(name, expected):
    wanted = expected(name)
    with jax.debug_nans(True):
        assert_same(call(name), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_moves_its_own_numbers_to_the_device(name, expected):
    wanted = expected(name)
    with jax.transfer_guard("disallow"):
        assert_same(call(name), wanted)
