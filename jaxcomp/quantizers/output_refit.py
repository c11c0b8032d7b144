"""Biases and scales of a layer's outputs, refitted after its weights were rounded.

Output o of the layer becomes `s q^T xh + b + d` instead of `w^T x + b`: the bias changes by d,
which costs nothing where biases are stored anyway, and the weights are scaled by s. Both are linear
least squares in moments of the inputs. A refit is kept, output by output, only if other data than
it was fitted on says that it is better.

Axes: `G` groups, `I` inputs, `O` outputs.

Source: Nagel et al., arXiv:1906.04721, section 4.2 (biases).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcomp.curvature.layer_inputs import InputMoments
from jaxcomp.numerics.transformations import always_compiled


class OutputRefit(NamedTuple):
    """What is done to the outputs of a layer.

    Attributes:
        scales: s (G, O), of the rounded weights.
        bias_changes: d (G, O), added to the biases.
    """

    scales: Float[Array, "G O"]
    bias_changes: Float[Array, "G O"]


@always_compiled
def refit_outputs(
    weights: Float[Array, "G I O"],
    values: Float[Array, "G I O"],
    fitted: InputMoments,
    held_out: InputMoments,
    *,
    with_scales: bool = True,
) -> OutputRefit:
    """Refit biases and scales, as far as held-out data confirms it.

    Args:
        weights: W (G, I, O), original.
        values: Q (G, I, O), rounded.
        fitted: moments that the refit is made for.
        held_out: moments of other data. Of no change, a changed bias, and a changed bias and scale
            each output gets what has the least error there.
        with_scales: whether scales may change, static; they have to be stored.

    Returns:
        Scales and changes of biases; 1 and 0 where nothing is changed.
    """
    return _refit(weights, values, fitted, held_out, with_scales=with_scales)


@always_compiled
def error_reduction(
    weights: Float[Array, "G I O"],
    values: Float[Array, "G I O"],
    moments: InputMoments,
    refit: OutputRefit,
) -> Float[Array, "G O"]:
    """Return by how much a refit lowers the mean squared error of each output; < 0 if it does not.

    Args:
        weights: W (G, I, O), original.
        values: Q (G, I, O), rounded.
        moments: of the data that the error is a mean over.
        refit: scales and changes of biases.
    """
    return _reduction(_sums_of(weights, values, moments), refit)


class _Sums(NamedTuple):
    """Of each output (G, O): z = q^T xh is the rounded output, r = w^T x - z what it lacks."""

    square: Float[Array, "G O"]
    mean: Float[Array, "G O"]
    product: Float[Array, "G O"]
    missing: Float[Array, "G O"]


@jax.jit
def _sums_of(weights: Array, values: Array, moments: InputMoments) -> _Sums:
    def times(matrix: Array, columns: Array) -> Array:
        return jnp.einsum("gij,gjo->gio", matrix, columns, precision="highest")

    def along(vector: Array, columns: Array) -> Array:
        return jnp.einsum("gi,gio->go", vector, columns, precision="highest")

    second, mean, cross, original_mean = moments
    if cross is None:
        # Not a difference of large numbers.
        lacks = times(second, weights - values)
    else:
        lacks = times(cross, weights) - times(second, values)
    if original_mean is None:
        missing = along(mean, weights - values)
    else:
        missing = along(original_mean, weights) - along(mean, values)
    return _Sums(
        square=jnp.sum(values * times(second, values), axis=1),
        mean=along(mean, values),
        product=jnp.sum(values * lacks, axis=1),
        missing=missing,
    )


@jax.jit
def _reduction(sums: _Sums, refit: OutputRefit) -> Array:
    # E r^2 less E (r - t z - d)^2, t the change of the scale.
    t, d = refit.scales - 1, refit.bias_changes
    gain = 2 * (t * sums.product + d * sums.missing)
    return gain - (t * t * sums.square + 2 * t * d * sums.mean + d * d)


@partial(jax.jit, static_argnames=("with_scales",))
def _refit(
    weights: Array,
    values: Array,
    fitted: InputMoments,
    held_out: InputMoments,
    *,
    with_scales: bool,
) -> OutputRefit:
    sums, others = (_sums_of(weights, values, moments) for moments in (fitted, held_out))
    one, none = jnp.ones_like(sums.mean), jnp.zeros_like(sums.mean)
    candidates = [OutputRefit(one, sums.missing)]
    if with_scales:
        # The variance of z; where it has none there is no scale.
        variance = sums.square - sums.mean * sums.mean
        is_varied = variance > jnp.finfo(variance.dtype).eps * sums.square
        change = sums.product - sums.mean * sums.missing
        change = jnp.where(is_varied, change / jnp.where(is_varied, variance, 1), 0)
        candidates.append(OutputRefit(1 + change, sums.missing - change * sums.mean))
    best, most = OutputRefit(one, none), none
    for candidate in candidates:
        reduction = _reduction(others, candidate)
        is_better = reduction > most
        best = OutputRefit(
            *(jnp.where(is_better, new, old) for new, old in zip(candidate, best, strict=True))
        )
        most = jnp.where(is_better, reduction, most)
    return best
