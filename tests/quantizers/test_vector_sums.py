import numpy as np

from jaxcomp.quantizers import vector_sums


def test_sums_by_product_equal_sums_by_scatter():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((4, 100)).astype(np.float32)
    index = rng.integers(0, 7, 100).astype(np.int32)
    expected = np.zeros((4, 8))
    np.add.at(expected.T, index, features.T.astype(np.float64))
    for method in (vector_sums._sum_by_scatter, vector_sums._sum_by_product):
        np.testing.assert_allclose(method(features, index, num_clusters=8), expected, atol=1e-5)
