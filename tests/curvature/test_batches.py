"""The driver over batches: the split must not matter, and the errors must be the full data's."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from slow_cases import some_slow

from jaxcomp.curvature import (
    DiagonalEstimate,
    Fisher,
    Hutchinson,
    mean_over_batches,
    over_batches,
    over_batches_until,
)
from jaxcomp.curvature import (
    batches as driver,
)

pytestmark = pytest.mark.usefixtures("strict_promotion")

RAGGED = [8, 8, 8, 8, 3]
EVEN = [7, 7, 7, 7, 7]  # one compilation instead of two, where raggedness is not the point
NUM_EXAMPLES = sum(RAGGED)


def loss_fn(params, batch):
    """Squared error of `v^T tanh(W x)`; the integer leaf takes no part."""
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ params["w"].astype(inputs.dtype))
    return jnp.mean(jnp.square(hidden @ params["v"] - targets))


def make_params(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(size=(3, 4)).astype(dtype),
        "v": rng.normal(size=4).astype(np.float32),
        "codes": np.arange(2),
    }


def make_data():
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(NUM_EXAMPLES, 3)).astype(np.float32)
    # The last examples are larger: a mean of batch means would be visibly off.
    inputs[-3:] *= 2
    return inputs, rng.normal(size=NUM_EXAMPLES).astype(np.float32)


def split(sizes, data=None):
    data = make_data() if data is None else data
    return [
        jax.tree.map(lambda x, stop=stop, size=size: x[stop - size : stop], data)
        for stop, size in zip(np.cumsum(sizes), sizes, strict=True)
    ]


class Loader:
    """Batches from a generator, anew at each pass, counting passes."""

    def __init__(self, batches):
        self.batches = batches
        self.num_passes = 0

    def __iter__(self):
        self.num_passes += 1
        yield from self.batches


def hutchinson(num_probes=10, params=None, seed=0):
    params = make_params() if params is None else params
    return Hutchinson(loss_fn, params, key=jax.random.key(seed), num_probes=num_probes)


def assert_trees_close(actual, expected, relative=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=relative, atol=relative * np.abs(b).max())


@pytest.mark.parametrize("kernel", [hutchinson(), Fisher(loss_fn, make_params())])
@pytest.mark.parametrize(
    "sizes",
    some_slow([[NUM_EXAMPLES], RAGGED, [3, 8, 8, 8, 8]], [NUM_EXAMPLES], [3, 8, 8, 8, 8]),
)
def test_split_into_batches_does_not_matter(kernel, sizes):
    assert_trees_close(over_batches(kernel, split(sizes)), kernel(make_data()))


@pytest.mark.parametrize(
    ("probes_per_chunk", "num_passes"), some_slow([(1, 10), (4, 3), (100, 1)], (1, 10), (100, 1))
)
def test_chunks_of_probes_do_not_matter_and_each_passes_once(probes_per_chunk, num_passes):
    loader = Loader(split(EVEN))
    estimate = over_batches(hutchinson(), loader, probes_per_chunk=probes_per_chunk)
    assert_trees_close(estimate, hutchinson()(make_data()))
    assert loader.num_passes == num_passes


def test_exact_estimator_passes_once():
    loader = Loader(split(RAGGED))
    estimate = over_batches(Fisher(loss_fn, make_params()), loader)
    assert loader.num_passes == 1
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(estimate.standard_error))


def test_standard_error_is_that_of_the_full_data_estimate():
    params, data = make_params(), make_data()
    flat, unravel = ravel_pytree([params["w"], params["v"]])

    def full_loss(flat):
        w, v = unravel(flat)
        return loss_fn({"w": w, "v": v}, data)

    hessian = np.asarray(jax.jit(jax.hessian(full_loss))(flat), np.float64)
    variance = np.sum(hessian**2, axis=1) - np.diag(hessian) ** 2
    num_probes = 512

    mean, error = over_batches(hutchinson(num_probes), split(EVEN), probes_per_chunk=64)[:2]

    error = np.concatenate([np.ravel(error["w"]), np.ravel(error["v"])])
    mean = np.concatenate([np.ravel(mean["w"]), np.ravel(mean["v"])])
    # Estimated standard deviations of 512 bounded samples: about 3 % each.
    np.testing.assert_allclose(error, np.sqrt(variance / num_probes), rtol=0.15)
    assert np.all(np.abs(mean - np.diag(hessian)) <= 5 * error)


def test_any_callable_gives_the_same_mean_and_an_upper_bound_of_the_error():
    exact = over_batches(hutchinson(), split(EVEN), probes_per_chunk=4)
    estimate = mean_over_batches(hutchinson(), split(EVEN))
    assert_trees_close(estimate.mean, exact.mean)
    for bound, error in zip(estimate.standard_error.values(), exact[1].values(), strict=True):
        assert np.all(np.asarray(bound) >= np.asarray(error) * (1 - 1e-5))


def test_any_callable_is_weighted_by_examples():
    def kernel(batch):
        return DiagonalEstimate({"w": jnp.mean(batch)}, {"w": jnp.float32(batch.size)})

    estimate = mean_over_batches(kernel, [np.float32([1.0, 2.0, 3.0]), np.float32([8.0])])
    np.testing.assert_allclose(estimate.mean["w"], 3.5)
    np.testing.assert_allclose(estimate.standard_error["w"], (3 * 3 + 1 * 1) / 4)


def test_half_precision_weights_are_summed_in_float32():
    kernel = hutchinson(params=make_params(jnp.bfloat16))
    estimate = over_batches(kernel, split(EVEN))
    assert estimate.mean["w"].dtype == estimate.mean["codes"].dtype == np.float32
    # Each product is rounded to bfloat16 once per batch.
    assert_trees_close(estimate, kernel(make_data()), relative=2.0**-7)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_double_precision_is_kept():
    data = jax.tree.map(lambda x: x.astype(np.float64), make_data())
    params = {"w": make_params(np.float64)["w"], "v": np.ones(4)}
    kernel = hutchinson(params=params)
    assert_trees_close(over_batches(kernel, split(EVEN, data)), kernel(data), relative=1e-13)


def test_thousands_of_batches_add_no_rounding_error():
    features = np.random.default_rng(2).uniform(1000, 1001, size=(3000, 1)).astype(np.float32)

    def quadratic(w, batch):
        return 0.5 * jnp.mean(batch) * w * w

    kernel = Hutchinson(quadratic, np.float32(1), key=jax.random.key(0), num_probes=2)
    estimate = over_batches(kernel, list(features))
    # Half a unit in the last place or so; a plain float32 sum is off by 1e-6 to 1e-5.
    np.testing.assert_allclose(estimate.mean, features.mean(dtype=np.float64), rtol=2e-7)


def test_ragged_split_compiles_twice_and_a_second_call_not_at_all():
    num_traces = 0

    def counted_loss(params, batch):
        nonlocal num_traces
        num_traces += 1
        return loss_fn(params, batch)

    for seed in (0, 1):
        kernel = Hutchinson(counted_loss, make_params(), key=jax.random.key(seed), num_probes=10)
        over_batches(kernel, split(RAGGED), probes_per_chunk=4)
        assert num_traces == 2


# Batches of two blocks, and of one block each.
@pytest.mark.parametrize("sizes", some_slow([RAGGED, [4] * 8 + [3]], [4] * 8 + [3]))
def test_blocks_of_examples_keep_their_probes_however_they_are_split(sizes):
    kernel = replace(hutchinson(), examples_per_probe=4)
    whole = kernel(make_data())
    shared = hutchinson()(make_data())
    assert not np.allclose(whole.mean["w"], shared.mean["w"], rtol=0.01)
    assert_trees_close(over_batches(kernel, split(sizes)), whole)


def test_batches_that_cut_a_block_of_examples_are_refused():
    kernel = replace(hutchinson(), examples_per_probe=4)
    with pytest.raises(ValueError, match="a batch starts at example 11 of the data set, in the mi"):
        over_batches(kernel, split([8, 3, 8, 8, 8]))
    with pytest.raises(ValueError, match="examples_per_probe must be at least 1"):
        over_batches(replace(kernel, examples_per_probe=0), split(EVEN))


@pytest.fixture(scope="module")
def precise():
    """An estimate to 40 %, from at most 200 probes in chunks of 4, and its passes."""
    loader, options = Loader(split(EVEN)), {"relative_error": 0.4, "probes_per_chunk": 4}
    return over_batches_until(hutchinson(200), loader, **options), loader.num_passes


def test_probing_stops_at_the_first_number_of_probes_that_is_precise(precise):
    result, num_passes = precise
    assert result.converged
    assert 8 < result.num_probes < 100
    assert num_passes == -(-result.num_probes // 4)

    def relative(estimate):
        return {
            name: np.linalg.norm(estimate.standard_error[name]) / np.linalg.norm(mean)
            for name, mean in estimate.mean.items()
            if name != "codes"
        }

    for name, value in relative(result.estimate).items():
        np.testing.assert_allclose(result.relative_error[name], value, rtol=1e-5)
    assert result.relative_error["codes"] == 0
    assert max(relative(result.estimate).values()) <= 0.4
    # The same probes as without a rule to stop, and one of them less was not enough.
    plain = over_batches(hutchinson(result.num_probes), split(EVEN), probes_per_chunk=1)
    assert_trees_close(result.estimate, plain)
    fewer = over_batches(hutchinson(result.num_probes - 1), split(EVEN), probes_per_chunk=1)
    assert max(relative(fewer).values()) > 0.4


@pytest.mark.parametrize("probes_per_chunk", some_slow([8, 200], 200))
def test_result_does_not_depend_on_chunks_to_the_last_bit(precise, probes_per_chunk):
    result = over_batches_until(
        hutchinson(200), split(EVEN), relative_error=0.4, probes_per_chunk=probes_per_chunk
    )
    assert result.num_probes == precise[0].num_probes
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(precise[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_probes_that_run_out_are_reported():
    options = {"probes_per_chunk": 4}
    result = over_batches_until(hutchinson(10), split(EVEN), relative_error=1e-3, **options)
    assert not result.converged
    assert result.num_probes == 10
    expected = over_batches(hutchinson(10), split(EVEN), **options)
    assert_trees_close(result.estimate, expected, relative=0.0)


def test_tiny_curvature_is_not_taken_for_precise():
    def loss(w, batch):
        return 1e-18 * jnp.mean(batch) * jnp.square(jnp.sum(w))

    kernel = Hutchinson(loss, np.ones(4, np.float32), key=jax.random.key(0), num_probes=16)
    # Squared standard errors of this size vanish in float32.
    result = over_batches_until(kernel, [np.ones((2, 1), np.float32)], relative_error=0.01)
    assert not result.converged
    assert 0.1 < float(result.relative_error) < 2


def test_exact_estimator_needs_one_sample():
    kernel = Fisher(loss_fn, make_params())
    result = over_batches_until(kernel, split(RAGGED), relative_error=0.1)
    assert (result.num_probes, result.converged) == (1, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relative_error": 0.0}, "relative_error must be a finite number above 0, got 0.0"),
        ({"relative_error": "1 %"}, "relative_error must be a finite number above 0, got '1 %'"),
        ({"min_probes": 1}, "min_probes must be at least 2, got 1"),
    ],
)
def test_rule_to_stop_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        over_batches_until(hutchinson(), split(EVEN), **{"relative_error": 0.1} | options)


def test_only_kernels_that_sample_can_be_stopped():
    # A function that calls one is no estimator either: its samples are not known.
    for call in (over_batches, partial(over_batches_until, relative_error=0.1)):
        with pytest.raises(TypeError, match=r"such as Hutchinson\(.* got function; mean_over_ba"):
            call(lambda batch: hutchinson()(batch), split(EVEN))


def test_one_shot_iterators_are_refused():
    batches = (batch for batch in split(RAGGED))
    with pytest.raises(TypeError, match="a generator is used up by its first pass and every chunk"):
        over_batches(hutchinson(), batches)


def test_loader_that_is_used_up_is_noticed():
    class Once(Loader):
        def __iter__(self):
            return self.generator

    once = Once([])
    once.generator = iter(split(RAGGED))
    with pytest.raises(ValueError, match="gave 35 examples on one pass and 0 on the next"):
        over_batches(hutchinson(), once)


@pytest.mark.parametrize("average", [over_batches, mean_over_batches])
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches is empty; pass at least one batch"),
        (
            [(np.ones((4, 3)), np.ones(5))],
            r"leaves of batches\[0\] must share .* got batches\[0\]\[0\]: 4, .*\[1\]: 5",
        ),
        ([split(EVEN)[0], (np.ones((0, 3)), np.ones(0))], r"batches\[1\] has no examples"),
        (
            [tuple(x * np.float32(np.nan) for x in split(EVEN)[0])],
            r"curvature.mean\['v'\] has 4 NaN or infinite",
        ),
    ],
)
def test_bad_batches_are_named(average, batches, message):
    with pytest.raises(ValueError, match=message):
        # The programs that other tests have compiled.
        average(hutchinson(4 if average is over_batches else 10), batches)


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="batches must be an iterable of batches, got int"):
        over_batches(hutchinson(), 3)
    with pytest.raises(TypeError, match=r"kernel must be a function from a batch .* got str"):
        mean_over_batches("hutchinson", split(RAGGED))
    with pytest.raises(TypeError, match=r"must return a DiagonalEstimate.* got tuple"):
        mean_over_batches(lambda batch: (1, 2), split(RAGGED))
    with pytest.raises(ValueError, match="probes_per_chunk must be at least 1"):
        over_batches(hutchinson(), split(RAGGED), probes_per_chunk=0)
    with pytest.raises(ValueError, match="num_probes must be at least 2, got 1"):
        over_batches(hutchinson(num_probes=1), split(RAGGED))


@pytest.mark.parametrize("is_wide", [False, True])
def test_exact_estimator_has_no_error_however_its_arithmetic_is_fused(is_wide):
    # A compiler that fuses the division into its uses gives every use another rounding.
    with jax.enable_x64(is_wide):
        sums = np.random.default_rng(0).normal(size=(1, 2, 500)).astype(np.float32)
        state = driver.empty_state(np.zeros(500, np.float32))
        chunk = driver.Samples(sums, np.arange(1), np.float64(99))
        limits = driver.Limits(None, 1, 1)
        options = {"xla_backend_optimization_level": "3"}
        take_in = driver.take_in.lower(state, chunk, limits).compile(compiler_options=options)
        estimate = take_in(state, chunk, limits).running.estimate(1)
        np.testing.assert_allclose(estimate.mean, sums.sum(axis=(0, 1)) / 99, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(estimate.standard_error, 0)
