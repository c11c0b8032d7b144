"""Histograms by chunks against dense sums in float64, and against those of whole arrays."""

import jax.numpy as jnp
import numpy as np
import pytest
from promotion import strictly
from slow_cases import some_slow

from jaxcomp.quantizers import histograms, joint_moments, passes
from jaxcomp.quantizers.passes import histogram_of, joint_histogram_of
from jaxcomp.quantizers.problems import problem_of, survey
from jaxcomp.quantizers.scales import Rows

# Whole arrays as in the tests of histograms: what is compiled there.
NUM_BINS = 256
histogram_moments = strictly(histograms.histogram_moments)
SIZES = {"exact": 200, "one chunk": 9_000, "many chunks": 300_000}


def weights(kind: str, size: int) -> np.ndarray:
    rng = np.random.default_rng(size)
    values = rng.standard_t(4, size).astype(np.float32)
    if kind == "outliers":
        values[:: size // 10] *= 1e7  # still in units of 1
    if kind == "few values":
        values = np.round(2 * np.clip(values, -4, 4)).astype(np.float32) / 2
    return values


def problem(values, importance=None):
    return problem_of(values, exponent=survey(values)[1], importance=importance)


def inner_variance(moments) -> float:
    mass, deviation = (np.asarray(part, np.float64) for part in (moments.mass, moments.deviation))
    unit = 2.0 ** (2 * int(np.ravel(moments.exponent)[0]) + int(np.ravel(moments.mass_exponent)[0]))
    return float(np.sum(mass * deviation**2) * unit)


def totals(moments) -> tuple[float, float, float, float]:
    """Number, mass, first and second moment, in ordinary units."""
    mass, position, deviation = (
        np.asarray(part, np.float64) for part in (moments.mass, moments.position, moments.deviation)
    )
    unit = 2.0 ** int(np.ravel(moments.exponent)[0])
    h = 2.0 ** int(np.ravel(moments.mass_exponent)[0])
    return (
        float(np.sum(np.asarray(moments.num_points, np.int64))),
        float(h * np.sum(mass)),
        float(h * unit * np.sum(mass * position)),
        float(h * unit**2 * np.sum(mass * (position**2 + deviation**2))),
    )


@pytest.mark.parametrize("is_weighted", some_slow([False, True], False))
@pytest.mark.parametrize("size", some_slow(SIZES, "one chunk"))
@pytest.mark.parametrize("kind", some_slow(["heavy tail", "outliers", "few values"], "outliers"))
def test_sums_are_those_of_the_weights_and_bins_as_good_as_of_the_whole_array(
    kind, size, is_weighted
):
    values = weights(kind, SIZES[size])
    h = np.abs(weights("heavy tail", SIZES[size]))[::-1] + 0.01 if is_weighted else None
    h = None if h is None else np.ascontiguousarray(h)
    found = histogram_of(problem(values, h), num_bins=NUM_BINS)
    mass = np.ones(len(values)) if h is None else h.astype(np.float64)
    wide = values.astype(np.float64)
    expected = (len(values), np.sum(mass), np.sum(mass * wide), np.sum(mass * wide**2))
    scale = np.sum(mass * np.abs(wide))
    number, total, first, second = totals(found)
    assert number == expected[0]
    assert total == pytest.approx(expected[1], rel=1e-6)
    assert first == pytest.approx(expected[2], abs=1e-6 * scale)
    assert second == pytest.approx(expected[3], rel=1e-5)
    position = np.asarray(found.position[0])
    assert np.all(np.diff(position) >= 0)
    whole = histogram_moments(values, h, num_bins=NUM_BINS)
    # Rounding alone, where every value has a bin.
    least = 1e-9 * expected[3]
    assert inner_variance(found) <= 1.5 * inner_variance(whole) + least


@pytest.mark.parametrize(
    ("kind", "size"),
    some_slow(
        [(kind, size) for kind in ("heavy tail", "outliers") for size in SIZES],
        ("heavy tail", "one chunk"),
        ("outliers", "one chunk"),
        # Outliers have bins cut again, too.
        ("heavy tail", "many chunks"),
    ),
)
def test_cells_of_value_and_importance(kind, size):
    values = weights(kind, SIZES[size])
    h = np.exp(weights("heavy tail", SIZES[size])[::-1]).astype(np.float32)
    found = joint_histogram_of(problem(values, h), num_bins=64, num_levels=4)
    wide, mass = values.astype(np.float64), h.astype(np.float64)
    number, total, _, second = totals(found)
    assert number == len(values)
    assert total == pytest.approx(np.sum(mass), rel=1e-6)
    assert second == pytest.approx(np.sum(mass * wide**2), rel=1e-5)
    whole = joint_moments(values, h, num_bins=64, num_levels=4)
    assert inner_variance(found) <= 1.5 * inner_variance(whole) + 1e-9 * second


@pytest.mark.parametrize("is_weighted", some_slow([False, True], False))
@pytest.mark.parametrize("kind", ["heavy tail", "subnormal", "bfloat16"])
def test_one_pass_is_the_general_way_up_to_rounding(monkeypatch, kind, is_weighted):
    values = weights("heavy tail", SIZES["many chunks"])
    if kind == "subnormal":
        # In the last chunk.
        values[-5] = 1e-40
    # Sums of these are exact in float32, as numbers of points are.
    h = np.ldexp(np.float32(1), -(np.arange(len(values)) % 3)) if is_weighted else None
    tensor = problem(values.astype(jnp.bfloat16) if kind == "bfloat16" else values, h)
    found, in_one_pass = [], passes._in_one_pass
    monkeypatch.setattr(
        passes, "_in_one_pass", lambda *own: found.append(in_one_pass(*own)) or found[-1]
    )
    moments = histogram_of(tensor, num_bins=NUM_BINS)
    monkeypatch.setattr(passes, "_in_one_pass", lambda *_: None)
    general = histogram_of(tensor, num_bins=NUM_BINS)
    assert (found[0] is not None) == (kind == "heavy tail")
    for name, one in moments._asdict().items():
        expected = np.asarray(getattr(general, name))
        if kind == "heavy tail" and name in ("position", "deviation"):
            # As exact as its units allow: sums are about one point.
            unit = 1e-7 * float(np.ptp(expected))
            np.testing.assert_allclose(one, expected, rtol=1e-5, atol=unit)
        else:
            np.testing.assert_array_equal(one, expected)


def test_scales_divide_the_weights_and_weigh_their_errors():
    # As many as elsewhere, for which all is compiled.
    values = weights("heavy tail", SIZES["many chunks"]).reshape(-1, 100)
    rows, scales = Rows("channel"), np.linspace(0.1, 2, 100).astype(np.float32)
    scaled = histogram_of(problem(values).with_scales(rows, scales), num_bins=NUM_BINS)
    h = np.broadcast_to(scales * scales, values.shape)
    plain = histogram_of(problem(values / scales, h), num_bins=NUM_BINS)
    for one, other in zip(scaled, plain, strict=True):
        np.testing.assert_array_equal(one, other)
