"""The two published networks as Flax NNX modules, with a `width` factor.

The multilayer perceptron 784-256-256-10 and the VGG-like convolutional network of Bu, Gao, Zou,
Veeravalli, "Population risk improvement with model compression" (Entropy 23(10):1255, 2021).
Weights are Xavier-normal, biases zero. Dense kernels are `(in, out)`, convolutions `(3, 3, in,
out)`. A module is called with inputs and, in training mode, a key for its dropout; how it becomes
a pure function is the business of `jaxcomp.adapters`.
"""

import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt16

from jaxcomp.experiments.networks.convolution import (
    Padding,
    convolve_3x3,
    max_pool_2x2,
    rectified_3x3,
)
from jaxcomp.types import PRNGKey

XAVIER_NORMAL = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
"""Variance 2 / (fan in + fan out), not truncated (`glorot_normal` is)."""

_DROPOUT_LEVELS = 1 << 16


class Mlp(nnx.Module):
    """Multilayer perceptron with two hidden layers, ReLU, and dropout after each of them.

    Args:
        input_shape: of one example; flattened.
        num_classes: number of logits.
        width: the hidden layers have `256 * width` units, at least 1.
        dropout: share of hidden units dropped in training.
        rngs: the stream `params` draws the weights.
    """

    is_convolutional: ClassVar[bool] = False
    has_dropout: ClassVar[bool] = True

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        width: float,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        num_features = 1
        for size in input_shape:
            num_features *= size
        hidden = scaled(256, width)
        self.hidden_0 = _dense(num_features, hidden, rngs)
        self.hidden_1 = _dense(hidden, hidden, rngs)
        self.output = _dense(hidden, num_classes, rngs)
        self.dropout = Dropout(dropout)

    def __call__(
        self, inputs: Float[Array, "batch ..."], key: PRNGKey | None = None
    ) -> Float[Array, "batch classes"]:
        """Compute logits; `key` is needed in training mode only."""
        hidden = jax.nn.relu(self.hidden_0(inputs.reshape(inputs.shape[0], -1)))
        bits = (None, None) if key is None else self.dropout.bits(key, 2, hidden.shape)
        hidden = jax.nn.relu(self.hidden_1(self.dropout(hidden, bits[0])))
        return self.output(self.dropout(hidden, bits[1]))

    @staticmethod
    def check_input_shape(input_shape: tuple[int, ...]) -> None:
        """Accept any shape: it is flattened."""


class Vgg(nnx.Module):
    """VGG-like network: seven convolutions of 3 x 3, four pools of 2 x 2, one dense layer.

    128, 128, pool, 256, 256, pool, 512, 512, pool, 1024 unpadded, pool, dense. After each
    convolution comes batch normalization without scale and shift, then ReLU. The convolutions have
    no biases: the normalization would subtract them again.

    Args:
        input_shape: `(rows, columns, channels)`, at least 32 x 32 pixels.
        num_classes: number of logits.
        width: factor on all channel counts, which stay at least 1.
        dropout: ignored; the published network has none.
        rngs: the stream `params` draws the weights.
    """

    is_convolutional: ClassVar[bool] = True
    has_dropout: ClassVar[bool] = False

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        width: float,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        del dropout
        rows, columns, channels = input_shape
        widths = [scaled(size, width) for size in (128, 128, 256, 256, 512, 512, 1024)]
        blocks = [
            ConvolutionBlock(before, after, padding="VALID" if index == 6 else "SAME", rngs=rngs)
            for index, (before, after) in enumerate(itertools.pairwise([channels, *widths]))
        ]
        # One attribute each: the paths of the weights then read `convolution_0/kernel`.
        (
            self.convolution_0,
            self.convolution_1,
            self.convolution_2,
            self.convolution_3,
            self.convolution_4,
            self.convolution_5,
            self.convolution_6,
        ) = blocks
        positions = ((rows // 8 - 2) // 2) * ((columns // 8 - 2) // 2)
        self.output = _dense(positions * widths[-1], num_classes, rngs)

    def __call__(
        self, inputs: Float[Array, "batch rows columns channels"], key: PRNGKey | None = None
    ) -> Float[Array, "batch classes"]:
        """Compute logits; `key` is not used."""
        del key
        hidden = self.convolution_1(self.convolution_0(inputs), pools=True)
        hidden = self.convolution_3(self.convolution_2(hidden), pools=True)
        hidden = self.convolution_5(self.convolution_4(hidden), pools=True)
        hidden = self.convolution_6(hidden, pools=True)
        return self.output(hidden.reshape(hidden.shape[0], -1))

    @staticmethod
    def check_input_shape(input_shape: tuple[int, ...]) -> None:
        """Refuse images that the pools would use up.

        Raises:
            ValueError: unless there are three axes and at least 32 x 32 pixels.
        """
        if len(input_shape) != 3 or min(input_shape[:2]) < 32:
            raise ValueError(
                "The network 'vgg' needs images (rows, columns, channels) of at least 32 x 32 "
                "pixels, because four pools and an unpadded convolution leave nothing of smaller "
                f"ones; got the shape {input_shape}: use 'mlp' instead."
            )


class ConvolutionBlock(nnx.Module):
    """A convolution of 3 x 3 without bias, batch normalization without scale and shift, ReLU.

    Args:
        num_inputs: channels before.
        num_outputs: channels after.
        padding: `"SAME"` or `"VALID"`.
        rngs: the stream `params` draws the kernel.
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, *, padding: Padding, rngs: nnx.Rngs
    ) -> None:
        shape = (3, 3, num_inputs, num_outputs)
        self.kernel = nnx.Param(XAVIER_NORMAL(rngs.params(), shape, jnp.float32))
        self.padding: Padding = padding
        self.in_tiles = False
        # PyTorch's momentum of 0.1 is the weight of the new value, Flax's 0.9 that of the old.
        self.normalization = nnx.BatchNorm(
            num_outputs, momentum=0.9, epsilon=1e-5, use_bias=False, use_scale=False, rngs=rngs
        )

    def __call__(
        self, inputs: Float[Array, "batch rows columns channels"], *, pools: bool = False
    ) -> Float[Array, "batch rows_out columns_out channels_out"]:
        """Convolve, normalize, rectify, and pool if asked."""
        normalization = self.normalization
        if self.in_tiles and normalization.use_running_average:
            return rectified_3x3(
                inputs,
                self.kernel[...],
                normalization.mean[...],
                jax.lax.rsqrt(normalization.var[...] + normalization.epsilon),
                padding=self.padding,
                pools=pools,
            )
        outputs = convolve_3x3(
            inputs, self.kernel[...], padding=self.padding, in_tiles=self.in_tiles
        )
        outputs = jax.nn.relu(normalization(outputs))
        return max_pool_2x2(outputs) if pools else outputs


class Dropout(nnx.Module):
    """Set a random share of the units to zero and scale the others up, in training mode.

    `nnx.Dropout` with cheaper random numbers: 16 bits per unit, since drawing them is a good part
    of a training step of a small network. The share is `rate` rounded to a multiple of 2^-16, and
    the scale is that of the rounded share, so the mean is kept exactly.

    Args:
        rate: share of units dropped, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.deterministic = False

    @staticmethod
    def bits(
        key: PRNGKey, num_layers: int, shape: tuple[int, ...]
    ) -> UInt16[Array, "num_layers *shape"]:
        """Draw what decides about the units of layers of one shape.

        All at once: generators are what a training step of a small network costs to compile.
        """
        keys = jax.random.split(key, num_layers)
        return jax.vmap(lambda own: jax.random.bits(own, shape, jnp.uint16))(keys)

    def __call__(
        self, inputs: Float[Array, "*shape"], bits: UInt16[Array, "*shape"] | None
    ) -> Float[Array, "*shape"]:
        """Drop units by their `bits`; in evaluation mode, or at rate 0, return the inputs."""
        levels_kept = round((1.0 - self.rate) * _DROPOUT_LEVELS)
        if self.deterministic or levels_kept == _DROPOUT_LEVELS:
            return inputs
        if bits is None:
            raise ValueError("Dropout in training mode needs a key: pass one to the network.")
        return jnp.where(
            bits < jnp.uint16(levels_kept), inputs * (_DROPOUT_LEVELS / levels_kept), 0.0
        )


def scaled(size: int, width: float) -> int:
    """Scale a layer size, rounded, at least 1."""
    return max(1, round(size * width))


def _dense(num_inputs: int, num_outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(num_inputs, num_outputs, kernel_init=XAVIER_NORMAL, rngs=rngs)
