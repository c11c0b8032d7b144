"""Bits back for real: weights sent as a sample of a posterior, on a stack that holds a payload.

The sender draws *all* weights by decoding them under the posterior q from a stack of payload bits,
then encodes labels given the weights (if any) and the weights under the prior p. The receiver
decodes weights and labels, comes to know q, and encodes the weights under q again: the payload is
back, bit for bit. So the message is longer than the payload by

    net = gross - refund = -sum log2 p(w) + sum log2 q(w)

for the drawn weights, `KL(q || p)` in the mean. Drawing and encoding must not be interleaved
weight by weight: the coder would hand back the bits just pushed, which are not uniform.

What the receiver has to know is q, exactly. `KnownPosterior` is handed it out of band;
`jaxcomp.bits_back.Relearner` learns it again from the labels in the message. The payload is
whitened by a fixed stream of bits, so any payload draws from q, a file of zeros too.

Between platforms, the frequencies of a prior are whole numbers fixed on the host; those of the
Gaussians of q are made in `constriction` from float64 and may differ by a unit, in about one of
10^9 weights, between two systems' `erf`. A checksum of the payload turns that into an error.

Axes: `N` weights in all leaves, `n` labels, `C` classes.

Sources: Hinton and van Camp, COLT 1993, doi:10.1145/168304.168306; Townsend, Bird and Barber,
ICLR 2019, arXiv:1901.04866, for bits back on a stack.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8, UInt32

from jaxcomp.bits_back.draws import draw, is_representable, put_back
from jaxcomp.bits_back.posterior import (
    CellDivergence,
    Posterior,
    check_posterior,
    discretized_kl,
    kl_nats,
)
from jaxcomp.coding.ans import (
    cell_centres,
    checked_words,
    checksum,
    leaf_size,
    new_coder,
    pop_cells,
    push_cells,
    scalar_steps,
    stream_module,
)
from jaxcomp.coding.distributions import Gaussian, PriorTree, StepTree, matched_priors
from jaxcomp.coding.tables import MAX_INDEX, cell_table
from jaxcomp.types import AnyArray, Params

_MARK = 0x4A424202  # "JBB" and the version of the format
_NUM_HEADER = 6  # mark, two checksums, numbers of labels, steps and side bytes
_WHITENING_KEY = 0x6A617863
_NUM_GUARD_WORDS = 2

Logits: TypeAlias = Float[np.ndarray, "n C"]

LogitsFn: TypeAlias = Callable[[Params], Any]
"""`weights -> logits (n, C)` of all examples, the same bits at both ends."""


class Labels(NamedTuple):
    """Labels to send along with the weights, coded under the network that the weights make."""

    values: Int[AnyArray, "n"]
    """Classes from 0 to C - 1."""
    logits_fn: LogitsFn
    """`weights -> logits (n, C)`; the receiver has it too."""


class Message(NamedTuple):
    """A stream, and what it cost."""

    words: UInt32[np.ndarray, "words"]
    """The whole message: header, payload and everything on top of it."""
    num_initial_bits: float
    """Payload bits that drawing the weights took; the refund, once they are given back."""
    num_gross_bits: float
    """Bits pushed: weights under the prior, labels given the weights, side information."""
    num_net_bits: float
    """Gross minus refund: how much the stack has grown beyond the payload (and its end mark)."""
    num_frame_bits: int
    """Header of the message: mark, checksums, lengths, steps."""


class Decoded(NamedTuple):
    """What a receiver gets."""

    weights: Params
    """The drawn weights, NumPy arrays: multiples of the step."""
    payload: UInt32[np.ndarray, "words"]
    """Bit for bit what was given to `encode`."""
    labels: Int[np.ndarray, "n"] | None
    """int32, or None if none were sent."""


class Receiver(Protocol):
    """What a receiver knows beforehand, and how it comes to know the posterior."""

    def like(self) -> Params:
        """Return arrays (or their shapes) like the weights."""
        ...

    def prior(self, side: UInt8[np.ndarray, "bytes"]) -> PriorTree:
        """Return the prior, given the side information of the message."""
        ...

    def logits(self, weights: Params) -> Any:
        """Return logits of the labels in the message."""
        ...

    def posterior(self, labels: Int[np.ndarray, "n"] | None) -> Posterior:
        """Return exactly the posterior that the weights were drawn from."""
        ...


class KnownPosterior:
    """A receiver that was handed the posterior out of band: the shortcut, not a code.

    Its message is no description of the weights by itself, since q costs more than they do; it
    serves to measure, and to test.

    Args:
        posterior: q, the very arrays.
        prior: p.
        logits_fn: of the labels, if the message holds any.
    """

    def __init__(
        self, posterior: Posterior, prior: PriorTree, logits_fn: LogitsFn | None = None
    ) -> None:
        check_posterior(posterior)
        matched_priors(prior, posterior.mean)
        self._posterior, self._prior, self._logits_fn = posterior, prior, logits_fn

    def like(self) -> Params:
        """Return the means."""
        return self._posterior.mean

    def prior(self, side: UInt8[np.ndarray, "bytes"]) -> PriorTree:
        """Return the prior; side information is not used."""
        del side
        return self._prior

    def logits(self, weights: Params) -> Any:
        """Return logits of the labels.

        Raises:
            ValueError: if no function was given.
        """
        if self._logits_fn is None:
            raise ValueError("The message holds labels: give the receiver a logits_fn.")
        return self._logits_fn(weights)

    def posterior(self, labels: Int[np.ndarray, "n"] | None) -> Posterior:
        """Return the posterior; labels are not used."""
        del labels
        return self._posterior


def encode(
    posterior: Posterior,
    prior: PriorTree,
    payload: UInt32[np.ndarray, "words"],
    *,
    step: StepTree,
    labels: Labels | None = None,
    side: bytes = b"",
) -> Message:
    """Send weights drawn from a posterior, on top of a payload that the receiver gets back.

    Args:
        posterior: q over the weights.
        prior: p, one for all leaves or one per leaf.
        payload: uint32 words, whatever is to be sent anyway. `payload_bits` says how many are
            enough.
        step: of the cells; one for all leaves or one per leaf. Any that is not far above the
            posterior's scales will do: gross and refund both grow by a bit per weight and
            halving, net does not.
        labels: to be sent as well, given the weights.
        side: bytes that the receiver gets first, to choose the prior by; 8 bits each.

    Returns:
        The message and its costs.

    Raises:
        ImportError: without `constriction` (install `jaxcomp[coding]`).
        TypeError: if posterior or prior is none, or labels are not integers.
        ValueError: if the payload is too short for the draw (nothing is consumed; the message
            says how many bits are needed), if a step is not positive or is too fine for the
            weights, or if shapes do not fit.
    """
    check_posterior(posterior)
    priors, steps = matched_priors(prior, posterior.mean), scalar_steps(step, posterior.mean)
    payload = checked_words(payload)
    mean, scale = _in_steps(posterior, steps)

    stack = _guarded_stack(payload)
    index = draw(stack, mean, scale)
    if stack.pos()[0] < _NUM_GUARD_WORDS:
        raise ValueError(_too_short(posterior, steps, len(mean), payload))
    stack = new_coder(stack.get_compressed()[_NUM_GUARD_WORDS:])
    # The stack began with the payload and a mark of 1 bit above it.
    num_at_start = 32 * len(payload) + 1
    num_after_draw = stack.num_valid_bits()

    cells = _by_leaf(index, posterior.mean)
    num_labels = 0
    if labels is not None:
        num_labels = _push_labels(stack, labels, _weights(cells, steps, posterior.mean))
    for own_cells, own, own_step in reversed(list(zip(cells, priors, steps, strict=True))):
        if len(own_cells):
            push_cells(stack, own_cells, cell_table(own, own_step))
    side_bytes = np.frombuffer(side, np.uint8)
    if len(side_bytes):
        stack.encode_reverse(side_bytes.astype(np.int32), stream_module().model.Uniform(256))
    num_at_end = stack.num_valid_bits()

    # One step for all leaves is written once.
    written = steps[:1] if len(set(steps)) == 1 else steps
    body = np.concatenate(
        [
            [checksum(payload), num_labels, len(written), len(side_bytes)],
            np.asarray(written, "<f8").view("<u4"),
            stack.get_compressed(),
        ]
    ).astype(np.uint32)
    header = np.asarray([_MARK, checksum(body)], np.uint32)
    return Message(
        words=np.concatenate([header, body]),
        num_initial_bits=float(num_at_start - num_after_draw),
        num_gross_bits=float(num_at_end - num_after_draw),
        num_net_bits=float(num_at_end - num_at_start),
        num_frame_bits=32 * (_NUM_HEADER + 2 * len(written)),
    )


def decode(message: Message | UInt32[np.ndarray, "words"], receiver: Receiver) -> Decoded:
    """Read weights, labels and payload from a message.

    Args:
        message: from `encode`, or its words alone.
        receiver: what is known beforehand: `KnownPosterior`, `Relearner`, or one of your own.

    Returns:
        Weights and labels as they were sent, and the payload.

    Raises:
        ImportError: without `constriction`.
        ValueError: if the message is not one of this format, was cut or altered, or the
            receiver's prior or posterior is not the one it was sent with.
    """
    words = checked_words(message.words if isinstance(message, Message) else message)
    if len(words) < 2 or words[0] != _MARK:
        raise ValueError("words must be a message of jaxcomp.bits_back.encode, got another stream.")
    if checksum(words[2:]) != words[1]:
        raise ValueError("The message was cut or altered: its checksum does not match.")
    payload_checksum, num_labels, num_written, num_side = words[2:_NUM_HEADER].tolist()
    end = _NUM_HEADER + 2 * num_written
    steps = words[_NUM_HEADER:end].astype("<u4").view("<f8").tolist()
    like = receiver.like()
    leaves = jax.tree.leaves(like)
    if num_written not in (1, len(leaves)):
        raise ValueError(
            f"The message holds {num_written} leaves, the receiver expects {len(leaves)}."
        )
    steps = steps * len(leaves) if num_written == 1 else steps

    stack = new_coder(words[end:])
    side = np.zeros(0, np.int32)
    if num_side:
        side = stack.decode(stream_module().model.Uniform(256), num_side)
    priors = matched_priors(receiver.prior(side.astype(np.uint8)), like)
    cells = [
        pop_cells(stack, leaf_size(leaf), cell_table(own, own_step))
        for leaf, own, own_step in zip(leaves, priors, steps, strict=True)
    ]
    weights = _weights(cells, steps, like)
    labels = None
    if num_labels:
        labels = _pop_labels(stack, receiver.logits(weights), num_labels)
    posterior = receiver.posterior(labels)
    check_posterior(posterior)
    mean, scale = _in_steps(posterior, steps)
    try:
        put_back(stack, mean, scale, np.concatenate([np.zeros(0, np.int32), *cells]))
        payload = _whiten(stack.get_compressed(unseal=True))
    except (ValueError, AssertionError):
        payload = None
    if payload is None or checksum(payload) != payload_checksum:
        raise ValueError(
            "The payload does not come back: prior, posterior or labels of the receiver are not "
            "those of the sender."
        )
    return Decoded(weights, payload, labels)


def payload_bits(posterior: Posterior, *, step: StepTree) -> int:
    """Return how many payload bits are enough to draw the weights: mean plus 8 deviations.

    Args:
        posterior: q.
        step: of the cells.

    Returns:
        Bits; divide by 32 and round up for words.
    """
    divergence = discretized_kl(posterior, Gaussian(1.0), step=step)
    return int(np.ceil(divergence.entropy_bits + 8 * divergence.entropy_deviation_bits)) + 64


class StepReport(NamedTuple):
    """One draw at each of several steps; arrays over the steps."""

    step: Float[np.ndarray, "steps"]
    """Of the cells."""
    gross_bits: Float[np.ndarray, "steps"]
    """Weights under the prior."""
    refund_bits: Float[np.ndarray, "steps"]
    """What the receiver gets back: as many as the draw took at first, its initial bits."""
    net_bits: Float[np.ndarray, "steps"]
    """Gross minus refund, of the real stacks."""
    initial_bits: Float[np.ndarray, "steps"]
    """Payload bits that must be there before anything is sent: without them they are paid."""
    discretized_kl_nats: Float[np.ndarray, "steps"]
    """Mean of the net over payloads, of the prior's exact masses. The coder gives every cell at
    least 2^-24, so where the prior expects the weights less than that, its net is shorter."""
    kl_nats: Float[np.ndarray, "steps"]
    """`KL(q || p)` of the densities, the same for all steps; NaN if a prior is not Gaussian."""


def report(
    posterior: Posterior,
    prior: PriorTree,
    payload: UInt32[np.ndarray, "words"],
    *,
    steps: Sequence[float],
) -> StepReport:
    """Send the weights once with each step, and lay the costs side by side.

    Args:
        posterior: q.
        prior: p.
        payload: enough for the finest step.
        steps: of the cells, the same for all leaves.

    Returns:
        The costs.

    Raises:
        ValueError: as `encode`.
    """
    messages = [encode(posterior, prior, payload, step=step) for step in steps]
    cells: list[CellDivergence] = [discretized_kl(posterior, prior, step=step) for step in steps]
    is_gaussian = all(isinstance(own, Gaussian) for own in matched_priors(prior, posterior.mean))
    density = float(kl_nats(posterior, prior)) if is_gaussian else float("nan")
    initial = np.array([message.num_initial_bits for message in messages])
    return StepReport(
        step=np.asarray(steps, np.float64),
        gross_bits=np.array([message.num_gross_bits for message in messages]),
        refund_bits=initial,
        net_bits=np.array([message.num_net_bits for message in messages]),
        initial_bits=initial,
        discretized_kl_nats=np.array([cell.kl_nats for cell in cells]),
        kl_nats=np.full(len(messages), density),
    )


def _guarded_stack(payload: UInt32[np.ndarray, "words"]) -> Any:
    """Return a stack with the payload on top of a guard."""
    # A payload that is too short lets the draw reach the guard, and then nothing: either way the
    # guard is no longer whole.
    content = np.concatenate([np.ones(_NUM_GUARD_WORDS, np.uint32), _whiten(payload)])
    return new_coder(content, seal=True)


def _whiten(words: UInt32[np.ndarray, "words"]) -> UInt32[np.ndarray, "words"]:
    """Flip the bits that a fixed random stream says (raw bits, the same in every version)."""
    return words ^ _random_words(_WHITENING_KEY, len(words))


def _random_words(key: int, num_words: int) -> UInt32[np.ndarray, "words"]:
    raw = np.random.Philox(key).random_raw(-(-num_words // 2))
    return raw.astype("<u8").view("<u4")[:num_words].astype(np.uint32)


def _in_steps(
    posterior: Posterior, steps: Sequence[float]
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Return means and scales of all leaves in units of their steps, float64."""
    means, scales = [np.zeros(0)], [np.zeros(0)]
    for *leaves, step in zip(*map(jax.tree.leaves, posterior), steps, strict=True):
        mean, scale = (np.asarray(leaf, np.float64).ravel() for leaf in leaves)
        with np.errstate(over="ignore"):
            means.append(mean / step)
            scales.append(scale / step)
        if not is_representable(means[-1], scales[-1]):
            finest = (np.abs(mean).max() + 8 * scale.max()) / MAX_INDEX
            raise ValueError(
                f"step must be at least the largest |mean| + 8 scale / 2^23, here {finest:.3g}, "
                f"got {step:g}."
            )
    return np.concatenate(means), np.concatenate(scales)


def _by_leaf(index: Int[np.ndarray, "N"], like: Params) -> list[np.ndarray]:
    ends = np.cumsum([leaf_size(leaf) for leaf in jax.tree.leaves(like)], dtype=int)
    return np.split(index, ends)[:-1]


def _weights(cells: Sequence[np.ndarray], steps: Sequence[float], like: Params) -> Params:
    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(
        structure,
        [
            cell_centres(own, step, leaf)
            for own, step, leaf in zip(cells, steps, leaves, strict=True)
        ],
    )


def _push_labels(stack: Any, labels: Labels, weights: Params) -> int:
    values = np.asarray(labels.values)
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"labels must be integers, got {values.dtype}.")
    probabilities = _probabilities(labels.logits_fn(weights))
    num_labels, num_classes = probabilities.shape
    if values.shape != (num_labels,) or num_labels == 0:
        raise ValueError(
            f"labels must be one for each row of the logits, got shape {values.shape} for "
            f"{probabilities.shape}."
        )
    if values.min() < 0 or values.max() >= num_classes:
        raise ValueError(
            f"labels must lie between 0 and {num_classes - 1}, got {values.min()} to "
            f"{values.max()}."
        )
    model = stream_module().model.Categorical(perfect=False)
    stack.encode_reverse(values.astype(np.int32), model, probabilities)
    return num_labels


def _pop_labels(stack: Any, logits: Any, num_labels: int) -> Int[np.ndarray, "n"]:
    probabilities = _probabilities(logits)
    if len(probabilities) != num_labels:
        raise ValueError(
            f"The message holds {num_labels} labels, the receiver's logits have "
            f"{len(probabilities)} rows."
        )
    return stack.decode(stream_module().model.Categorical(perfect=False), probabilities)


def _probabilities(logits: Any) -> Float[np.ndarray, "n C"]:
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or logits.shape[1] < 2 or not np.all(np.isfinite(logits)):
        raise ValueError(
            f"logits must be finite, of shape (labels, classes >= 2), got {logits.shape}."
        )
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def _too_short(
    posterior: Posterior, steps: Sequence[float], num_weights: int, payload: np.ndarray
) -> str:
    structure = jax.tree.structure(posterior.mean)
    needed = payload_bits(posterior, step=jax.tree.unflatten(structure, list(steps)))
    return (
        f"payload must hold about {needed} bits to draw these {num_weights} weights, got "
        f"{32 * len(payload)}: give {-(-needed // 32)} words or more, or a wider step."
    )
