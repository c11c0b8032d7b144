"""What kernels become on accelerators, read from their lowered programs; no device is needed.

Nothing is compiled. The kernels of curvature are in `tests/curvature/test_lowering.py`.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slow_cases import some_slow

from jaxcomp import bits_back, bounds, coding, quantizers, training
from jaxcomp import linear_regression as regression
from jaxcomp import rate_distortion as limits
from jaxcomp.bits_back.posterior import Posterior
from jaxcomp.evaluation import calibration, metrics
from jaxcomp.numerics import precision
from jaxcomp.quantizers import passes
from jaxcomp.quantizers.chunk_errors import counts_of, measured
from jaxcomp.quantizers.problems import Chunk
from jaxcomp.quantizers.scalar import coarse_to_fine, lloyd, optimal, trellis

PLATFORMS = ("cuda", "tpu")
# Many more weights than bins, and bins than clusters.
N, BINS, K = 1 << 17, 48, 4
# For kernels that compute in float64, but only on bins or clusters.
FEWER = N - 1


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def integers(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


class Case(NamedTuple):
    """A kernel, what it is lowered for, and what its program may hold.

    Attributes:
        kernel: a function of arrays.
        arguments: their shapes.
        float64: most entries of an array of float64; fewer than there are weights, always.
    """

    kernel: Callable[..., Any]
    arguments: tuple[Any, ...]
    float64: int = 0


KEY = jax.eval_shape(lambda: jax.random.key(0))
WEIGHTS = (floats(N), floats(N))
MOMENTS = jax.eval_shape(partial(quantizers.histogram_moments, num_bins=BINS), *WEIGHTS)
CELLS = jax.eval_shape(partial(quantizers.joint_moments, num_bins=16, num_levels=3), *WEIGHTS)
CHUNK = Chunk(*WEIGHTS, None, integers())
LEAVES = 3


def on_moments(solver: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return lambda *moments: solver(quantizers.Moments(*moments), max_clusters=K, **options)


def of_leaves(
    method: quantizers.Method, moments: Any, numbers: jax.ShapeDtypeStruct, *, float64: int = 0
) -> Case:
    """Solve several leaves by one call, as methods do."""
    dtype = np.dtype(np.float32)

    def solve(numbers: jax.Array, *moments: jax.Array) -> Any:
        return method._solve(quantizers.Moments(*moments), numbers, max_clusters=K, dtype=dtype)

    stacked = (jax.ShapeDtypeStruct((LEAVES, 1, *part.shape), part.dtype) for part in moments)
    return Case(solve, (numbers, *stacked), float64)


def program(case: Case, platforms: tuple[str, ...] = PLATFORMS) -> "Program":
    """Lower a kernel once; where platforms differ, the program holds the branches of each."""
    # A wrapper, for some take arrays alone and no bare shapes.
    traced = jax.jit(lambda *arguments: case.kernel(*arguments)).trace(*case.arguments)
    return read(traced.lower(lowering_platforms=platforms).compiler_ir("stablehlo"))


class Program(NamedTuple):
    """What is in a lowered program.

    Attributes:
        float64: entries of the largest array of float64.
        scattered: entries of the largest array that a scatter adds up, or takes the extreme of.
        calls: names of custom calls, as callbacks on the host are.
    """

    float64: int
    scattered: int
    calls: set[str]


def _entries(type_: str, dtype: str = r"\w+") -> int:
    found = re.fullmatch(rf"tensor<((?:\d+x)*){dtype}>", type_)
    return math.prod(int(n) for n in found[1].split("x")[:-1]) if found else 0


def read(module: Any) -> Program:
    """Walk a module, its private functions and its regions."""
    float64, scattered, calls = 0, 0, set()

    def visit(operation: Any) -> None:
        nonlocal float64, scattered
        operands = [str(value.type) for value in operation.operands]
        results = [str(value.type) for value in operation.results]
        float64 = max(float64, *(_entries(t, "f64") for t in [*operands, *results]), 0)
        if operation.name == "stablehlo.scatter":
            number = len(operands) // 2
            body = [op.operation.name for op in operation.regions[0].blocks[0].operations]
            if body != ["stablehlo.return"]:
                scattered = max(scattered, *(_entries(t) for t in operands[number + 1 :]))
        if operation.name == "stablehlo.custom_call":
            calls.add(str(operation.attributes["call_target_name"]).strip('"'))
        for region in operation.regions:
            for block in region.blocks:
                for inner in block.operations:
                    visit(inner.operation)

    visit(module.operation)
    return Program(float64, scattered, calls)


def loss(params: Any, batch: Any) -> jax.Array:
    inputs, targets = batch
    return jnp.mean(jnp.square(inputs @ params["w"] - targets))


def initial(key: jax.Array) -> dict[str, jax.Array]:
    return {"w": jax.random.normal(key, SHAPE)}


SHAPE = (512, N // 512)
BATCH = (floats(8, SHAPE[0]), floats(8, SHAPE[1]))
POSTERIOR = Posterior({"w": floats(3, 2)}, {"w": floats(3, 2)})
LAYER = (floats(1, 8, 6), floats(1, 8, 8))

QUANTIZERS = {
    "histogram": Case(partial(quantizers.histogram_moments, num_bins=BINS), WEIGHTS),
    "histogram_of_equal_weights": Case(
        partial(quantizers.histogram_moments, num_bins=BINS), (floats(2, N),)
    ),
    "exact_histogram": Case(
        partial(quantizers.histogram_moments, num_bins=BINS), (floats(BINS), floats(BINS))
    ),
    "joint_histogram": Case(partial(quantizers.joint_moments, num_bins=16, num_levels=3), WEIGHTS),
    "joint_histogram_of_points": Case(quantizers.joint_moments, WEIGHTS),
    "assign": Case(quantizers.assign, (floats(N), floats(K - 1))),
    "assign_by_cost": Case(quantizers.assign_by_cost, (*WEIGHTS, floats(K), floats(K), floats())),
    "prune": Case(quantizers.prune_by_magnitude, (floats(N), floats()), float64=1),
    "round_to_nearest": Case(
        partial(quantizers.round_to_nearest, num_bits=3), (floats(N // 512, 512),)
    ),
    "solve_kmeans": Case(
        lambda *m: quantizers.solve_kmeans(quantizers.Moments(*m), K, max_clusters=K),
        (*MOMENTS,),
        float64=FEWER,
    ),
    "kmeans": Case(
        partial(quantizers.kmeans, num_clusters=K, num_bins=BINS), WEIGHTS, float64=FEWER
    ),
    "block_kmeans": Case(
        partial(
            quantizers.block_kmeans, block_shape=(N // 1024, 256), num_clusters=K, num_bins=BINS
        ),
        (floats(N // 512, 512),),
        float64=FEWER,
    ),
    "plus_plus_start": Case(
        lambda key, *m: quantizers.plus_plus_start(quantizers.Moments(*m), K, key, max_clusters=K),
        (KEY, *MOMENTS),
    ),
    "polish_kmeans": Case(
        lambda points, first: quantizers.polish_kmeans(points, initial_centroids=first),
        (floats(N), floats(K)),
    ),
    "solve_optimal": Case(on_moments(quantizers.solve_optimal), (*MOMENTS,), float64=FEWER),
    "optimal_kmeans": Case(
        partial(quantizers.optimal_kmeans, max_clusters=K, num_bins=BINS), WEIGHTS, float64=FEWER
    ),
    "optimal_diameter_kmeans": Case(
        partial(quantizers.optimal_diameter_kmeans, max_clusters=K, num_bins=BINS, num_outer=4),
        WEIGHTS,
    ),
    "solve_uniform": Case(
        lambda *m: quantizers.solve_uniform(quantizers.Moments(*m), K, max_clusters=K), (*MOMENTS,)
    ),
    "uniform": Case(partial(quantizers.uniform, num_clusters=K, num_bins=BINS), WEIGHTS),
    "solve_entropy_constrained": Case(
        lambda multipliers, *m: quantizers.solve_entropy_constrained(
            quantizers.Moments(*m), multipliers, max_clusters=K
        ),
        (floats(2), *CELLS),
    ),
    "kmeans_of_leaves": of_leaves(quantizers.KMeans(), MOMENTS, integers(LEAVES, 2), float64=FEWER),
    "optimal_of_leaves": of_leaves(
        quantizers.Optimal(), MOMENTS, integers(LEAVES, 2), float64=FEWER
    ),
    "uniform_of_leaves": of_leaves(quantizers.Uniform(), MOMENTS, integers(LEAVES, 2)),
    "entropy_constrained_of_leaves": of_leaves(
        quantizers.EntropyConstrained(), CELLS, floats(LEAVES, 2)
    ),
    "entropy_constrained": Case(
        partial(quantizers.entropy_constrained, max_clusters=K, num_bins=16, num_levels=3),
        WEIGHTS,
    ),
    "vector_kmeans": Case(
        lambda points, importance, key: quantizers.vector_kmeans(
            points, importance, num_clusters=K, key=key
        ),
        (floats(N, 2), floats(N, 2), KEY),
    ),
    "fill": Case(
        lambda chunk, unit, rule: passes._fill(
            chunk, unit, rule, None, num_bins=BINS, num_levels=1
        ),
        (
            CHUNK,
            passes._Unit(integers(1), integers(1), *(floats(1),) * 4),
            passes.CutBins(*(floats(1, BINS),) * 4),
        ),
    ),
    "counts": Case(partial(counts_of, num_codes=K), (CHUNK, integers(N))),
    "measured": Case(partial(measured, dtype=jnp.float32), (CHUNK, floats(N))),
    "trellis": Case(
        lambda values, importance, slope: trellis.design(
            trellis.Weights(values, importance, jnp.full(N // 32, 32, jnp.int32)),
            slope,
            num_magnitudes=8,
        ),
        (floats(32, N // 32), floats(32, N // 32), floats()),
    ),
    "round_layer": Case(quantizers.round_layer, (*LAYER, floats())),
    "output_importance": Case(quantizers.output_importance, LAYER),
}

PROBLEM = regression.make_problem(np.ones(3))

OTHERS = {
    "blahut_arimoto": Case(
        limits.blahut_arimoto, (floats(8), floats(8, 6), floats(3)), float64=FEWER
    ),
    "squared_error_curve": Case(
        partial(limits.squared_error_curve, num_reproductions=16),
        (floats(16), floats(16), floats(2)),
        float64=FEWER,
    ),
    "gaussian_rate": Case(limits.gaussian_rate, (floats(8), floats(8), floats(3))),
    "gaussian_distortion": Case(limits.gaussian_distortion, (floats(8), floats(8), floats(3))),
    "shannon_rate": Case(limits.shannon_rate, (floats(), floats(3)), float64=FEWER),
    "density_entropy": Case(limits.density_entropy, (floats(32), floats(32)), float64=FEWER),
    "occam": Case(
        lambda error, bits: bounds.occam(error, bits, num_examples=1000, delta=0.05),
        (floats(), floats()),
        float64=FEWER,
    ),
    "pac_bayes_kl": Case(
        lambda error, nats: bounds.pac_bayes_kl(error, nats, num_examples=1000, delta=0.05),
        (floats(), floats()),
        float64=FEWER,
    ),
    "catoni": Case(
        lambda error, nats: bounds.catoni(error, nats, num_examples=1000, delta=0.05),
        (floats(), floats()),
        float64=FEWER,
    ),
    "kl_inverse": Case(bounds.kl_inverse, (floats(), floats()), float64=FEWER),
    "gaussian_complexity": Case(
        lambda mean, scale: bounds.gaussian_complexity(mean, scale),
        (floats(64), floats(64)),
        float64=FEWER,
    ),
    "population_risk": Case(
        lambda rate: bounds.population_risk(
            rate,
            num_weights=10,
            zero_rate_distortion=1.0,
            num_examples=100,
            sub_gaussian_scale=1.0,
        ),
        (floats(4),),
        float64=FEWER,
    ),
    "kl_nats": Case(
        lambda posterior: bits_back.kl_nats(posterior, coding.Gaussian(1.0)),
        (POSTERIOR,),
        float64=FEWER,
    ),
    "fit": Case(
        lambda batch, key: bits_back.fit(
            loss,
            initial,
            batch,
            key,
            config=bits_back.VariationalConfig(num_steps=2, batch_size=4),
        ),
        (BATCH, KEY),
        float64=FEWER,
    ),
    "sample": Case(bits_back.sample, (POSTERIOR, KEY)),
    "quantize": Case(partial(coding.quantize, step=0.1), (floats(64),), float64=FEWER),
    "code_length_bits": Case(
        lambda weights: coding.code_length_bits(weights, coding.Gaussian(1.0), step=0.1),
        (floats(64),),
        float64=FEWER,
    ),
    "optimal_step": Case(coding.optimal_step, (floats(64),), float64=FEWER),
    "l2_rate_nats": Case(coding.l2_rate_nats, (floats(8), floats()), float64=FEWER),
    "quantize_ste": Case(training.quantize_ste, (floats(N), floats(K))),
    "gradient_of_quantize_ste": Case(
        jax.grad(lambda w, c: jnp.sum(training.quantize_ste(w, c) ** 2), argnums=(0, 1)),
        (floats(N), floats(K)),
    ),
    "fine_tune_codebook": Case(
        lambda centroids, index, batches: training.fine_tune_codebook(
            loss, {"w": centroids}, {"w": index}, batches, optimizer=optax.sgd(0.1)
        ),
        (floats(K), integers(*SHAPE), (floats(2, 8, SHAPE[0]), floats(2, 8, SHAPE[1]))),
    ),
    "scores": Case(metrics.scores, (floats(N, 10), integers(N))),
    "margins": Case(metrics.margins, (floats(N, 10), integers(N))),
    "fit_temperature": Case(calibration.fit_temperature, (floats(N, 10), integers(N))),
    "draw_solutions": Case(
        lambda key: regression.draw_solutions(PROBLEM, key, num_examples=16, num_datasets=4),
        (KEY,),
    ),
}

CASES = QUANTIZERS | OTHERS


# The slow ones are made of others, or have no branch of their own for a platform.
_SLOW = (
    "histogram_of_equal_weights",
    "joint_histogram_of_points",
    "round_to_nearest",
    "solve_kmeans",
    "kmeans",
    "block_kmeans",
    "plus_plus_start",
    "polish_kmeans",
    "optimal_kmeans",
    "uniform",
    "solve_entropy_constrained",
    "optimal_of_leaves",
    "uniform_of_leaves",
    "entropy_constrained",
    "round_layer",
    "output_importance",
    "squared_error_curve",
    "gaussian_rate",
    "gaussian_distortion",
    "density_entropy",
    "pac_bayes_kl",
    "catoni",
    "kl_inverse",
    "gaussian_complexity",
    "population_risk",
    "sample",
    "optimal_step",
    "l2_rate_nats",
    "quantize_ste",
    "scores",
    "margins",
    "fit_temperature",
    "draw_solutions",
)


@pytest.mark.parametrize("name", some_slow(CASES, *_SLOW))
def test_kernel_lowers_for_accelerators(name):
    case = CASES[name]
    found = program(case)
    # Neither callbacks on the host, nor libraries that the other platform lacks.
    assert not found.calls
    assert found.float64 <= case.float64
    # Atomic operations on a GPU, one after the other on a TPU.
    assert found.scattered < N


@pytest.fixture
def no_float64(monkeypatch, programs_apart):
    """Trace as where the default device is a TPU, which has no float64."""
    for module in (precision, lloyd, coarse_to_fine, optimal):
        monkeypatch.setattr(module, "lacks_float64", lambda: not jax.config.jax_default_device)
    with programs_apart("no float64"):
        yield


@pytest.mark.parametrize(
    "name",
    some_slow(["kmeans", "kmeans_of_leaves", "optimal_diameter_kmeans"], "kmeans_of_leaves"),
)
def test_kmeans_is_without_float64_on_tpus(name, no_float64):
    assert program(CASES[name], ("tpu",)).float64 == 0


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    # A narrow cluster far from the median: its spread is a small difference of large sums.
    points = np.concatenate([rng.standard_normal(100), 50 + 1e-3 * rng.standard_normal(40)])
    return jnp.asarray(np.sort(points).astype(np.float32))


def test_the_start_in_pairs_is_as_good(no_float64, points):
    def centroids():
        return coarse_to_fine.coarse_to_fine_centroids(
            points, jnp.ones_like(points), jnp.int32(8), max_clusters=8
        )

    ours = jax.jit(centroids)()
    with jax.default_device(jax.devices()[0]):
        theirs = jax.jit(centroids)()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # Its parts are tested above, and with the sums of pairs.
def test_kmeans_of_pairs_is_as_good(no_float64, points):
    ours = quantizers.kmeans(points, num_clusters=8)
    with jax.default_device(jax.devices()[0]):
        theirs = quantizers.kmeans(points, num_clusters=8)
    np.testing.assert_allclose(ours.distortion, theirs.distortion, rtol=1e-6)
    np.testing.assert_allclose(ours.centroids, theirs.centroids, rtol=1e-5)


def test_known_numbers_meet_float64_on_the_host(no_float64, monkeypatch):
    moved = []
    on_host = precision.computed_on_host

    def noted(function, *arguments):
        moved.append(arguments)
        return on_host(function, *arguments)

    monkeypatch.setattr(precision, "computed_on_host", noted)
    bound = bounds.occam(0.1, 1e4, num_examples=10**5, delta=0.05)
    assert isinstance(bound, jax.Array)
    assert len(moved) == 1
    # What is traced stays in its program.
    jax.jit(lambda error: bounds.occam(error, 1e4, num_examples=10**5, delta=0.05))(0.1)
    assert len(moved) == 1


@pytest.mark.slow
def test_the_optimum_is_found_on_the_host(no_float64):
    codebooks = quantizers.optimal_kmeans(jnp.arange(6.0), max_clusters=2, num_bins=6)
    np.testing.assert_allclose(codebooks.distortion[2], 4)
