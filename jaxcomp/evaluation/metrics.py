"""How good predictions are: loss, accuracy, Brier score and calibration error from logits.

Axes: `n` examples, `c` classes, any number of leading axes (models, variants). Losses are in nats,
everything else is a pure number. Labels may be shared, `(n,)`, or carry leading axes of their own
(each model has its own training sample), as long as they broadcast to `(..., n)`.

A label outside `[0, c)` cannot raise inside `jit`: it makes its example's loss and Brier score NaN
and counts as a wrong answer, so that the mean shows it instead of hiding it. Logits that are NaN or
+infinity do the same, and examples of which every class is at -infinity. A single class at
-infinity is one that the model rules out: it has probability 0, and the loss is infinite where it
is the label's. Half-precision logits are evaluated in float32.

Sources: Brier (1950), doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2; Guo, Pleiss, Sun and
Weinberger, "On calibration of modern neural networks", ICML 2017, arXiv:1706.04599, equation 3.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.numerics.checks import check_count

Logits = Float[Array, "*leading n c"]
Labels = Int[Array, "*#leading n"]


class Scores(NamedTuple):
    """Means over examples, one per leading axis of the logits."""

    loss: Float[Array, "*leading"]
    """Cross-entropy in nats."""
    accuracy: Float[Array, "*leading"]
    """Share of examples whose highest logit is the label's, in [0, 1]."""
    brier_score: Float[Array, "*leading"]
    """Squared distance of the probabilities from the label, summed over classes, in [0, 2]."""
    calibration_error: Float[Array, "*leading"]
    """Expected calibration error with 15 bins, in [0, 1]."""


@jax.jit
def margins(logits: Logits, labels: Labels) -> Float[Array, "*leading n c"]:
    """Return each class's logit minus the label's: 0 at the label, negative where it wins.

    Every quantity here depends on the logits through these alone.

    Args:
        logits: floating, `(..., n, c)`, unnormalised log probabilities.
        labels: integers that broadcast to `(..., n)`.

    Returns:
        `(..., n, c)`, float32 (float64 for float64 logits); -infinity for a class at -infinity
        that is not the label's. An example without a distribution, or whose label is out of range,
        has only NaN.

    Raises:
        TypeError: while tracing, if logits are not floating or labels not integers.
        ValueError: while tracing, if the shapes do not fit.
    """
    logits, labels = _checked(logits, labels)
    # A comparison with every class instead of a gather: it fuses with what follows.
    is_label = _is_label(logits, labels)
    picked = jnp.sum(jnp.where(is_label, logits, 0), axis=-1, keepdims=True)
    is_out = jnp.isneginf(logits)
    gaps = jnp.where(is_out, -jnp.inf, logits - picked)
    is_known = jnp.any(is_label, axis=-1, keepdims=True) & _has_distribution(logits)[..., None]
    return jnp.where(is_known, jnp.where(is_label, 0, gaps), jnp.nan)


@jax.jit
def cross_entropy(logits: Logits, labels: Labels) -> Float[Array, "*leading n"]:
    """Return the loss of each example, `-log softmax(logits)[label]`, in nats.

    Args:
        logits: floating, `(..., n, c)`, unnormalised log probabilities.
        labels: integers that broadcast to `(..., n)`.

    Returns:
        `(..., n)`, float32 (float64 for float64 logits), at least zero.

    Raises:
        TypeError: while tracing, if logits are not floating or labels not integers.
        ValueError: while tracing, if the shapes do not fit.
    """
    gaps = margins(logits, labels)
    largest = jnp.maximum(jnp.max(gaps, axis=-1), 0)
    is_infinite = jnp.isposinf(largest)
    largest = jnp.where(is_infinite, 0, largest)
    # Of an infinite loss nothing else is computed, so that its derivative is 0 and not NaN.
    shifted = jnp.exp(jnp.where(is_infinite[..., None], -jnp.inf, gaps) - largest[..., None])
    # The label's own term, exp(-largest), is kept apart: where the label wins (largest = 0) the
    # loss is log1p(small) to full precision, not the logarithm of a number next to one.
    others = jnp.sum(jnp.where(_is_label(*_checked(logits, labels)), 0, shifted), axis=-1)
    loss = largest + jnp.log1p(others + jnp.expm1(-largest))
    return jnp.where(is_infinite, jnp.inf, loss)


@jax.jit
def brier_score(logits: Logits, labels: Labels) -> Float[Array, "*leading n"]:
    """Return the Brier score of each example, `sum_c (p_c - [c = label])^2`, in [0, 2].

    This is Brier's own definition, summed over classes; for two classes it is twice the
    one-sided score that is also in use.

    Args:
        logits: floating, `(..., n, c)`.
        labels: integers that broadcast to `(..., n)`.

    Returns:
        `(..., n)`, float32 (float64 for float64 logits).

    Raises:
        TypeError: while tracing, if logits are not floating or labels not integers.
        ValueError: while tracing, if the shapes do not fit.
    """
    logits, labels = _checked(logits, labels)
    is_label = _is_label(logits, labels)
    residual = _probabilities(logits) - is_label.astype(logits.dtype)
    score = jnp.sum(jnp.square(residual), axis=-1)
    return jnp.where(jnp.any(is_label, axis=-1), score, jnp.nan)


@jax.jit
def correct(logits: Logits, labels: Labels) -> Bool[Array, "*leading n"]:
    """Say for each example whether the highest logit is the label's (ties: the lowest class).

    Args:
        logits: floating, `(..., n, c)`.
        labels: integers that broadcast to `(..., n)`.

    Returns:
        `(..., n)` bool.

    Raises:
        TypeError: while tracing, if logits are not floating or labels not integers.
        ValueError: while tracing, if the shapes do not fit.
    """
    logits, labels = _checked(logits, labels)
    is_right = jnp.argmax(logits, axis=-1).astype(jnp.int32) == labels
    # argmax takes a NaN for the highest logit.
    return is_right & _has_distribution(logits)


@partial(jax.jit, static_argnames="num_bins")
def expected_calibration_error(
    logits: Logits, labels: Labels, *, num_bins: int = 15
) -> Float[Array, "*leading"]:
    """Return the expected calibration error of the top class (Guo et al. 2017, equation 3).

    The confidence (highest probability) is cut into equal bins `((b-1)/B, b/B]`; the error is
    `sum_b (n_b/n) |accuracy_b - confidence_b|`. It is biased upwards by about
    `sqrt(B/n)` times the spread of one outcome: compare it at equal n only.

    Args:
        logits: floating, `(..., n, c)`, n >= 1.
        labels: integers that broadcast to `(..., n)`.
        num_bins: B >= 1. Static.

    Returns:
        One number in [0, 1] per leading axis; NaN if an example has no distribution.

    Raises:
        TypeError: while tracing, if logits are not floating or labels not integers.
        ValueError: while tracing, if the shapes do not fit or `num_bins < 1`.
    """
    check_count("num_bins", num_bins)
    is_right = correct(logits, labels)
    logits, _ = _checked(logits, labels)
    confidence = jnp.max(_probabilities(logits), axis=-1)
    bins = jnp.clip(jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)
    gap = is_right.astype(confidence.dtype) - confidence
    bin_index = jnp.arange(num_bins, dtype=jnp.int32).reshape((1,) * (bins.ndim - 1) + (-1, 1))
    in_bin = jnp.expand_dims(bins, -2) == bin_index
    # n_b cancels: (n_b/n) |mean gap| = |sum of gaps| / n, which needs no guard for empty bins.
    sums = jnp.sum(jnp.where(in_bin, jnp.expand_dims(gap, -2), 0), axis=-1)
    return jnp.sum(jnp.abs(sums), axis=-1) / logits.shape[-2]


@jax.jit
def scores(logits: Logits, labels: Labels) -> Scores:
    """Return loss, accuracy, Brier score and calibration error, each a mean over examples.

    Args:
        logits: floating, `(..., n, c)`, n >= 1.
        labels: integers that broadcast to `(..., n)`.

    Returns:
        `Scores` with fields shaped like the leading axes.

    Raises:
        TypeError: while tracing, if logits are not floating or labels not integers.
        ValueError: while tracing, if the shapes do not fit.
    """
    loss = cross_entropy(logits, labels)
    return Scores(
        loss=jnp.mean(loss, axis=-1),
        accuracy=jnp.mean(correct(logits, labels).astype(loss.dtype), axis=-1),
        brier_score=jnp.mean(brier_score(logits, labels), axis=-1),
        calibration_error=expected_calibration_error(logits, labels),
    )


def _checked(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Refuse what cannot be scored; return logits in float32 at least, labels per example."""
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"logits must be floating, got {logits.dtype}.")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers (class indices), got {labels.dtype}.")
    if logits.ndim < 2 or 0 in logits.shape[-2:]:
        raise ValueError(
            "logits must have shape (..., examples, classes) with at least one of each, "
            f"got {logits.shape}."
        )
    per_example = logits.shape[:-1]
    aligned = (1,) * (len(per_example) - labels.ndim) + labels.shape
    fits = len(aligned) == len(per_example) and all(
        size in (1, wanted) for size, wanted in zip(aligned[:-1], per_example[:-1], strict=True)
    )
    if labels.ndim < 1 or not fits or aligned[-1] != per_example[-1]:
        raise ValueError(
            f"labels must broadcast to one label per example, {per_example}, got {labels.shape}."
        )
    if logits.dtype.itemsize < 4:
        logits = logits.astype(jnp.float32)
    labels = jnp.broadcast_to(labels.reshape(aligned), per_example).astype(jnp.int32)
    return logits, labels


def _has_distribution(logits: Array) -> Array:
    """Tell, by example, whether the logits are those of a distribution: `(..., n)` bool."""
    return jnp.isfinite(jnp.max(logits, axis=-1))


def _probabilities(logits: Array) -> Array:
    """Return softmax; NaN, in value and derivative, only where there is no distribution."""
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(jnp.where(jnp.isneginf(logits), -jnp.inf, logits - largest))
    found = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return jnp.where(jnp.isfinite(largest), found, jnp.nan)


def _is_label(logits: Array, labels: Array) -> Array:
    """Return (..., n, c) bool: which class is the label; no class for a label out of range."""
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return classes == labels[..., None]
