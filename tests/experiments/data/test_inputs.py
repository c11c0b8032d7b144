"""Network inputs: plain NumPy formulas in float64 as the oracle."""

import numpy as np
import pytest

from jaxcomp.experiments.data import Standardization, standardization, to_inputs


@pytest.mark.parametrize(("num_channels", "max_value"), [(1, 16), (3, 255)])
@pytest.mark.parametrize("indices", [None, [3, 3, 0]])
def test_standardized_inputs(num_channels: int, max_value: int, indices: list[int] | None) -> None:
    generator = np.random.default_rng(num_channels)
    images = generator.integers(0, max_value + 1, (5, 4, 3, num_channels), np.uint8)
    chosen = None if indices is None else np.array(indices, np.int32)
    measured = standardization(images, max_value, chosen)
    scaled = images / max_value
    used = scaled if indices is None else scaled[indices]
    # Two ways to add up N pixels differ by at most N eps relative.
    tolerance = used.size * np.finfo(np.float64).eps
    np.testing.assert_allclose(measured.mean, used.mean(axis=(0, 1, 2)), rtol=tolerance)
    np.testing.assert_allclose(measured.deviation, used.std(axis=(0, 1, 2)), rtol=tolerance)
    inputs = to_inputs(images, max_value, measured)
    assert inputs.dtype == np.float32
    expected = (scaled - used.mean(axis=(0, 1, 2))) / used.std(axis=(0, 1, 2))
    eps = float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(inputs, expected, rtol=eps, atol=eps * tolerance)
    if indices is None:
        np.testing.assert_allclose(inputs.std(axis=(0, 1, 2), dtype=np.float64), 1, rtol=eps)


def test_more_examples_than_one_piece() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2500, 2, 2, 2), np.uint8)
    measured = standardization(images, 255)
    tolerance = images.size * np.finfo(np.float64).eps
    np.testing.assert_allclose(measured.mean, (images / 255).mean(axis=(0, 1, 2)), rtol=tolerance)


def test_inputs_without_standardization_lie_in_zero_to_one() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    inputs = to_inputs(images, 255)
    np.testing.assert_array_equal(inputs.ravel(), (np.arange(256) / 255).astype(np.float32))


def test_constant_channels_become_zero() -> None:
    images = np.zeros((3, 2, 2, 2), np.uint8)
    images[..., 1] = 77  # 77 / 255 has no exact binary form
    measured = standardization(images, 255)
    assert measured.deviation.tolist() == [1.0, 1.0]
    np.testing.assert_array_equal(to_inputs(images, 255, measured), np.zeros(images.shape))


def test_errors() -> None:
    images = np.zeros((2, 4, 4, 1), np.uint8)
    with pytest.raises(TypeError, match="Images must be uint8, got float64"):
        standardization(images / 1, 255)
    with pytest.raises(ValueError, match=r"shape \(N, H, W, C\), got \(2, 4, 4\)"):
        to_inputs(images[..., 0], 255)
    with pytest.raises(ValueError, match="max_value must be at least 1, got 0"):
        to_inputs(images, 0)
    with pytest.raises(ValueError, match=r"at least one pixel, got images of shape \(0, 4, 4, 1\)"):
        standardization(images, 255, np.zeros(0, np.int32))
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(3,\), but the images have 1"):
        to_inputs(images, 255, Standardization(np.zeros(3), np.ones(3)))
