"""Rounding with feedback through the Cholesky factor of a layer's inputs.

A layer with weights W has inputs x, whose second moments are S = E[x x^T]. With `S = L L^T` and
`Y = L^T W` the output error of rounded weights Q is a sum of squares,

    E |W^T x - Q^T x|^2 = |Y - L^T Q|_F^2 = sum over i of |e_i|^2,

and row i of it holds only inputs from i on. So inputs are rounded from the last one to the first:
what is wrong so far is subtracted from the target of the next input, `y_i`, and an input's error is
`e_i = y_i - L_ii q_i`, whatever is chosen. Each choice weighs its own error against the bits of its
symbol. If the layer's inputs are those of a network whose earlier layers are compressed already,
xh, then `S = E[xh xh^T]`, `C = E[xh x^T]`, `Y = L^-1 C W`, and the sum is right up to a constant.

Without the bits this is GPTQ (OBQ in a fixed order), and Babai's nearest plane.

Axes: `G` groups of a convolution (1 for a dense layer), `I` inputs, `O` outputs, `B` inputs of a
block, `J` classes of inputs, `T` symbols.

Sources: Frantar et al., arXiv:2210.17323 (blocks); Chen et al., arXiv:2507.18553 (the equality with
Babai's algorithm); WaterSIC, arXiv:2603.04956 (spacings).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int16

from jaxcomp.numerics.linear_algebra import cholesky, solve_lower
from jaxcomp.numerics.transformations import counted_loop

# Magnitudes that have a reconstruction factor of their own; the last is for all larger ones too.
NUM_FACTORS = 3
# A matrix that is not positive definite after damping is damped ten times as much, so often.
_MAX_DAMPINGS = 8


class Factor(NamedTuple):
    """The Cholesky factor of a layer's inputs.

    Attributes:
        lower: L (G, I, I), lower triangular. The row and column of an input that is always 0 are
            those of the identity.
        is_live: (G, I), which inputs are not always 0.
        damping: (), what was added to the diagonal, over its mean.
        added: (G,), the same as a number.
    """

    lower: Float[Array, "G I I"]
    is_live: Bool[Array, "G I"]
    damping: Float[Array, ""]
    added: Float[Array, " G"]

    @property
    def pivots(self) -> Float[Array, "G I"]:
        """The diagonal of L."""
        return jnp.diagonal(self.lower, axis1=-2, axis2=-1)


class Problem(NamedTuple):
    """A layer to be rounded.

    Attributes:
        factor: of its inputs.
        target: Y (G, I, O); 0 for inputs that are always 0.
        output_importance: g (G, O), what the squared error of an output counts.
    """

    factor: Factor
    target: Float[Array, "G I O"]
    output_importance: Float[Array, "G O"]

    def outputs(self, step: int) -> "Problem":
        """Return the problem of every so-manieth output."""
        return self._replace(
            target=self.target[..., ::step],
            output_importance=self.output_importance[..., ::step],
        )


class Grid(NamedTuple):
    """What codes stand for: `spacing * factors[min(|z|, 3) - 1] * z`.

    Attributes:
        spacing: a (G, I), > 0.
        factors: rho (3,), of codes of magnitude 1, 2, and 3 or more.
    """

    spacing: Float[Array, "G I"]
    factors: Float[Array, "3"]

    def values(self, codes: Int16[Array, "G I O"]) -> Float[Array, "G I O"]:
        """Return the weights that codes stand for."""
        number = codes.astype(self.spacing.dtype)
        return self.spacing[..., None] * (factors_of(jnp.abs(number), self.factors) * number)


class Rounded(NamedTuple):
    """What one pass through a layer found.

    Attributes:
        codes: z (G, I, O) int16.
        errors: (G, O), `sum over i of e_i^2` of every output.
        fitted_factors: (3,), the reconstruction factors of least squares for these codes, each
            code's target as it was; 1 where no code has such a magnitude.
    """

    codes: Int16[Array, "G I O"]
    errors: Float[Array, "G O"]
    fitted_factors: Float[Array, "3"]


@jax.jit
def factor_inputs(
    second_moments: Float[Array, "G I I"], damping: Float[Array, ""] | float
) -> Factor:
    """Damp and decompose the second moments of a layer's inputs.

    Args:
        second_moments: S (G, I, I), symmetric, positive semi-definite.
        damping: what is added to the diagonal, over its mean over inputs that are not always 0.
            Where rounding leaves the sum indefinite, it is ten times as much, or a hundred, ...

    Returns:
        The factor; NaN where no damping helps.
    """
    diagonal = jnp.diagonal(second_moments, axis1=-2, axis2=-1)
    is_live = diagonal > 0
    num_live = jnp.maximum(jnp.sum(is_live, axis=-1), 1).astype(diagonal.dtype)
    mean = jnp.sum(diagonal, axis=-1) / num_live
    is_pair = is_live[..., :, None] & is_live[..., None, :]
    # Not as a constant, of which a program keeps several copies.
    place = jnp.arange(diagonal.shape[-1])
    is_diagonal = (place[:, None] == place[None, :])[None]

    def is_bad(state: tuple[Array, Array, Array]) -> Array:
        lower, _, number = state
        return ~jnp.all(jnp.isfinite(lower)) & (number < _MAX_DAMPINGS)

    def decompose(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, damping, number = state
        more = jnp.maximum(10 * damping, jnp.finfo(damping.dtype).eps)
        damping = jnp.where(number == 0, damping, more)
        added = jnp.where(is_live, damping * mean[:, None], 1)
        kept = jnp.where(is_pair, second_moments, 0)
        kept = kept + jnp.where(is_diagonal, added[:, None, :], 0)
        return cholesky(kept), damping, number + 1

    unknown = jnp.full_like(second_moments, jnp.nan)
    start = unknown, jnp.asarray(damping, diagonal.dtype), jnp.int32(0)
    lower, damping, _ = lax.while_loop(is_bad, decompose, start)
    return Factor(lower, is_live, damping, damping * mean)


def problem_of(
    weights: Float[Array, "G I O"],
    factor: Factor,
    cross_moments: Float[Array, "G I I"] | None,
    output_importance: Float[Array, "G O"],
) -> Problem:
    """Bring a layer into the form that `round_with_feedback` takes.

    Args:
        weights: W (G, I, O).
        factor: of the inputs xh, from `factor_inputs`.
        cross_moments: C = E[xh x^T] (G, I, I), the rows those of xh; None if xh = x.
        output_importance: g (G, O).

    Returns:
        The problem, in the dtype of the weights.
    """
    return Problem(factor, _target_of(weights, factor, cross_moments), output_importance)


@jax.jit
def _target_of(
    weights: Float[Array, "G I O"], factor: Factor, cross_moments: Float[Array, "G I I"] | None
) -> Float[Array, "G I O"]:
    is_live = factor.is_live[..., None]
    if cross_moments is None:
        # Rows and columns of L keep the weights of inputs that are always 0 apart.
        target = jnp.einsum("gki,gko->gio", factor.lower, weights, precision="highest")
        return jnp.where(is_live, target, 0)
    product = jnp.einsum("gij,gjo->gio", cross_moments, weights, precision="highest")
    # Damped like S, so that without drift the target is the same.
    product = product + factor.added[:, None, None] * weights
    return solve_lower(factor.lower, jnp.where(is_live, product, 0))


@partial(jax.jit, static_argnames=("block_size",))
def round_with_feedback(
    problem: Problem,
    grid: Grid,
    classes: Int[Array, "G I"],
    prices: Float[Array, "J T"],
    *,
    block_size: int,
) -> Rounded:
    """Round the weights of a layer, one pass from the last input to the first.

    Of floor, ceiling and 0 each weight takes the code z of least
    `g (y - L_ii a rho(|z|) z)^2 + price(z)`, the first of equal ones in the order 0, floor,
    ceiling. Codes lie within +-(T - 1)/2: a weight beyond has the last two to choose from, and the
    inputs after it make up for it.

    Args:
        problem: the layer.
        grid: what codes stand for.
        classes: (G, I), from 0 to J - 1: whose prices an input pays.
        prices: (J, T), T odd: of code z at place z + (T - 1)/2, in the units of the error.
        block_size: inputs between two updates of all that are left, static: only speed depends on
            it.

    Returns:
        Codes, errors and factors for the next pass.
    """
    num_groups, num_inputs, num_outputs = problem.target.shape
    extra = -num_inputs % block_size
    # Inputs that fill up a last block are always 0.
    lower, target, unit, rows = problem.factor.lower, problem.target, grid.spacing, classes
    if extra:
        lower = jnp.pad(lower, [(0, 0), (0, extra), (0, extra)])
        target = jnp.pad(target, [(0, 0), (0, extra), (0, 0)])
        unit = jnp.pad(unit, [(0, 0), (0, extra)], constant_values=1)
        rows = jnp.pad(rows, [(0, 0), (0, extra)])
    # In the metric of the error; 1 for what fills up.
    pivots = jnp.pad(problem.factor.pivots, [(0, 0), (0, extra)], constant_values=1)
    num_blocks = (num_inputs + extra) // block_size

    def step(number: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        values, codes, errors, *sums = state
        start = (num_blocks - 1 - number) * block_size

        def of_block(array: Array, axis: int = 1) -> Array:
            return lax.dynamic_slice_in_dim(array, start, block_size, axis=axis)

        columns = of_block(lower, 2)
        # Of the inputs that are not rounded yet the values are 0.
        known = jnp.einsum("gib,gio->gbo", columns, values, precision="highest")
        block = _Block(
            of_block(columns), of_block(target) - known, of_block(pivots), of_block(unit)
        )
        some, new = _round_block(
            block, of_block(rows), prices, grid.factors, problem.output_importance
        )
        values = lax.dynamic_update_slice_in_dim(values, new, start, axis=1)
        codes = lax.dynamic_update_slice_in_dim(codes, some, start, axis=1)
        more = _sums_of_block(block, some, new, problem.output_importance)
        return values, codes, *(a + b for a, b in zip((errors, *sums), more, strict=True))

    none = jnp.zeros((num_groups, num_outputs), target.dtype)
    per_factor = jnp.zeros((NUM_FACTORS, num_groups, num_outputs), target.dtype)
    _, codes, errors, products, squares = counted_loop(
        0,
        num_blocks,
        step,
        (jnp.zeros_like(target), jnp.zeros(target.shape, jnp.int16), none, per_factor, per_factor),
    )
    products, squares = (jnp.sum(part, axis=(1, 2)) for part in (products, squares))
    fitted = jnp.where(squares > 0, products / jnp.where(squares > 0, squares, 1), 1)
    return Rounded(codes[:, :num_inputs], errors, fitted)


class _Block(NamedTuple):
    """Inputs of a block: their part of L, targets less all that is behind the block, and scales."""

    lower: Float[Array, "G B B"]
    target: Float[Array, "G B O"]
    pivots: Float[Array, "G B"]
    spacing: Float[Array, "G B"]

    def remaining(self, values: Float[Array, "G B O"]) -> Float[Array, "G B O"]:
        """Return the errors that rounded values of the block leave."""
        explained = jnp.einsum("gki,gko->gio", self.lower, values, precision="highest")
        return self.target - explained


def _round_block(
    block: _Block,
    classes: Int[Array, "G B"],
    prices: Float[Array, "J T"],
    factors: Float[Array, "3"],
    output_importance: Float[Array, "G O"],
) -> tuple[Int16[Array, "G B O"], Float[Array, "G B O"]]:
    """Round the inputs of a block, from the last to the first."""
    size = block.target.shape[1]

    def step(number: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        codes, values = state
        row = size - 1 - number

        def of_row(array: Array, axis: int = 1) -> Array:
            return lax.dynamic_index_in_dim(array, row, axis, keepdims=False)

        known = jnp.einsum("gk,gko->go", of_row(block.lower, 2), values, precision="highest")
        spacing = of_row(block.spacing)[:, None]
        code, relative = _cheapest(
            of_row(block.target) - known,
            of_row(block.pivots)[:, None] * spacing,
            prices[of_row(classes)],
            factors,
            output_importance,
        )
        codes = lax.dynamic_update_index_in_dim(codes, code.astype(jnp.int16), row, 1)
        return codes, lax.dynamic_update_index_in_dim(values, spacing * relative, row, 1)

    start = jnp.zeros(block.target.shape, jnp.int16), jnp.zeros_like(block.target)
    return counted_loop(0, size, step, start)


def _cheapest(
    target: Float[Array, "G O"],
    unit: Float[Array, "G 1"],
    prices: Float[Array, "G T"],
    factors: Float[Array, "3"],
    output_importance: Float[Array, "G O"],
) -> tuple[Float[Array, "G O"], Float[Array, "G O"]]:
    """Return the cheapest codes of one input, and the values they stand for over the spacing."""
    most = (prices.shape[-1] - 1) // 2
    low = jnp.clip(jnp.floor(target / unit), -most, most - 1)
    code, relative = jnp.zeros_like(target), jnp.zeros_like(target)
    cost = output_importance * (target * target) + prices[:, most][:, None]
    for candidate in (low, low + 1):
        value = factors_of(jnp.abs(candidate), factors) * candidate
        error = target - unit * value
        place = candidate.astype(jnp.int32) + most
        price = jnp.take_along_axis(prices, place, axis=1, mode="promise_in_bounds")
        new = output_importance * (error * error) + price
        is_better = new < cost
        code = jnp.where(is_better, candidate, code)
        relative = jnp.where(is_better, value, relative)
        cost = jnp.where(is_better, new, cost)
    return code, relative


def factors_of(magnitudes: Float[Array, "..."], factors: Float[Array, "3"]) -> Float[Array, "..."]:
    """Return the reconstruction factors of codes of such magnitudes."""
    first, second, others = factors[0], factors[1], factors[2]
    return jnp.where(magnitudes < 1.5, first, jnp.where(magnitudes < 2.5, second, others))


def _sums_of_block(
    block: _Block,
    codes: Int16[Array, "G B O"],
    values: Float[Array, "G B O"],
    output_importance: Float[Array, "G O"],
) -> tuple[Float[Array, "G O"], Float[Array, "3 G O"], Float[Array, "3 G O"]]:
    """Return squared errors, and for each factor the sums whose quotient is its least squares."""
    errors = block.remaining(values)
    # What each input was rounded from, and to without a factor.
    rounded = block.pivots[..., None] * values
    targets = errors + rounded
    plain = (block.pivots * block.spacing)[..., None] * codes.astype(values.dtype)
    magnitudes = jnp.minimum(jnp.abs(codes.astype(jnp.int32)), NUM_FACTORS)
    products, squares = [], []
    for magnitude in range(1, NUM_FACTORS + 1):
        own = jnp.where(magnitudes == magnitude, plain, 0)
        products.append(output_importance * jnp.sum(own * targets, axis=1))
        squares.append(output_importance * jnp.sum(own * own, axis=1))
    return jnp.sum(errors * errors, axis=1), jnp.stack(products), jnp.stack(squares)
