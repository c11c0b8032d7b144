"""What the weights of a network cost: code lengths, real streams, whole descriptions.

Four codes of one network, all parameters under one prior. `implied`: the prior that the penalty
says, `N(0, 1 / (n l2))` or Laplace of scale `1 / (n l1)`, fixed before the data were seen.
`gaussian`, `laplace`, `spike`: fitted to the weights, and then charged 32 bits for each of their
parameters; the last has a point mass at zero.

A *description* is the weights, rounded to a step, and the training labels given these weights:
`bits of weights + n loss / ln 2`. A finer step costs the first and saves the second; the best of a
grid of steps and fitted codes is taken, and the choice is charged.

A *certificate* counts the bits of a file that was written and read again.

Bits. Axes: `M` networks, `T` steps, `F` fitted codes, `N` weights.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxcomp import bounds, coding
from jaxcomp.experiments.regularization.config import Variant
from jaxcomp.experiments.regularization.files import read_rounded, write_rounded
from jaxcomp.types import Params

FITTED: dict[str, type[coding.Prior]] = {
    "gaussian": coding.Gaussian,
    "laplace": coding.Laplace,
    "spike": coding.SpikeAndSlab,
}


class Codes(NamedTuple):
    """What one network costs at one step."""

    bits: dict[str, float]
    """Ideal lengths by name, parameters of a fitted prior included; NaN for a prior that the
    training does not imply."""
    size_bytes: dict[str, int | float]
    """Streams that were made and read back; the same names, NaN where there is none."""


def implied_prior(variant: Variant, num_examples: int) -> coding.Prior | None:
    """Return the prior that a penalty on a mean loss over n examples says; None without one."""
    if variant.kind == "l2":
        return coding.gaussian_from_weight_decay(variant.strength, num_examples)
    if variant.kind == "l1":
        return coding.laplace_from_l1(variant.strength, num_examples)
    return None


def fitted_prior(weights: Float[np.ndarray, "N"], name: str, step: float) -> coding.Prior:
    """Fit a prior; weights that are all zero get the narrowest that the step can tell from it."""
    family = FITTED[name]
    if np.any(weights):
        return coding.fit(weights, family, step=step)
    if family is coding.SpikeAndSlab:
        return coding.SpikeAndSlab(1 - 0.5 / len(weights), step)
    return coding.Gaussian(step) if family is coding.Gaussian else coding.Laplace(step)


def measure_codes(params: Params, variant: Variant, *, num_examples: int, step: float) -> Codes:
    """Code one network every way, really, and decode it again.

    Args:
        params: pytree of float32 arrays.
        variant: how it was trained: decides the implied prior.
        num_examples: n of the mean loss.
        step: to which weights are rounded.

    Returns:
        Lengths and sizes.

    Raises:
        RuntimeError: if a stream does not give the rounded weights back.
    """
    weights = flat(params)
    expected = np.asarray(coding.quantize(weights, step=step))
    candidates = {"implied": implied_prior(variant, num_examples)}
    candidates |= {name: fitted_prior(weights, name, step) for name in FITTED}
    bits: dict[str, float] = {}
    size_bytes: dict[str, int | float] = {}
    for name, prior in candidates.items():
        if prior is None:
            bits[name] = size_bytes[name] = math.nan
            continue
        parameters = 0 if name == "implied" else coding.parameter_bits(prior)
        bits[name] = code_bits(weights, prior, step) + parameters
        words = coding.encode(weights, prior, step=step)
        decoded = coding.decode(words, prior, like=weights)
        if not np.array_equal(decoded, expected):
            raise RuntimeError(f"the {name} stream of {variant.id} does not decode to its weights.")
        size_bytes[name] = words.nbytes + parameters // 8
    return Codes(bits, size_bytes)


def code_bits(weights: Float[np.ndarray, "N"], prior: coding.Prior, step: float) -> float:
    """Return the ideal length of all weights."""
    return float(np.sum(np.asarray(coding.code_length_bits(weights, prior, step=step), np.float64)))


def fitted_bits(
    weights: Float[np.ndarray, "N"], steps: Float[np.ndarray, "T"]
) -> Float[np.ndarray, "F T"]:
    """Return the lengths under every fitted code at every step, parameters included."""
    found = np.empty((len(FITTED), len(steps)))
    for row, name in enumerate(FITTED):
        for column, step in enumerate(steps.tolist()):
            prior = fitted_prior(weights, name, step)
            found[row, column] = code_bits(weights, prior, step) + coding.parameter_bits(prior)
    return found


class Description(NamedTuple):
    """The shortest description of training labels by way of a network."""

    bits: float
    """In all, the choice of code and step included."""
    weight_bits: float
    """Of the weights, with the choice."""
    label_bits: float
    """Of the labels, given the rounded weights."""
    step: float
    code: str
    """Name of the fitted code."""


def shortest_description(
    weight_bits: Float[np.ndarray, "F T"],
    label_bits: Float[np.ndarray, "T"],
    steps: Float[np.ndarray, "T"],
) -> Description:
    """Return the best of all codes and steps."""
    choice = math.log2(weight_bits.size)
    total = weight_bits + label_bits + choice
    total = np.where(np.isfinite(total), total, np.inf)
    row, column = np.unravel_index(int(np.argmin(total)), total.shape)
    return Description(
        float(total[row, column]),
        float(weight_bits[row, column] + choice),
        float(label_bits[column]),
        float(steps[column]),
        list(FITTED)[row],
    )


class Certificate(NamedTuple):
    """A bound on the population error of a network in a file."""

    bound: float
    """1 is vacuous."""
    size_bytes: int
    """Of the file; what says where it ends is charged beside it."""
    ideal_bytes: float
    """The length of the shortest fitted code at the same step, its parameters included."""
    step: float
    """To which its weights are rounded."""


def certificate(
    params: Params,
    train_errors: Float[np.ndarray, "T"],
    weight_bits: Float[np.ndarray, "F T"],
    *,
    num_examples: int,
    delta: float,
) -> Certificate:
    """Bound the population error by the file of the best step (`bounds.occam`).

    The bits that count are those of a file that was written and read again. The bound is for all
    files at once, so that looking for the best step and code costs nothing: both are in the file.

    Args:
        params: pytree of float32 arrays.
        train_errors: 0-1 errors, on their n distinct examples, of the networks rounded to the
            steps 1/2, 1/4, ...
        weight_bits: ideal lengths at these steps under every fitted code, to compare with.
        num_examples: n.
        delta: it holds with probability 1 - delta.

    Raises:
        RuntimeError: if the file does not give the rounded weights back.
    """

    def bound(errors: Any, sizes: Any) -> Float[np.ndarray, "..."]:
        bits = 8 * sizes + np.asarray(bounds.self_delimiting_bits(sizes))
        return np.asarray(bounds.occam(errors, bits, num_examples=num_examples, delta=delta))

    exponents = range(1, len(train_errors) + 1)
    sizes = np.asarray([len(write_rounded(params, exponent)) for exponent in exponents])
    place = int(np.argmin(bound(train_errors, sizes)))
    # The best codes take long: only where the bound is least by the quick ones.
    data = write_rounded(params, place + 1, effort="best")
    step = 2.0 ** -(place + 1)
    expected = rounded(params, step)
    if not all(
        np.array_equal(one, other)
        for one, other in zip(
            jax.tree.leaves(read_rounded(data, params)), jax.tree.leaves(expected), strict=True
        )
    ):
        raise RuntimeError("the file of a rounded network does not decode to it.")
    sizes[place] = len(data)  # and the bound of all again, by the program that there is
    return Certificate(
        float(bound(train_errors, sizes)[place]),
        len(data),
        float(np.min(weight_bits[:, place])) / 8,
        step,
    )


def rounded(params: Params, step: float) -> Params:
    """Round the weights to the step, on the host: by one program for all of them."""
    leaves, structure = jax.tree.flatten(params)
    parts = np.split(
        np.asarray(coding.quantize(flat(params), step=step)),
        np.cumsum([np.size(leaf) for leaf in leaves])[:-1],
    )
    return structure.unflatten(
        part.reshape(np.shape(leaf)) for part, leaf in zip(parts, leaves, strict=True)
    )


def flat(params: Params) -> Float[np.ndarray, "N"]:
    """All parameters as one vector."""
    return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(params)])
