"""Features written down by hand."""

import numpy as np
import pytest
from scipy.fft import dct

from jaxcomp.experiments.small_descriptions import Features, features_of
from jaxcomp.experiments.small_descriptions.architectures import FEATURES
from jaxcomp.experiments.small_descriptions.config import NUM_FEATURES
from jaxcomp.experiments.small_descriptions.features import _cosines, _upright, _waves


def stroke(side=28, *, x=0.0, slant=0.0, size=1.0):
    """A bar with a foot, slanted, moved and scaled."""
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    columns = (columns - x - slant * rows) / size
    rows = rows / size
    bar = np.exp(-(columns**2) / 4) * (abs(rows) < 7)
    foot = np.exp(-((rows - 6) ** 2) / 4) * (columns > 0) * (columns < 6)
    return np.clip(bar + foot, 0, 1).astype(np.float32)


def test_transforms():
    np.testing.assert_allclose(_cosines(5), dct(np.eye(5), axis=0, norm="ortho"), atol=1e-6)
    waves, order = _waves()
    np.testing.assert_allclose(waves @ waves.T, np.eye(8), atol=1e-6)
    assert order.tolist() == [0, 1, 1, 2, 2, 3, 3, 4]
    for number, row in zip(order, waves, strict=True):  # waves of their order
        power = abs(np.fft.rfft(row))
        assert power.argmax() == number


def test_upright_images_forget_place_slant_and_size():
    images = np.stack([stroke(), stroke(x=3), stroke(slant=0.3), stroke(size=0.8), 0 * stroke()])
    found = np.asarray(_upright(images))
    assert np.isfinite(found).all()
    images, found = images[:4], found[:4]
    before = [np.linalg.norm(image - images[0]) for image in images[1:]]
    after = [np.linalg.norm(image - found[0]) for image in found[1:]]
    assert all(a < 0.35 * b for a, b in zip(after, before, strict=True))


def test_features_are_of_each_image_alone():
    which = Features(True, 4, 3, (0.7, 1.5), True)
    images = np.stack([stroke(), stroke(slant=0.4), 0 * stroke()])
    found = np.asarray(features_of(images[..., None], which))
    assert found.shape == (3, which.num_features) == (3, 17 * 6)
    assert np.isfinite(found).all()
    alone = features_of(images[[1, 1, 1]], which)
    np.testing.assert_allclose(alone, found[[1, 1, 1]], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"square and of one channel.*got \(1, 4, 4, 3\)"):
        features_of(np.zeros((1, 4, 4, 3), np.float32), which)


def test_candidates_keep_their_numbers():
    assert len(set(FEATURES)) == len(FEATURES) == NUM_FEATURES
    assert FEATURES[708] == Features(True, 5, 5)
    assert FEATURES[228] == Features(False, 5, 6)
    assert FEATURES[548] == Features(True, 4, 4)
