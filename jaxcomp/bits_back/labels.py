"""Hinton and van Camp, end to end: training labels sent by a network that the receiver lacks.

Both ends have the inputs, the network's architecture, the recipe of its training and a seed: a
`LabelCode`. The sender learns a posterior over the weights from the labels, and sends labels and
drawn weights by bits back. The receiver decodes the weights under the prior, the labels under the
weights, and then knows all that the sender's training saw: it repeats it, comes to the same
posterior, and gets the payload back. Nothing is handed over beside the stream, and the stream is
longer than the payload by the negative evidence lower bound, in the mean.

The training has to be repeated to the bit, so both ends must run the same program on the same kind
of machine; if not, the checksum of the payload fails.

The prequential code is the other way to send labels by learning: each block under a network
trained on the blocks before.

Axes: `n` examples, `C` classes.

Sources: Hinton and van Camp, COLT 1993, doi:10.1145/168304.168306; Blier and Ollivier, NeurIPS
2018, arXiv:1802.07044, for the comparison of the codes.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8, UInt32

from jaxcomp.bits_back.coder import Labels, Message, encode
from jaxcomp.bits_back.posterior import Posterior
from jaxcomp.bits_back.training import (
    InitFn,
    VariationalConfig,
    VariationalFit,
    fit,
    prior_bytes,
    prior_from_bytes,
)
from jaxcomp.coding.distributions import PriorTree
from jaxcomp.numerics.units import LN2
from jaxcomp.types import AnyArray, Params, PredictFn


@dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy of a network in nats; equal for the same network, so it compiles once.

    Attributes:
        predict_fn: `(params, inputs) -> logits (n, C)`.
    """

    predict_fn: PredictFn

    def __call__(self, params: Params, batch: Any) -> Float[Array, ""]:
        """Return the mean loss over `batch = (inputs, labels)`."""
        inputs, labels = batch
        logits = self.predict_fn(params, inputs)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


@dataclass(frozen=True, eq=False)
class LabelCode:
    """What sender and receiver of labels agree on beforehand.

    Attributes:
        inputs: (n, ...) of all examples.
        predict_fn: `(params, inputs) -> logits (n, C)`, pure.
        init_fn: `key -> params`.
        config: of the variational training.
        seed: of the training.
        step: of the cells of the weights, the same for all leaves.
    """

    inputs: Any
    predict_fn: PredictFn
    init_fn: InitFn
    config: VariationalConfig = VariationalConfig()  # noqa: RUF009 (frozen)
    seed: int = 0
    step: float = 0.01

    @property
    def loss_fn(self) -> CrossEntropy:
        """Mean cross-entropy of the network."""
        return CrossEntropy(self.predict_fn)

    def learn(self, labels: Int[AnyArray, "n"]) -> VariationalFit:
        """Learn the posterior from the labels: the same at both ends."""
        batch = jnp.asarray(self.inputs), jnp.asarray(labels, jnp.int32)
        key = jax.random.key(self.seed)
        return fit(self.loss_fn, self.init_fn, batch, key, config=self.config)

    def logits(self, weights: Params) -> Float[Array, "n C"]:
        """Compute logits of all inputs."""
        return _logits(weights, jnp.asarray(self.inputs), predict_fn=self.predict_fn)

    def like(self) -> Params:
        """Return the shapes of the weights."""
        return jax.eval_shape(self.init_fn, jax.random.key(0))


@partial(jax.jit, static_argnames="predict_fn")
def _logits(weights: Params, inputs: Array, *, predict_fn: PredictFn) -> Array:
    return predict_fn(weights, inputs)


def send_labels(
    code: LabelCode,
    labels: Int[AnyArray, "n"],
    payload: UInt32[np.ndarray, "words"],
    *,
    fitted: VariationalFit | None = None,
) -> Message:
    """Send labels by bits back.

    Args:
        code: what the receiver has as well.
        labels: classes of all inputs.
        payload: uint32 words, sent along.
        fitted: `code.learn(labels)`, if it is there already; it must be just that.

    Returns:
        The message: `num_net_bits` is what the labels cost. Decode it with
        `decode(message, Relearner(code))`.

    Raises:
        ImportError: without `constriction`.
        TypeError: if labels are not integers.
        ValueError: as `encode`: a payload too short, labels out of range or of another number.
    """
    values = np.asarray(labels)
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"labels must be integers, got {values.dtype}.")
    if values.shape != np.shape(code.inputs)[:1]:
        raise ValueError(
            f"labels must be one for each of {len(code.inputs)} inputs, got shape {values.shape}."
        )
    fitted = code.learn(values) if fitted is None else fitted
    side = prior_bytes(fitted.prior)
    prior = prior_from_bytes(side, fitted.posterior.mean)
    return encode(
        fitted.posterior,
        prior,
        payload,
        step=code.step,
        labels=Labels(values, code.logits),
        side=side,
    )


class Relearner:
    """The receiver of labels: it has the code, and learns the posterior from what it decodes.

    Args:
        code: what the sender had as well.
    """

    def __init__(self, code: LabelCode) -> None:
        self._code = code

    def like(self) -> Params:
        """Return the shapes of the weights."""
        return self._code.like()

    def prior(self, side: UInt8[np.ndarray, "bytes"]) -> PriorTree:
        """Return the prior that the side information says."""
        return prior_from_bytes(side, self._code.like())

    def logits(self, weights: Params) -> Any:
        """Return the logits of all inputs."""
        return self._code.logits(weights)

    def posterior(self, labels: Int[np.ndarray, "n"] | None) -> Posterior:
        """Repeat the training.

        Raises:
            ValueError: if the message holds no labels.
        """
        if labels is None:
            raise ValueError("The message holds no labels to learn the posterior from.")
        return self._code.learn(labels).posterior


def prequential_bits(
    logits_fn: Callable[[int], Any],
    labels: Int[AnyArray, "n"],
    *,
    num_classes: int,
    block_ends: Sequence[int],
) -> float:
    """Return the prequential code length of labels: every block under what came before.

    The first block costs `log2 C` bits a label, every other the cross-entropy of a model trained
    on all labels before the block.

    Args:
        logits_fn: `num_known -> logits (n, C)` of all examples, having seen the first `num_known`
            labels and no others.
        labels: in the order of sending.
        num_classes: C, at least 2.
        block_ends: ascending, the last of them n.

    Returns:
        Bits.

    Raises:
        ValueError: if the blocks do not ascend to n.
    """
    labels = np.asarray(labels)
    ends = list(block_ends)
    if ends != sorted(set(ends)) or not ends or ends[0] < 1 or ends[-1] != len(labels):
        raise ValueError(
            f"block_ends must ascend from at least 1 to the {len(labels)} labels, got {ends}."
        )
    total = ends[0] * math.log2(num_classes)
    for begin, end in itertools.pairwise(ends):
        block = np.arange(begin, end)
        logits = np.asarray(logits_fn(begin), np.float64)[block]
        top = logits.max(axis=1)
        log_sums = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        total += float(np.sum(log_sums - logits[np.arange(len(block)), labels[block]])) / LN2
    return total
