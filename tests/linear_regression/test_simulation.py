"""The simulator against closed forms, plain NumPy, and itself in other chunks."""

import jax
import linear_regression_oracles as oracle
import numpy as np
import pytest

from jaxcomp.coding import sizes
from jaxcomp.linear_regression import (
    ADAPTIVE,
    CHANNELS,
    COMPRESSORS,
    CONTROLS,
    DESIGNED,
    channel_risks,
    codebooks_for,
    draw_solution,
    least_squares_risks,
    make_problem,
    shrinkage_risks,
    simulate,
)

DIM, EXAMPLES = 6, 18
CLUSTERS = (1, 2, 3, 8)
MAX_Z = 4.0
FEW = ("kmeans", "matched", "least_squares")  # of one program for several tests


@pytest.fixture(scope="module")
def problem():
    truth, covariance = oracle.problem(DIM)
    return make_problem(truth, covariance, 0.7)


@pytest.fixture(scope="module")
def codebooks(problem):
    return codebooks_for(
        problem, jax.random.key(9), num_examples=EXAMPLES, num_clusters=CLUSTERS, num_datasets=100
    )


@pytest.fixture(scope="module")
def result(problem, codebooks):
    return simulate(
        problem,
        jax.random.key(3),
        num_examples=EXAMPLES,
        num_datasets=4096,
        num_clusters=CLUSTERS,
        compressors=COMPRESSORS,
        codebooks=codebooks,
    )


def z_scores(result, quantity, compressor, expected):
    error = result.standard_error(quantity, compressor)
    gap = result.mean(quantity, compressor) - np.asarray(expected, np.float64)
    scale = np.abs(result.mean(quantity, compressor))
    # Where nothing varies (R = 0) only rounding is left.
    return gap / np.maximum(error, 1e-6 * (1 + scale))


@pytest.mark.parametrize("channel", CHANNELS)
def test_channels_have_the_risks_of_the_closed_forms(problem, result, channel):
    expected = channel_risks(problem.setting(EXAMPLES), result.rates_nats, channel=channel)
    for quantity, field in (
        ("empirical_risk", "empirical"),
        ("population_risk", "population"),
        ("generalization", "generalization"),
        ("distortion", "distortion"),
    ):
        z = z_scores(result, quantity, channel, getattr(expected, field))
        assert np.all(np.abs(z) < MAX_Z), (quantity, z)
    np.testing.assert_allclose(result.mean("rate_nats", channel), result.rates_nats, rtol=1e-6)


def test_controls(problem, result):
    own = least_squares_risks(problem.setting(EXAMPLES))
    assert np.all(np.abs(z_scores(result, "population_risk", "least_squares", own.population)) < 4)
    assert np.all(np.abs(z_scores(result, "empirical_risk", "least_squares", own.empirical)) < 4)
    shrunk = shrinkage_risks(problem.setting(EXAMPLES), result.rates_nats)
    z = z_scores(result, "population_risk", "shrinkage", shrunk.population)
    assert np.all(np.abs(z) < MAX_Z)
    # The same weights, scored in two products: nothing but rounding is between them.
    np.testing.assert_allclose(result.mean("over_shrinkage", "shrinkage"), 0, atol=1e-6)
    np.testing.assert_allclose(result.mean("improvement", "least_squares"), 0, atol=1e-6)
    for control in CONTROLS:
        assert np.isinf(result.mean("rate_nats", control)).all()
    # Baranchik: better than least squares for every w*, by a paired test.
    gain = result.mean("improvement", "james_stein")
    assert np.all(gain > 3 * result.standard_error("improvement", "james_stein"))
    # Theory: the noiseless mean beats the channel of the same a, by a paired test.
    for channel in ("informed_zero_mean", "uninformed_zero_mean", "matched"):
        over = result.mean("over_shrinkage", channel)[1:]
        assert np.all(over > 3 * result.standard_error("over_shrinkage", channel)[1:])


def test_fixed_rate_quantizers(result):
    for name in DESIGNED[:-1]:
        np.testing.assert_allclose(
            result.mean("rate_nats", name), DIM * np.log(CLUSTERS), rtol=1e-6
        )
        assert np.all(np.diff(result.mean("empirical_risk", name)) < 0)
    # One centroid is the same message for every sample: nothing is learned, nothing overfits.
    z = z_scores(result, "generalization", "kmeans", np.zeros(4))
    assert abs(z[0]) < MAX_Z
    lengths = result.mean("rate_nats", "entropy_coded")
    assert abs(lengths[0]) < 1e-3
    np.testing.assert_allclose(lengths[1:], DIM * np.log(CLUSTERS[1:]), rtol=0.1)


def test_adaptive_quantizers_pay_for_their_codebooks(result):
    for name in ADAPTIVE:
        bits = result.mean("rate_nats", name) / np.log(2)
        # One centroid: 1 bit for "one", 32 for its value, 1 flag, at most 1 of slack.
        assert 34 <= bits[0] <= 35
        assert np.all(np.diff(bits) > 0)
        # With eight centroids for six weights nothing is lost, and the code says so in bits.
        size = sizes.code_size(np.ones((1, DIM), np.int64), num_clusters=DIM)
        if name == "adaptive_kmeans":
            np.testing.assert_allclose(result.mean("distortion", name)[3], 0, atol=1e-5)
            np.testing.assert_allclose(bits[3], size.description_bits[0])


def test_chunks_batches_and_merging_change_nothing(problem, codebooks, result):
    options = {
        "num_examples": EXAMPLES,
        "num_clusters": CLUSTERS,
        "compressors": FEW,
        "codebooks": codebooks,
    }
    key = jax.random.key(3)
    told = []
    whole = simulate(problem, key, num_datasets=50, **options, on_chunk=told.append, chunk_size=20)
    assert told == [20, 40, 50]
    parts = [
        simulate(problem, key, num_datasets=n, first_dataset=first, chunk_size=20, **options)
        for first, n in ((0, 20), (20, 30))
    ]
    merged = parts[0].merge(parts[1])
    np.testing.assert_allclose(merged.means, whole.means, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(merged.squares, whole.squares, rtol=1e-4, atol=1e-5)
    again = simulate(problem, key, num_datasets=50, chunk_size=20, **options)
    np.testing.assert_array_equal(again.means, whole.means)
    other = simulate(problem, jax.random.key(4), num_datasets=50, chunk_size=20, **options)
    assert np.any(other.means != whole.means)
    with pytest.raises(ValueError, match="can be merged if"):
        whole.merge(result)


def test_standard_errors_are_those_of_the_draws(problem, codebooks):
    found = simulate(
        problem,
        jax.random.key(3),
        num_examples=EXAMPLES,
        num_datasets=40,
        num_clusters=CLUSTERS,
        compressors=FEW,
        codebooks=codebooks,
        chunk_size=20,
    )
    keys = [jax.random.split(jax.random.fold_in(jax.random.key(3), i))[0] for i in range(40)]
    draws = [draw_solution(problem, key, num_examples=EXAMPLES) for key in keys]
    risks = np.asarray([draw.empirical_risk for draw in draws], np.float64)
    np.testing.assert_allclose(
        found.mean("empirical_risk", "least_squares"), risks.mean(), rtol=1e-4
    )
    expected = risks.std(ddof=1) / np.sqrt(40)
    error = found.standard_error("empirical_risk", "least_squares")
    np.testing.assert_allclose(error, expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_examples": 7}, r"num_examples must be more than dim \+ 1"),
        ({"num_datasets": 0}, "num_datasets must be at least 1, got 0"),
        ({"compressors": ("zip",)}, r"compressors must be out of .* got \['zip'\]"),
        ({"compressors": ("kmeans",)}, "codebooks are required for designed quantizers"),
        ({"num_clusters": (0, 2)}, "num_clusters must be a list of numbers >= 1"),
        ({"rates_nats": np.ones(3)}, "rates_nats must be 2 numbers >= 0"),
        ({"ridge_penalties": np.ones(3)}, "ridge_penalties must have one entry for each of the 2"),
        ({"draws": "coins"}, "draws must be 'examples' or 'statistics', got 'coins'"),
    ],
)
def test_refused(problem, options, message):
    given = {
        "num_examples": EXAMPLES,
        "num_datasets": 2,
        "num_clusters": (2, 3),
        "compressors": ("shrinkage",),
    } | options
    with pytest.raises(ValueError, match=message):
        simulate(problem, jax.random.key(0), **given)


def test_codebooks_of_other_rates_are_refused(problem, codebooks):
    with pytest.raises(ValueError, match="one entry for each of the 2 rates, got 4"):
        simulate(
            problem,
            jax.random.key(0),
            num_examples=EXAMPLES,
            num_datasets=2,
            num_clusters=(2, 3),
            compressors=("kmeans",),
            codebooks=codebooks,
        )


def test_unknown_names_of_a_result(result):
    with pytest.raises(ValueError, match="'loss' is not in this simulation"):
        result.mean("loss", "kmeans")
    with pytest.raises(ValueError, match="'gzip' is not in this simulation"):
        result.standard_error("improvement", "gzip")
