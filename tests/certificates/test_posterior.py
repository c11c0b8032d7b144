"""Posteriors from files."""

import numpy as np
import pytest
import safetensors.numpy
from certificate_problems import weights
from file_problems import assert_same_bits

from jaxcomp.certificates.posterior import read_posterior


@pytest.mark.parametrize("mark", [".", "/"])
def test_file(mark, tmp_path):
    path = tmp_path / "p.safetensors"
    trees = weights(0), weights(1)
    safetensors.numpy.save_file(
        {
            f"{part}{mark}{name}": values
            for part, tree in zip(("mean", "log_std"), trees, strict=True)
            for name, values in tree.items()
        },
        path,
    )
    assert_same_bits(tuple(read_posterior(path)), trees)


@pytest.mark.parametrize(
    ("log_std", "message"),
    [
        ({"fc1.weight": np.zeros(3)}, "mean and log_std of the posterior have other arrays"),
        (weights(1) | {"fc1.bias": np.zeros(3)}, "log_std of 'fc1.bias' has the shape"),
    ],
)
def test_what_does_not_fit(log_std, message):
    with pytest.raises(ValueError, match=message):
        read_posterior((weights(0), log_std))
    with pytest.raises(ValueError, match="the posterior has no mean"):
        read_posterior({"log_std": log_std})
