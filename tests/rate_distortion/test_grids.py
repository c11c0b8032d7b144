import numpy as np
import pytest

from jaxcomp.rate_distortion import grids


def test_interpolation_and_its_transpose():
    rng = np.random.default_rng(0)
    for size in (4, 5, 9, 33):
        coarse, fine = rng.normal(size=size), rng.normal(size=2 * size - 1)
        assert grids.restricted(fine) @ coarse == pytest.approx(fine @ grids.prolonged(coarse))
    x = np.linspace(0, 1, 17)
    polynomial = np.polynomial.Polynomial([1, -2, 3, 1, -1, 2])
    np.testing.assert_allclose(
        grids.finely_prolonged(polynomial(x)), polynomial(np.linspace(0, 1, 33)), rtol=1e-12
    )
