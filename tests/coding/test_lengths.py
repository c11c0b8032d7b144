import jax
import jax.numpy as jnp
import ml_dtypes
import mpmath
import numpy as np
import pytest
from promotion import strict_promotion

from jaxcomp import coding
from jaxcomp.coding import Gaussian, Laplace, ScaleMixture, SpikeAndSlab
from jaxcomp.coding.lengths import log_cell_mass

MIXTURE = ScaleMixture(np.float32([0.75, 0.25]), np.float32([0.125, 2.0]))
PRIORS = [Gaussian(0.5), Laplace(0.25), SpikeAndSlab(0.875, 0.5), MIXTURE]


def exact_bits(index, prior, step):
    """-log2 of the cell's mass, with 60 digits: the difference of distribution functions."""

    def gaussian(scale):
        low, high = (abs(index) - mpmath.mpf(1) / 2) * step, (abs(index) + mpmath.mpf(1) / 2) * step
        root = mpmath.sqrt(2) * scale
        return (mpmath.erfc(low / root) - mpmath.erfc(high / root)) / 2

    with mpmath.workdps(60):
        step = mpmath.mpf(float(step))
        match prior:
            case Gaussian(scale):
                mass = gaussian(scale)
            case Laplace(scale):
                half = step / (2 * scale)
                if index == 0:
                    mass = 1 - mpmath.exp(-half)
                else:
                    centre = abs(index) * step / scale
                    mass = (mpmath.exp(half - centre) - mpmath.exp(-half - centre)) / 2
            case SpikeAndSlab(spike, scale):
                mass = (1 - spike) * gaussian(scale) + (spike if index == 0 else 0)
            case ScaleMixture(shares, scales):
                parts = zip(shares, scales, strict=True)
                mass = sum(float(share) * gaussian(float(scale)) for share, scale in parts)
        # 60 digits are not enough where erfc underflows them against 1, so never subtract from 1.
        return -mpmath.log(mass, 2)


def lengths(weights, prior, step):
    """Lengths of at most 8,192 weights, (N,), each with its own step; one program for a prior."""
    number = len(weights)
    padded = np.pad(np.asarray(weights, np.float32), (0, 8192 - number))
    steps = np.ones(8192, np.float32)
    steps[:number] = step
    with strict_promotion():
        found = coding.code_length_bits(padded, prior, step=steps)
    return np.asarray(found)[:number]


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: type(prior).__name__)
def test_cell_masses_match_exact_ones_far_into_the_tails(prior):
    # From a thousandth of the width to eight times, from the centre to 40 deviations.
    steps = np.float32([2.0**-10, 2.0**-5, 2.0**-2, 1.0, 4.0])
    distances = np.float32([0, 0.01, 0.3, 1, 2.5, 6, 20])
    index = np.rint(distances[None, :] / steps[:, None])
    index = np.concatenate([index, -index[:, 1:]], axis=1)
    weights = (index * steps[:, None]).astype(np.float32)
    each = np.broadcast_to(steps[:, None], weights.shape)
    found = lengths(weights.ravel(), prior, each.ravel()).reshape(weights.shape)
    expected = np.asarray(
        [
            [float(exact_bits(int(k), prior, step)) for k in row]
            for row, step in zip(index, steps, strict=True)
        ]
    )
    # Relative for long codes (the exponent itself is rounded), absolute for short ones.
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=4e-6)


def test_cells_are_a_distribution():
    index = np.arange(-4000, 4001)
    for prior in PRIORS:
        for step in (2.0**-6, 0.75):
            bits = lengths(index * step, prior, step)
            assert np.sum(2.0 ** -bits.astype(np.float64)) == pytest.approx(1, abs=2e-6)


def test_penalties_are_code_lengths():
    # |w|^2 / (2 t^2 ln 2) + d/2 log2(2 pi t^2) - d log2(step), and |w| for Laplace.
    weights = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    step, d = 2.0**-8, weights.size
    found = np.sum(lengths(weights, Gaussian(0.8), step), dtype=np.float64)
    squares = np.sum(weights.astype(np.float64) ** 2)
    closed = (
        squares / (2 * 0.64 * np.log(2)) + d / 2 * np.log2(2 * np.pi * 0.64) - d * np.log2(step)
    )
    assert found == pytest.approx(closed, rel=1e-5)
    found = np.sum(lengths(weights, Laplace(0.8), step), dtype=np.float64)
    closed = np.sum(np.abs(weights, dtype=np.float64)) / (0.8 * np.log(2)) + d * np.log2(1.6 / step)
    assert found == pytest.approx(closed, rel=1e-5)


@pytest.mark.usefixtures("strict_promotion")
def test_trees_priors_by_leaf_and_traced_numbers():
    rng = np.random.default_rng(1)
    tree = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b": rng.normal(size=5).astype(np.float32),
    }
    by_leaf = {"a": Gaussian(0.5), "b": Laplace(2.0)}
    steps = {"a": 0.25, "b": 0.125}
    found = coding.code_length_bits(tree, by_leaf, step=steps)
    for name in tree:
        alone = coding.code_length_bits(tree[name], by_leaf[name], step=steps[name])
        np.testing.assert_array_equal(found[name], alone)
    many = jax.jit(jax.vmap(lambda t, d: coding.code_length_bits(tree["b"], Gaussian(t), step=d)))
    scales, widths = np.float32([0.5, 1.0, 2.0]), np.float32([0.1, 0.2, 0.4])
    for row, scale, step in zip(many(scales, widths), scales, widths, strict=True):
        alone = coding.code_length_bits(tree["b"], Gaussian(float(scale)), step=float(step))
        np.testing.assert_allclose(row, alone, rtol=1e-6)


def test_host_masses_match_exact_ones_wherever_a_cell_lies():
    """Centres anywhere, not only at multiples; widths from 1e-8 to 1e4 scales, 1e5 scales out."""
    rng = np.random.default_rng(4)

    def exact(centre, prior, step):
        low, high = abs(centre) - mpmath.mpf(step) / 2, abs(centre) + mpmath.mpf(step) / 2

        def gaussian(scale):
            root = mpmath.sqrt(2) * mpmath.mpf(float(scale))
            return (mpmath.erfc(low / root) - mpmath.erfc(high / root)) / 2

        match prior:
            case Gaussian(scale):
                return mpmath.log(gaussian(scale))
            case SpikeAndSlab(spike, scale):
                own = mpmath.mpf(spike) if abs(centre) < step / 2 else 0
                return mpmath.log((1 - mpmath.mpf(spike)) * gaussian(scale) + own)
            case ScaleMixture(shares, scales):
                parts = zip(shares, scales, strict=True)
                return mpmath.log(sum(float(p) * gaussian(t) for p, t in parts))
        if low >= 0:
            return mpmath.log(
                (mpmath.exp(-low / prior.scale) - mpmath.exp(-high / prior.scale)) / 2
            )
        return mpmath.log(1 - (mpmath.exp(low / prior.scale) + mpmath.exp(-high / prior.scale)) / 2)

    for _ in range(60):
        scale = 10 ** rng.uniform(-5, 5)
        step = scale * 10 ** rng.uniform(-8, 4)
        distance = 10 ** rng.uniform(-6, 5) * scale
        centre = np.rint(distance / step) * step if rng.random() < 0.5 else distance
        for prior in (
            Gaussian(scale),
            Laplace(scale),
            SpikeAndSlab(0.3, scale),
            ScaleMixture(np.array([0.4, 0.6]), scale * np.array([1.0, 20.0])),
        ):
            found = log_cell_mass(np.array([centre]), prior, step)[0]
            # Tails of mpmath have all their digits, so that only their difference loses some.
            with mpmath.workdps(60):
                expected = float(exact(centre, prior, step))
            assert found == pytest.approx(expected, rel=1e-11, abs=1e-11)


EXPONENTS = {
    np.float32: (-110, -40, 0, 40, 100),
    np.float16: (0,),
    ml_dtypes.bfloat16: (-110, 0, 100),
}


# Two of the others contain the formulas of a Gaussian, and a dtype is the same for all priors.
@pytest.mark.parametrize(
    ("prior", "dtype"),
    [
        pytest.param(
            prior,
            dtype,
            id=f"{type(prior).__name__}-{np.dtype(dtype).name}",
            marks=[pytest.mark.slow] * (is_gaussian or (not is_laplace and dtype != np.float32)),
        )
        for prior in PRIORS
        for dtype in EXPONENTS
        for is_gaussian, is_laplace in [(isinstance(prior, Gaussian), isinstance(prior, Laplace))]
    ],
)
def test_lengths_are_those_of_the_host_for_every_dtype_and_scale(prior, dtype):
    # One shape for all, so that a dtype compiles once.
    index = np.concatenate([np.arange(-20, 21), [700, -3000, 20_000, 1_000_000]])
    base = (index * 0.0625).astype(np.float32)
    for exponent in EXPONENTS[dtype]:
        with np.errstate(over="ignore"):
            weights = np.ldexp(base, exponent).astype(dtype)
        weights = np.where(np.isfinite(weights), weights, np.zeros(1, dtype))
        scaled = [
            np.ldexp(np.asarray(field, np.float64), exponent)
            if name.startswith("scale")
            else np.asarray(field, np.float64)
            for name, field in prior._asdict().items()
        ]
        own, step = type(prior)(*scaled), 0.0625 * 2.0**exponent
        found = coding.code_length_bits(weights, own, step=step)
        assert found.dtype == jnp.float32
        centres = np.rint(weights.astype(np.float64) / step) * step
        expected = -log_cell_mass(centres, own, step) / np.log(2)
        np.testing.assert_allclose(found, expected, rtol=3e-6, atol=4e-6)


def test_weights_far_out_and_steps_far_apart():
    """Values of the closed forms where ratios are beyond float32."""
    # A mass of exp(-1e6^2 / 2): bits of the exponent and of the density.
    found = coding.code_length_bits(np.float32([1e6]), Gaussian(1.0), step=1e-5)
    expected = (0.5e12 + 0.5 * np.log(2 * np.pi) - np.log(1e-5)) / np.log(2)
    assert float(found[0]) == pytest.approx(expected, rel=1e-6)
    # All weights in the cell of zero, and cells far finer than the prior.
    assert float(coding.code_length_bits(1e-40, Gaussian(1e-42), step=1.0)) == 0
    found = coding.code_length_bits(np.float32(0), Gaussian(1e30), step=1e-30)
    assert float(found) == pytest.approx(np.log2(np.sqrt(2 * np.pi) * 1e60), rel=1e-6)
    found = coding.code_length_bits(np.float32(1e-42), Laplace(1e-42), step=1e-43)
    scale, step = float(np.float32(1e-42)), float(np.float32(1e-43))
    centre = np.rint(scale / step) * step
    mass = np.exp(-centre / 1e-42) * np.sinh(0.5 * step / 1e-42)
    assert float(found) == pytest.approx(-np.log2(mass), rel=1e-5)


# A mixture contains the formulas of a Gaussian.
@pytest.mark.parametrize(
    "prior",
    [Laplace(0.25), pytest.param(MIXTURE, marks=pytest.mark.slow)],
    ids=["Laplace", "ScaleMixture"],
)
def test_derivatives_in_the_prior_and_none_in_the_weights(prior):
    weights = np.float32([0.0, 0.3, -1.7, 9.0])

    def total(weights, scale, step):
        fields = prior._asdict()
        name = "scales" if "scales" in fields else "scale"
        own = prior._replace(**{name: jnp.asarray(fields[name], jnp.float32) * scale})
        return jnp.sum(coding.code_length_bits(weights, own, step=step))

    by_weight, by_scale, by_step = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(weights, 1.0, 0.25)
    np.testing.assert_array_equal(by_weight, np.zeros(4))
    index = np.rint(np.asarray(weights, np.float64) / 0.25)

    def on_host(scale, step):
        fields = {name: np.asarray(field, np.float64) for name, field in prior._asdict().items()}
        name = "scales" if "scales" in fields else "scale"
        own = prior._replace(**(fields | {name: fields[name] * scale}))
        return -np.sum(log_cell_mass(index * step, own, step)) / np.log(2)

    expected = (on_host(1 + 1e-6, 0.25) - on_host(1 - 1e-6, 0.25)) / 2e-6
    assert float(by_scale) == pytest.approx(expected, rel=1e-4)
    expected = (on_host(1, 0.25 + 1e-7) - on_host(1, 0.25 - 1e-7)) / 2e-7
    assert float(by_step) == pytest.approx(expected, rel=1e-4)


def test_debugging_without_compilation_gives_the_same():
    weights = np.float32([0.3, -40.0])
    compiled = coding.code_length_bits(weights, Laplace(0.25), step=0.1)
    with jax.disable_jit():
        found = coding.code_length_bits(weights, Laplace(0.25), step=0.1)
        rounded = coding.quantize(weights, step=0.1)
    np.testing.assert_allclose(found, compiled, rtol=1e-6)
    np.testing.assert_array_equal(rounded, coding.quantize(weights, step=0.1))


def test_zeros_shorten_a_sparse_code_only():
    dense = np.random.default_rng(3).normal(0, 0.5, 3000).astype(np.float32)
    sparse = np.where(np.abs(dense) < 0.7, 0, dense).astype(np.float32)

    def total(weights, family):
        prior = coding.fit(weights, family, step=0.02)
        return float(np.sum(lengths(weights, prior, 0.02), dtype=np.float64))

    assert total(sparse, SpikeAndSlab) < 0.5 * total(dense, SpikeAndSlab)
    assert total(sparse, Gaussian) > 0.9 * total(dense, Gaussian)


W = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: coding.code_length_bits(W, Gaussian(1.0), step=0.0),
            ValueError,
            "step must be positive and finite, got 0",
        ),
        (
            lambda: coding.code_length_bits(W, Gaussian(-1.0), step=0.1),
            ValueError,
            "scale must be positive and finite, got -1",
        ),
        (
            lambda: coding.code_length_bits(W * np.nan, Gaussian(1.0), step=0.1),
            ValueError,
            "weights must be finite, got 3 NaN or infinite of 3",
        ),
        (
            lambda: coding.code_length_bits(np.arange(3), Gaussian(1.0), step=0.1),
            TypeError,
            "weights must be floating, got int",
        ),
        (
            lambda: coding.code_length_bits(W, 0.5, step=0.1),
            TypeError,
            "prior must be one of Gaussian, .*, got float",
        ),
        (
            lambda: coding.code_length_bits({"a": W}, {"b": Gaussian(1.0)}, step=0.1),
            ValueError,
            "prior must be one prior or a pytree",
        ),
        (
            lambda: coding.code_length_bits({"a": W}, Gaussian(1.0), step={"b": 0.1}),
            ValueError,
            "step must be one number or a pytree",
        ),
        (
            lambda: coding.code_length_bits(W, SpikeAndSlab(1.0, 1.0), step=0.1),
            ValueError,
            "spike must lie between 0 and 1",
        ),
        (
            lambda: coding.code_length_bits(W, ScaleMixture(np.ones(2), np.ones(2)), step=0.1),
            ValueError,
            "shares must have the sum 1, got 2",
        ),
        (
            lambda: coding.code_length_bits(W, ScaleMixture(np.ones(1), np.ones(2)), step=0.1),
            ValueError,
            "one entry for each component",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
