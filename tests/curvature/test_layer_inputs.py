"""Moments of layers' inputs against naive ones, and which bias belongs to which layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcomp.curvature import Layers


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# The names are in the order opposite to that of the layers.
PARAMS = {
    "z": {"kernel": normal(1, 6, 5), "bias": normal(2, 5)},
    "a": {"kernel": normal(3, 5, 3), "bias": normal(4, 3), "other": normal(5, 5)},
}
INPUTS = normal(6, 30, 6)
TARGETS = np.arange(30) % 3


def predict(params: Any, x: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(x @ params["z"]["kernel"] + params["z"]["bias"])
    # No bias of the first layer, although it has its size.
    return (hidden + params["a"]["other"]) @ params["a"]["kernel"] + params["a"]["bias"]


def hidden(params: Any, x: np.ndarray) -> np.ndarray:
    own = np.maximum(x @ params["z"]["kernel"] + params["z"]["bias"], 0)
    return own + params["a"]["other"]


def network(**options: Any) -> Any:
    batches = [(INPUTS[:20], TARGETS[:20]), (INPUTS[20:], TARGETS[20:])]
    return Layers(predict, batches, **options).open(PARAMS)


def test_layers_come_in_the_order_of_evaluation_with_their_biases():
    found = network()
    assert {path: use.bias for path, use in found.uses.items()} == {
        "z/kernel": "z/bias",
        "a/kernel": "a/bias",
    }
    assert found.stages(found.uses) == [["z/kernel"], ["a/kernel"]]
    assert network(num_stages=1).stages(found.uses) == [["z/kernel", "a/kernel"]]


def test_moments_are_those_of_both_parts_of_the_data():
    changed = {"z": {"kernel": PARAMS["z"]["kernel"] + 0.1, "bias": PARAMS["z"]["bias"]}}
    changed["a"] = PARAMS["a"]
    found = network().moments("a/kernel", {"z/kernel": changed["z"]["kernel"]})
    # A fifth is held out: the last four of twenty, the last two of ten.
    places = np.r_[0:16, 20:28], np.r_[16:20, 28:30]
    assert found.share == 24 / 30
    assert found.held_out is not None
    for part, place in zip((found.fitted, found.held_out), places, strict=True):
        x, new = (hidden(params, INPUTS[place]) for params in (PARAMS, changed))
        number = len(place)
        assert part.cross is not None
        np.testing.assert_allclose(part.second[0], new.T @ new / number, rtol=1e-5)
        np.testing.assert_allclose(part.cross[0], new.T @ x / number, rtol=1e-5)
        np.testing.assert_allclose(part.mean[0], new.mean(0), rtol=1e-5)
        np.testing.assert_allclose(part.original_mean[0], x.mean(0), rtol=1e-5)
    x = hidden(PARAMS, INPUTS)
    whole = network().moments("a/kernel", {})
    assert whole.fitted.cross is None
    np.testing.assert_allclose(whole.joined().second[0], x.T @ x / 30, rtol=1e-5)


def test_positions_are_averaged_and_stacks_have_a_group_for_each_layer():
    params = {
        "kernel": normal(1, 3, 2, 4),
        "bias": normal(2, 4),
        "stack": {"w": 0.3 * normal(3, 2, 4, 4), "b": normal(4, 2, 4)},
    }
    images = normal(5, 6, 5, 2)

    def apply(params, x):
        x = lax.conv_general_dilated(
            x, params["kernel"], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        x = jnp.tanh(x + params["bias"])

        def block(x, own):
            return jnp.tanh(x @ own["w"] + own["b"]), None

        return lax.scan(block, x, params["stack"])[0].mean(1)

    found = Layers(apply, [images], loss=None, held_out=0.0).open(params)
    assert {path: use.bias for path, use in found.uses.items()} == {
        "kernel": "bias",
        "stack/w": "stack/b",
    }
    moments = found.moments("kernel", {})
    assert moments.held_out is None
    patches = np.stack([images[:, p : p + 3] for p in range(3)], axis=1).reshape(18, 6)
    trace = np.trace(patches.T @ patches / 18)
    np.testing.assert_allclose(np.trace(moments.fitted.second[0]), trace, rtol=1e-5)
    stacked = found.moments("stack/w", {})
    # Patches are rows of (positions, inputs), as the kernel's first two axes.
    kernel = params["kernel"].reshape(6, 4)
    first = np.tanh(patches @ kernel + params["bias"])
    second = np.tanh(first @ params["stack"]["w"][0] + params["stack"]["b"][0])
    for group, x in enumerate((first, second)):
        np.testing.assert_allclose(stacked.fitted.second[group], x.T @ x / 18, atol=1e-5)
    assert found.importance() is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batches": iter([INPUTS])}, TypeError, "iterable more than once"),
        ({"held_out": 1.0}, ValueError, "held_out must be from 0 to below 1, got 1.0"),
        ({"num_stages": 0}, ValueError, "num_stages must be at least 1, got 0"),
    ],
)
def test_options_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        Layers(**{"predict_fn": predict, "batches": [INPUTS], **options})


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="batches is empty"):
        Layers(predict, []).open(PARAMS)
