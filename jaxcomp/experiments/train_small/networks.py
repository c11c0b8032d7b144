"""The networks whose small files are published, as functions of plain trees of weights.

LeNet-300-100 and LeNet-5 in the sizes of Caffe (20 and 50 filters of 5 x 5, 500 units), as in Han,
Mao, Dally, arXiv:1510.00149, and a smaller one for digits of 8 x 8 pixels. Convolutions are matrix
products of patches: XLA's own are slow in loops on CPUs.

Axes: `N` images, `H` rows, `W` columns, `C` channels.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcomp.experiments.networks.convolution import max_pool_2x2
from jaxcomp.types import Params, PredictFn, PRNGKey

_HIDDEN = {"lenet-300-100": (300, 100), "digits": (64, 32)}
_FILTER = 5


def predict_fn(name: str) -> PredictFn:
    """Return a network as `(params, images) -> logits`, images (N, H, W, C) in [0, 1]."""
    return _lenet5 if name == "lenet-5" else _dense


def initial_params(
    name: str, key: PRNGKey, *, shape: Sequence[int], num_classes: int
) -> dict[str, Any]:
    """Return random weights, normal of variance 2 over their inputs, and biases of 0.

    Args:
        name: of the network.
        key: consumed here.
        shape: (H, W, C) of an image.
        num_classes: logits.
    """
    rows, columns, channels = shape
    if name == "lenet-5":
        left = [((side - _FILTER + 1) // 2 - _FILTER + 1) // 2 for side in (rows, columns)]
        kernels = {
            "conv1": (_FILTER, _FILTER, channels, 20),
            "conv2": (_FILTER, _FILTER, 20, 50),
            "dense1": (left[0] * left[1] * 50, 500),
            "dense2": (500, num_classes),
        }
    else:
        sizes = (rows * columns * channels, *_HIDDEN[name], num_classes)
        kernels = {f"dense{place + 1}": sizes[place : place + 2] for place in range(len(sizes) - 1)}
    params = {}
    for (layer, kernel), own in zip(
        kernels.items(), jax.random.split(key, len(kernels)), strict=True
    ):
        draw = jax.nn.initializers.he_normal()
        params[layer] = {"bias": jnp.zeros(kernel[-1]), "kernel": draw(own, kernel)}
    return params


def _dense(params: Params, images: Float[Array, "N H W C"]) -> Float[Array, "N classes"]:
    hidden = images.reshape(len(images), -1)
    for number in range(1, len(params) + 1):
        own = params[f"dense{number}"]
        hidden = hidden @ own["kernel"] + own["bias"]
        hidden = jax.nn.relu(hidden) if number < len(params) else hidden
    return hidden


def _lenet5(params: Params, images: Float[Array, "N H W C"]) -> Float[Array, "N classes"]:
    hidden = images
    for layer in ("conv1", "conv2"):
        own = params[layer]
        # What is larger before a rectifier is so after it: a quarter of the work behind the pool.
        hidden = jax.nn.relu(max_pool_2x2(_convolved(hidden, own["kernel"])) + own["bias"])
    hidden = hidden.reshape(len(hidden), -1)
    own = params["dense1"]
    hidden = jax.nn.relu(hidden @ own["kernel"] + own["bias"])
    return hidden @ params["dense2"]["kernel"] + params["dense2"]["bias"]


def _convolved(
    images: Float[Array, "N H W C"], kernel: Float[Array, "size size C O"]
) -> Float[Array, "N rows columns O"]:
    """Convolve without padding: patches, columns first, and one product."""
    size, _, channels, outputs = kernel.shape
    rows, columns = (side - size + 1 for side in images.shape[1:3])
    slices = partial(jnp.concatenate, axis=-1)
    images = slices([images[:, :, place : place + columns] for place in range(size)])
    patches = slices([images[:, place : place + rows] for place in range(size)])
    found = patches.reshape(-1, size * size * channels) @ kernel.reshape(-1, outputs)
    return found.reshape(len(images), rows, columns, outputs)
