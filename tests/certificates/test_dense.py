"""The network that is known: dense layers in the order of their names."""

import numpy as np
import pytest
from certificate_problems import logits, weights

from jaxcomp.certificates import dense_predict_fn


def test_both_layouts():
    params, inputs = weights(0), np.random.default_rng(0).normal(size=(5, 2, 2))
    inputs = inputs.astype(np.float32)
    expected = logits(params, inputs.reshape(5, 4))
    np.testing.assert_allclose(dense_predict_fn(params)(params, inputs), expected, rtol=1e-5)
    # Tenth after second, (in, out).
    nested = {
        f"layer_{place}": {"kernel": params[f"{name}.weight"].T, "bias": params[f"{name}.bias"]}
        for place, name in ((2, "fc1"), (10, "fc2"))
    }
    np.testing.assert_allclose(dense_predict_fn(nested)(nested, inputs), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"fc1.weight": np.zeros((5, 4))},
        {"fc1.bias": np.zeros(5)},
        {"fc1.gain": np.zeros(6)},
        {"fc3.bias": np.zeros(3)},
        {"fc1.weight": np.zeros((6, 4, 1))},
    ],
)
def test_what_is_no_chain(changes):
    with pytest.raises(ValueError, match="are no chain of dense layers"):
        dense_predict_fn(weights(0) | changes)
