"""LeNet-5 with random filters, against SciPy."""

import numpy as np
import pytest
from scipy.signal import correlate

from jaxcomp.experiments.small_descriptions import network
from jaxcomp.training import random_signs


def test_features_are_two_layers_of_signs():
    own = network(3, random_filters=True)
    image = np.random.default_rng(0).random((28, 28)).astype(np.float32)
    found, seed = image[None], 6
    for channels in (6, 16):
        signs = random_signs(seed, (channels, len(found), 5, 5)).astype(np.float64)
        found = [correlate(found, own_signs, "valid")[0] for own_signs in signs]
        found = np.maximum(found, 0) / np.sqrt(25 * signs.shape[1])
        half = found.shape[1] // 2
        found = found.reshape(channels, half, 2, half, 2).sum((2, 4))
        seed += 1
    expected = 4 * found.reshape(-1)
    np.testing.assert_allclose(own.features_of(image[None, ..., None])[0], expected, rtol=1e-4)
    assert len(expected) == own.features.num_features
    with pytest.raises(ValueError, match=r"28, 28, 1\) for LeNet-5, got \(2, 8, 8\)"):
        own.features_of(np.zeros((2, 8, 8), np.float32))
