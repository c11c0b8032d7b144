import numpy as np

from jaxcomp.quantizers import EntropyConstrained


def test_default_slopes_grow_like_layers_and_are_that_of_four_bits_on_average():
    method = EntropyConstrained()
    sizes, layers = np.asarray([100, 800]), np.asarray([3, 1])
    found = np.asarray(method.defaults(sizes, layers))
    np.testing.assert_allclose(found[1] / found[0], 8, rtol=1e-12)
    bits = -0.5 * np.log2(found / (2 * np.log(2)))
    np.testing.assert_allclose(np.average(bits, weights=sizes * layers), 4, rtol=1e-12)


def test_default_slopes_stay_where_curves_are():
    found = EntropyConstrained().defaults(np.asarray([1, 10**9]), np.asarray([1, 1]))
    assert min(found) == min(EntropyConstrained().candidates())
