"""The published networks as pure functions of their variables.

A `Network` holds no arrays and compares by value, as the functions of `jaxcomp.adapters` do. Losses
are in nats.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxcomp.adapters import Mode, in_mode
from jaxcomp.experiments.networks.modules import ConvolutionBlock, Mlp, Vgg
from jaxcomp.types import Params, PRNGKey

_NETWORKS: dict[str, type[Mlp] | type[Vgg]] = {"mlp": Mlp, "vgg": Vgg}


@dataclass(frozen=True)
class Network:
    """One of the project's networks as pure functions; made by `build`, equal by its fields.

    `variables` are `{"params": {layer: {"kernel", "bias"}}, "statistics": {...}}`, nested dicts of
    float32 arrays: what is trained, and the running statistics of batch normalization (empty for
    the multilayer perceptron). Dense kernels are `(in, out)`, convolutions `(3, 3, in, out)`.

    Attributes:
        name: `"mlp"` or `"vgg"`.
        input_shape: of one example.
        num_classes: number of logits.
        width: factor on the sizes of the hidden layers.
        dropout: share of hidden units dropped in training.
    """

    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    width: float
    dropout: float

    @property
    def is_convolutional(self) -> bool:
        """Whether the network has convolutions."""
        return _NETWORKS[self.name].is_convolutional

    @property
    def predict(self) -> "NetworkPredictFn":
        """`(variables, inputs) -> logits` in evaluation mode; equal for equal networks."""
        return NetworkPredictFn(self)

    @property
    def score(self) -> "NetworkPredictFn":
        """`predict`, faster on CPUs where only logits are wanted: its convolutions are in tiles."""
        return NetworkPredictFn(self, in_tiles=self.is_convolutional)

    def init(self, key: PRNGKey) -> dict[str, Any]:
        """Draw initial variables: Xavier-normal weights, zero biases, statistics 0 and 1.

        Args:
            key: consumed here.

        Returns:
            The variables.
        """
        return self.variables_of(self._create(key))

    def train_loss(
        self,
        variables: Params,
        inputs: Float[Array, "batch ..."],
        labels: Int[Array, "batch"],
        key: PRNGKey,
    ) -> tuple[Float[Array, ""], dict[str, Any]]:
        """Compute the loss in training mode: dropout on, batch statistics used and averaged in.

        Args:
            variables: of the network.
            inputs: examples of `input_shape`.
            labels: classes, integers.
            key: draws the dropout.

        Returns:
            Mean cross-entropy over the batch in nats, and the new `variables["statistics"]`.
        """
        module = self.module_of(variables, "training", in_tiles=True)
        logits = module(inputs, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), self.variables_of(module)["statistics"]

    def module_of(self, variables: Params, mode: Mode, *, in_tiles: bool = False) -> Any:
        """Put the variables into a fresh module; `in_tiles` as for `convolve_3x3`."""
        module = nnx.merge(
            # Files keep arrays only: a network that was read back has no empty `statistics`.
            _definition(self),
            variables["params"],
            variables.get("statistics", {}),
        )
        if in_tiles:
            module.set_attributes(ConvolutionBlock, in_tiles=True, raise_if_not_found=False)
        return in_mode(module, mode)

    def variables_of(self, module: nnx.Module) -> dict[str, Any]:
        """Take the variables out of a module."""
        return {
            "params": nnx.to_pure_dict(nnx.state(module, nnx.Param)),
            "statistics": nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)),
        }

    def _create(self, key: PRNGKey) -> nnx.Module:
        return _NETWORKS[self.name](
            input_shape=self.input_shape,
            num_classes=self.num_classes,
            width=self.width,
            dropout=self.dropout,
            rngs=nnx.Rngs(params=key),
        )


@dataclass(frozen=True)
class NetworkPredictFn:
    """`Network.predict` or `score`: a callable that compares by value, as no bound method does."""

    network: Network
    in_tiles: bool = False

    def __call__(
        self, variables: Params, inputs: Float[Array, "batch ..."]
    ) -> Float[Array, "batch classes"]:
        """Compute logits in evaluation mode.

        Args:
            variables: of the network.
            inputs: examples of `input_shape`.

        Returns:
            Logits, float32. Products are in full float32 on every device: quantization moves
            losses by less than TF32 or bfloat16 would.
        """
        with jax.default_matmul_precision("highest"):
            module = self.network.module_of(variables, "evaluation", in_tiles=self.in_tiles)
            return module(inputs)

    def module_of(self, variables: Params, mode: Mode) -> Any:
        """As `Network.module_of`."""
        return self.network.module_of(variables, mode)

    def variables_of(self, module: nnx.Module) -> dict[str, Any]:
        """As `Network.variables_of`."""
        return self.network.variables_of(module)


def build(
    name: str,
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    width: float = 1.0,
    dropout: float = 0.2,
) -> Network:
    """Describe one of the published networks.

    `"mlp"`: flattened inputs, two hidden layers of `256 * width` units, ReLU, dropout. `"vgg"`:
    3 x 3 convolutions of 128, 128, pool, 256, 256, pool, 512, 512, pool, 1024 (unpadded), pool
    channels times `width`, each with batch normalization without scale and shift and ReLU, then a
    dense layer; no dropout.

    Args:
        name: `"mlp"` or `"vgg"`.
        input_shape: of one example, e.g. `(28, 28, 1)`.
        num_classes: number of logits, at least 2.
        width: factor on the sizes of the hidden layers, which are rounded and at least 1.
        dropout: share of hidden units dropped in training, in [0, 1); ignored by `"vgg"`.

    Returns:
        The network. It holds no weights: `Network.init` draws them.

    Raises:
        ValueError: for an unknown name, an impossible size, or images too small for `"vgg"`.

    Source: Bu, Gao, Zou, Veeravalli, Entropy 23(10):1255 (2021), section 5.
    """
    if name not in _NETWORKS:
        raise ValueError(f"There is no network {name!r}: choose one of {', '.join(_NETWORKS)}.")
    shape = tuple(int(size) for size in input_shape)
    if not shape or min(shape) < 1:
        raise ValueError(f"input_shape must hold sizes of at least 1, got {input_shape}.")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width must be a positive number, got {width}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}.")
    _NETWORKS[name].check_input_shape(shape)
    # Networks that are the same compare equal.
    rate = float(dropout) if _NETWORKS[name].has_dropout else 0.0
    return Network(name, shape, int(num_classes), float(width), rate)


@functools.cache
def _definition(network: Network) -> nnx.GraphDef[Any]:
    """What the network's module is, without arrays: made when first needed, then kept."""
    module = nnx.eval_shape(lambda: network._create(jax.random.key(0)))
    return nnx.split(module, nnx.Param, nnx.BatchStat)[0]
