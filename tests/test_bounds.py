import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.bounds import mutual_information_bound


def test_closed_form():
    rate = np.asarray([[0.0, 1.0], [1e3, 1e7]])
    found = mutual_information_bound(rate, num_examples=6000, sub_gaussian_scale=0.5)
    np.testing.assert_allclose(found, np.sqrt(2 * 0.25 * rate / 6000), rtol=1e-6)


@pytest.mark.usefixtures("strict_promotion")
def test_traced_and_mapped():
    def bound(rate, n):
        return mutual_information_bound(rate, num_examples=n, sub_gaussian_scale=0.5)

    rates, numbers = jnp.asarray([10.0, 100.0, 1000.0]), jnp.asarray([100, 100, 1000])
    mapped = jax.jit(jax.vmap(bound))(rates, numbers)
    single = [bound(float(r), int(n)) for r, n in zip(rates, numbers, strict=True)]
    np.testing.assert_allclose(mapped, single, rtol=1e-6)


def test_bounds_the_gap_of_memorised_labels():
    # A learner that stores k of n fair coin flips and guesses the rest: its information is
    # k ln 2 nats, its 0-1 training error (n - k)/(2n), its population error 1/2.
    n, k = 100, np.arange(0, 101)
    gap = 0.5 - (n - k) / (2 * n)
    bound = mutual_information_bound(k * np.log(2), num_examples=n, sub_gaussian_scale=0.5)
    assert np.all(gap <= np.asarray(bound))


def test_negative_rate_is_not_a_number():
    found = mutual_information_bound(
        jnp.asarray([-1.0, 1.0]), num_examples=10, sub_gaussian_scale=0.5
    )
    assert np.isnan(found).tolist() == [True, False]


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["num_examples", "sub_gaussian_scale"])
def test_refused(name, value):
    options = {"num_examples": 10, "sub_gaussian_scale": 0.5} | {name: value}
    with pytest.raises(ValueError, match=f"{name} must be a positive finite number, got"):
        mutual_information_bound(1.0, **options)
