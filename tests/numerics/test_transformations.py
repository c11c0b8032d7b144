"""What JAX can do to a function, or set for all of them, works for every public kernel.

One table of small calls; every test runs it in another mode, against the results of the default
mode (all under strict promotion). The arrays of all modes have the same few shapes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from promotion import strict_promotion, strictly
from slow_cases import some_slow

import jaxcomp
from jaxcomp import bounds, curvature, quantizers, training
from jaxcomp.numerics.transformations import (
    all_transfers,
    compiled_quickly,
    counted_loop,
    vectorized,
)

RNG = np.random.default_rng(0)
POINTS = jax.device_put(RNG.normal(size=24).astype(np.float32))
IMPORTANCE = jax.device_put(RNG.uniform(0.5, 2, size=24).astype(np.float32))
CENTRES = jax.device_put(np.float32([-1, 0.25, 1]))
NETWORK = jax.device_put(
    {
        "a": RNG.normal(size=(3, 4)).astype(np.float32),
        "b": RNG.normal(size=(4, 2)).astype(np.float32),
    }
)
INPUTS = jax.device_put(RNG.normal(size=(6, 3)).astype(np.float32))
LABELS = jax.device_put(RNG.integers(0, 2, size=6).astype(np.int32))
# Not of the default implementation, with which all other tests draw.
KEY = jax.random.key(1, impl="rbg")
INDEX = jax.device_put(np.arange(3, dtype=np.int32))
LENGTHS = jax.device_put(np.float32([1, 2, 2]))
MULTIPLIERS = jax.device_put(np.float32([0.1, 0.5]))


def predict(params, inputs):
    return jnp.tanh(inputs @ params["a"]) @ params["b"]


def separable(params, batch):
    """A loss of few operations, since each is a program without `jit`."""
    return jnp.sum(batch * params["w"] ** 2)


def matrix(values):
    return values.reshape(4, 6)


def vectors(values):
    return values.reshape(12, 2)


# Solvers of points and importances: codebooks.
SOLVERS = {
    "kmeans": lambda w, h: quantizers.kmeans(
        w, h, num_clusters=3, num_bins=8, diameter_penalty=0.01, start="quantiles"
    ),
    "coarse to fine": lambda w, h: quantizers.kmeans(
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
    "optimal diameter": lambda w, h: quantizers.optimal_diameter_kmeans(
        w, h, max_clusters=3, num_outer=4
    ).solve(3, 0.01),
    "entropy": lambda w, h: quantizers.entropy_constrained(
        w, h, multipliers=MULTIPLIERS, max_clusters=4
    ),
}


@strictly
def polished(points):
    return SOLVERS["polish"](points, IMPORTANCE)


# Those whose distortion has a derivative, at a codebook held fixed.
MEASURING = ("kmeans", "coarse to fine", "uniform", "polish", "blocks", "vectors")

# Everything else of points and importances.
OTHERS = {
    "rounding": lambda w, h: quantizers.round_to_nearest(matrix(w), num_bits=3),
    "pruning": lambda w, h: quantizers.prune_by_magnitude(w, 0.5),
    "straight through": lambda w, h: training.quantize_ste(w, CENTRES),
    "looked up": lambda w, h: training.look_up(CENTRES, INDEX),
    "assignment by cost": lambda w, h: quantizers.assign_by_cost(w, h, CENTRES, LENGTHS, 0.1),
    "tree": lambda w, h: jaxcomp.compress({"w": matrix(w)}, quantizers.Uniform(3)).params(),
    "catoni": lambda w, h: bounds.catoni(0.1, 50.0, num_examples=1000, delta=0.05),
    "occam": lambda w, h: bounds.occam(0.1, 50.0, num_examples=1000, delta=0.05, tail="chernoff"),
    "gaussian complexity": lambda w, h: bounds.gaussian_complexity(w, 0.1),
}
# Those that call a function of the caller.
CURVATURE = {
    "hutchinson": lambda: curvature.hutchinson_diagonal(
        separable, {"w": POINTS}, IMPORTANCE, KEY, num_probes=2
    ),
    "over batches": lambda: curvature.over_batches(
        curvature.GaussNewton(predict, NETWORK), [(INPUTS, LABELS)] * 2
    ),
}


@strictly
def call(name):
    if name in CURVATURE:
        return CURVATURE[name]()
    return (SOLVERS | OTHERS)[name](POINTS, IMPORTANCE)


NAMES = [*SOLVERS, *OTHERS, *CURVATURE]
# Solvers that compile longest; those that share their wrappers, or their loops, stand for them.
DEAR = ("coarse to fine", "blocks", "optimal", "optimal diameter", "entropy")


@pytest.fixture(scope="module")
def expected():
    """Results of the default mode, each computed once."""
    found = {}

    def of(name):
        if name not in found:
            found[name] = jax.tree.map(np.asarray, call(name))
        return found[name]

    return of


def assert_same(found, wanted, **tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), **tolerance
        )


# Op by op: kernels of many operations take seconds. One solver stands for those that stay compiled.
@pytest.mark.parametrize(
    "name",
    some_slow(NAMES, *DEAR, "kmeans", "uniform", "vectors", "tree", "over batches"),
)
def test_runs_without_jit(name, expected):
    wanted = expected(name)
    with jax.disable_jit():
        assert_same(call(name), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", some_slow(NAMES, *DEAR, "kmeans", "vectors", "tree"))
def test_runs_with_checks_for_nan(name, expected):
    wanted = expected(name)
    with jax.debug_nans(True):
        assert_same(call(name), wanted)


@pytest.mark.parametrize("name", some_slow(NAMES, *DEAR))
def test_moves_its_own_numbers_to_the_device(name, expected):
    wanted = expected(name)
    with jax.transfer_guard("disallow"):
        assert_same(call(name), wanted)


def codebook(result):
    """The numbers of a result without what measures the points."""
    return jax.tree.leaves(result._replace(distortion=None, objective=None))


@pytest.mark.parametrize("name", some_slow(SOLVERS, *DEAR))
def test_codebooks_are_constants(name, expected):
    function = strictly(SOLVERS[name])
    result, tangent = jax.jvp(function, (POINTS, IMPORTANCE), (POINTS, IMPORTANCE))
    assert_same(result, expected(name))
    for leaf in codebook(tangent) if name in MEASURING else jax.tree.leaves(tangent):
        assert leaf.dtype == jax.dtypes.float0 or not np.any(leaf)


def quantized(name, result):
    centroids, index = np.asarray(result.centroids), np.asarray(result.assignments, int)
    if name == "blocks":
        # Two blocks, one above the other.
        return np.concatenate([centroids[b, 0][index[2 * b : 2 * b + 2]] for b in (0, 1)]).ravel()
    return centroids[index].ravel()


@pytest.mark.parametrize("field", ["distortion", "objective"])
@pytest.mark.parametrize("name", some_slow(MEASURING, "coarse to fine", "blocks"))
def test_what_is_measured_has_the_derivative_of_a_fixed_codebook(name, field, expected):
    deviation = np.asarray(POINTS) - quantized(name, expected(name))
    wanted = (2 * np.asarray(IMPORTANCE) * deviation, deviation**2)

    def measure(w, h):
        return jnp.sum(getattr(strictly(SOLVERS[name])(w, h), field))

    assert_same(jax.grad(measure, argnums=(0, 1))(POINTS, IMPORTANCE), wanted, rtol=1e-5, atol=1e-6)
    rise = np.sum(wanted[0] * np.asarray(IMPORTANCE)) + np.sum(wanted[1] * np.asarray(POINTS))
    tangent = jax.jvp(measure, (POINTS, IMPORTANCE), (IMPORTANCE, POINTS))[1]
    np.testing.assert_allclose(tangent, rise, rtol=1e-4)


def test_least_distortion_has_that_derivative_too():
    # By the envelope theorem: differences move the centres with the points.
    def least(w):
        return polished(w).distortion

    step = 1e-2 * np.cos(np.arange(24, dtype=np.float32))
    slope = jax.jvp(least, (POINTS,), (step,))[1]
    points = np.asarray(POINTS)
    difference = (np.asarray(least(points + step)) - np.asarray(least(points - step))) / 2
    np.testing.assert_allclose(slope, difference, rtol=1e-3)


def pull(w):
    """A loss that fits its codebook to the weights it quantizes."""
    fit = polished(w)
    return jnp.sum(training.quantize_ste(w, fit.centroids) ** 2) + fit.distortion


@pytest.mark.parametrize(
    "program",
    [
        jax.jit(jax.value_and_grad(pull)),
        pytest.param(jax.value_and_grad(jax.checkpoint(jax.jit(pull))), marks=pytest.mark.slow),
        pytest.param(
            jax.value_and_grad(
                lambda w: jax.lax.scan(lambda sum_, _: (sum_ + pull(w), None), 0.0, None, length=1)[
                    0
                ]
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda w: jax.tree.map(lambda x: x[0], jax.vmap(jax.value_and_grad(pull))(w[None])),
            marks=pytest.mark.slow,
        ),
        lambda w: (pull(w), jax.linear_transpose(jax.linearize(pull, w)[1], w)(1.0)[0]),
    ],
    ids=["jit", "checkpoint", "loop", "vmap", "linearize"],
)
def test_clustering_inside_a_loss(program):
    value, gradient = program(POINTS)
    fit = polished(POINTS)
    near = np.asarray(fit.centroids)[np.asarray(fit.assignments, int)]
    deviation, importance = np.asarray(POINTS) - near, np.asarray(IMPORTANCE)
    expected = np.sum(near**2) + np.sum(importance * deviation**2)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * near + 2 * importance * deviation, rtol=1e-5)


@pytest.mark.parametrize(
    "name", some_slow(["kmeans", "uniform", "rounding", "pruning", "over batches"], "kmeans")
)
def test_float32_stays_float32_beside_64_bit_types(name, expected, x64):
    found, wanted = call(name), expected(name)
    assert_same(found, wanted, rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype


def test_keys_of_another_implementation_than_the_default(expected):
    moments = quantizers.histogram_moments(POINTS, IMPORTANCE)
    start = quantizers.plus_plus_start(moments, 3, KEY, max_clusters=3)
    assert len(set(start.tolist())) == 3
    assert set(start.tolist()) <= set(POINTS.tolist())
    assert int(np.sum(expected("vectors").counts)) == 12
    # Signs give the diagonal of a diagonal matrix exactly, whatever they are.
    estimate = expected("hutchinson").mean["w"]
    np.testing.assert_allclose(estimate, 2 * np.asarray(IMPORTANCE), rtol=1e-6)


@pytest.mark.slow
def test_solver_that_is_compiled_as_it_stands_runs_without_jit():
    # Op by op, which takes some seconds.
    moments = quantizers.histogram_moments(POINTS[:4], IMPORTANCE[:4])
    wanted = quantizers.solve_kmeans(moments, 2, max_clusters=2)
    with jax.disable_jit():
        found = quantizers.solve_kmeans(moments, 2, max_clusters=2)
    assert_same(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_wide", [False, True])
def test_index_of_a_loop_is_int32(is_wide):
    def last(index, state):
        del state
        assert index.dtype == jnp.int32
        return index

    with jax.enable_x64(is_wide):
        start = jnp.int32(0)
        assert counted_loop(0, 3, last, start) == 2
        assert jax.jit(lambda stop: counted_loop(0, stop, last, start))(3) == 2
        with jax.disable_jit():
            assert counted_loop(jnp.int32(1), jnp.int32(3), last, start) == 2


def test_a_guarded_function_may_transfer():
    @all_transfers
    def doubled(array):
        return jnp.asarray(array) * 2

    with jax.transfer_guard("disallow"):
        assert doubled(np.ones(3)).shape == (3,)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            jnp.ones(3) + np.ones(3, np.float32)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_what_is_compiled_quickly_is_not_optimised_on_cpus(platform, monkeypatch):
    """Options are those of `jax.jit`; elsewhere the program is an ordinary one."""
    compiled = []
    ordinary = jax.jit

    def jit(function, **options):
        def call(*args, **kwargs):
            compiled.append(options.get("compiler_options"))
            return ordinary(function, **options)(*args, **kwargs)

        return call

    monkeypatch.setattr(jax, "jit", jit)

    @compiled_quickly(static_argnames=("size",))
    def numbers(size, start):
        assert isinstance(size, int)
        return start + jnp.arange(size)

    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    np.testing.assert_array_equal(numbers(size=3, start=2), [2, 3, 4])
    expected = {"xla_backend_optimization_level": 0} if platform == "cpu" else None
    assert compiled == [expected]


def test_groups_of_different_ranks_meet_under_strict_promotion():
    """And a function of one group stays under it."""
    rows, scales = jnp.ones(3), jnp.asarray([[1.0], [2.0]])
    with strict_promotion():
        found = vectorized(lambda row, scale: scale * row, "(n),()->(n)")(rows, scales)
        np.testing.assert_array_equal(found[:, 0], [[1, 1, 1], [2, 2, 2]])
        with pytest.raises(ValueError, match="rank"):
            vectorized(lambda row, scale: row + jnp.ones((2, 3)), "(n),()->(m,n)")(rows, scales)
