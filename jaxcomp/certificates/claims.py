"""The rows of a table of certificates as functions of delta: what they state, and their bounds.

The bounds broadcast over their arguments. Errors are whole numbers out of n examples.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcomp import bounds
from jaxcomp.bounds.arguments import Number
from jaxcomp.certificates.report import Row

LARGE_PART, SMALL_PART = 0.9, 0.1
"""How delta is split in two: the large part to what rests on fewer examples, or draws."""


class Claim(NamedTuple):
    """A certificate at any delta; see `Row` for what is not said here.

    Attributes:
        bound_at: delta -> the bound.
        parts: the share of delta of each part.
    """

    name: str
    certifies: str
    statement: str
    num_examples: int
    size_bits: float
    size_bytes: int | None
    error: float
    bound_at: Callable[[float], Float[Array, ""]]
    parts: Mapping[str, float]

    def row(self, delta: float, num_rows: int) -> Row:
        """Return the row at a delta, and where it is one of so many that are to hold at once."""
        return Row(
            name=self.name,
            certifies=self.certifies,
            statement=self.statement,
            num_examples=self.num_examples,
            size_bits=self.size_bits,
            size_bytes=self.size_bytes,
            error=self.error,
            bound=float(self.bound_at(delta)),
            bound_together=float(self.bound_at(delta / num_rows)),
            deltas={name: share * delta for name, share in self.parts.items()},
        )


def file_bound(
    num_errors: Number, num_examples: Number, size_bits: Number, delta: Number
) -> Float[Array, "*shape"]:
    """Bound the error of the network that so many bits describe; with 0 bits, by held-out labels.

    Args:
        num_errors: of the examples.
        num_examples: n.
        size_bits: all that the decoder needs, self-delimiting.
        delta: in (0, 1). All broadcast.

    Returns:
        The bound by the exact binomial tail; see `jaxcomp.bounds.occam`.
    """
    return bounds.occam(
        num_errors / num_examples, size_bits, num_examples=num_examples, delta=delta
    )


def bound_through_file(
    num_errors: Number,
    num_examples: Number,
    size_bits: Number,
    num_disagreements: Number,
    num_unlabelled: Number,
    delta: Number,
) -> Float[Array, "*shape"]:
    """Bound the error of another network by that of a file and by how often the two disagree.

    `err(f) <= err(file) + P(f and the file disagree)`, each bounded: the first at `SMALL_PART` of
    delta, the second, which rests on fewer examples, at `LARGE_PART`.

    Args:
        num_errors: of the file.
        num_examples: n.
        size_bits: of the file.
        num_disagreements: of the two networks on the unlabelled inputs.
        num_unlabelled: m.
        delta: in (0, 1). All broadcast.

    Returns:
        The bound, at most 1.

    Source: "bound to disagree", UAI 2026.
    """
    of_file = file_bound(num_errors, num_examples, size_bits, SMALL_PART * delta)
    apart = file_bound(num_disagreements, num_unlabelled, 0.0, LARGE_PART * delta)
    # One number more for the rounding of the sum.
    return jnp.minimum(jnp.nextafter(of_file + apart, jnp.inf), 1)


def bound_of_draws(
    error: Number,
    complexity_nats: Number,
    num_examples: Number,
    num_draws: Number,
    delta: Number,
) -> Float[Array, "*shape"]:
    """Bound the error of a random network of which so many draws were evaluated.

    Args:
        error: mean of the draws.
        complexity_nats: KL(posterior || prior), and what choosing the prior cost.
        num_examples: n.
        num_draws: m; their mean is bounded at `LARGE_PART` of delta, the rest at `SMALL_PART`.
        delta: in (0, 1). All broadcast.

    Returns:
        The bound of `jaxcomp.bounds.pac_bayes_kl`.
    """
    return bounds.pac_bayes_kl(
        error,
        complexity_nats,
        num_examples=num_examples,
        delta=SMALL_PART * delta,
        num_draws=num_draws,
        delta_draws=LARGE_PART * delta,
    )


def file_claim(
    name: str,
    certifies: str,
    statement: str,
    *,
    num_errors: int,
    num_examples: int,
    size_bits: float = 0.0,
    size_bytes: int = 0,
) -> Claim:
    """Return the claim of `file_bound`; with 0 bits, that of held-out labels."""
    return Claim(
        name,
        certifies,
        statement,
        num_examples,
        size_bits,
        size_bytes,
        num_errors / num_examples,
        lambda delta: file_bound(num_errors, num_examples, size_bits, delta),
        {"all": 1.0},
    )


def claim_through_file(
    statement: str, of_file: Claim, *, num_disagreements: int, num_unlabelled: int
) -> Claim:
    """Return the claim of `bound_through_file`, given that of the file."""
    num_errors = round(of_file.error * of_file.num_examples)
    return Claim(
        "e: through the file",
        "the original network",
        statement,
        of_file.num_examples,
        of_file.size_bits,
        of_file.size_bytes,
        of_file.error,
        lambda delta: bound_through_file(
            num_errors,
            of_file.num_examples,
            of_file.size_bits,
            num_disagreements,
            num_unlabelled,
            delta,
        ),
        {"bound of the file": SMALL_PART, "disagreement": LARGE_PART},
    )


def posterior_claim(
    statement: str, *, error: float, complexity_nats: float, num_examples: int, num_draws: int
) -> Claim:
    """Return the claim of `bound_of_draws`."""
    return Claim(
        "b: PAC-Bayes",
        "a random network, drawn anew each time",
        statement,
        num_examples,
        complexity_nats / math.log(2),
        None,
        error,
        lambda delta: bound_of_draws(error, complexity_nats, num_examples, num_draws, delta),
        {"bound of the posterior": SMALL_PART, "draws": LARGE_PART},
    )
