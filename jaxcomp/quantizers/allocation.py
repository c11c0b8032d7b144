"""Allocation of bits between layers: equal slopes on the lower convex hulls of their curves.

Every layer has a curve: places with a rate and a distortion, of which one has to be chosen. The sum
of the distortions under a budget of bits, and the sum of the bits under a bound on the distortion,
are minimised by Lagrange multipliers: all layers go down their hulls to the same slope. Whenever
the budget is met exactly this way, nothing else is as good, hull or not. In between (one step of
one hull does not fit) what is left is spent by the best single moves that fit, and
`lower_bound` tells how far from optimal that can be: it is the optimum if one layer could be split
between two places.

On the host in float64: totals in bits exceed what float32 counts. Whether a choice fits is decided
by its own total, added afresh: running totals of layers that span many orders of magnitude have no
digits left for the small ones. Adding distortions of layers is
an approximation of the loss of the whole network; compare the sum with the measured loss.

Axes: `Q` budgets, `L` layers, `M` places on a curve.

Source: Shoham and Gersho, IEEE Trans. ASSP 36 (1988).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_Curves = Float[np.ndarray, "layers places"]


class Allocation(NamedTuple):
    """One place on the curve of every layer, for every budget.

    Attributes:
        places: (..., L) index into the curve of each layer.
        size_bits: (..., L) bits of each layer.
        distortion: (..., L) distortion of each layer, not multiplied by the weights of the layers.
        total_size_bits: (...) sum over the layers.
        total_distortion: (...) weighted sum over the layers.
        multiplier: (...) weighted distortion per bit: the slope at which the layers stopped; 0
            where everything is at its lowest distortion.
        lower_bound: (...) no choice of places that keeps to the budget is better: in distortion
            under a budget of bits, in bits under a bound on the distortion.
    """

    places: Int[np.ndarray, "... layers"]
    size_bits: Float[np.ndarray, "... layers"]
    distortion: Float[np.ndarray, "... layers"]
    total_size_bits: Float[np.ndarray, "..."]
    total_distortion: Float[np.ndarray, "..."]
    multiplier: Float[np.ndarray, "..."]
    lower_bound: Float[np.ndarray, "..."]


def lower_convex_hull(
    rate: Float[np.ndarray, "... places"], distortion: Float[np.ndarray, "... places"]
) -> Bool[np.ndarray, "... places"]:
    """Tell which places of a curve are corners of its lower convex hull.

    Of the hull only the part that falls counts, from the least rate to the least distortion: those
    are the places that some price per bit >= 0 makes the best. Of places that coincide the first
    is marked.

    Args:
        rate: (..., M), in any order and any unit. Places with a NaN or an infinite entry are
            padding.
        distortion: (..., M).

    Returns:
        (..., M) bool, at least one True for every curve with a finite place.

    Raises:
        ValueError: if the shapes differ or there are no places.
    """
    rate, distortion = np.asarray(rate, np.float64), np.asarray(distortion, np.float64)
    if rate.shape != distortion.shape or rate.ndim == 0 or rate.shape[-1] == 0:
        raise ValueError(
            f"rate and distortion must have one shape (..., M) with M >= 1, got {rate.shape} and "
            f"{distortion.shape}."
        )
    is_place = np.isfinite(rate) & np.isfinite(distortion)
    rate, distortion = np.where(is_place, rate, 0), np.where(is_place, distortion, 0)
    order = np.arange(rate.shape[-1])
    rate_i, rate_j = rate[..., :, None], rate[..., None, :]
    distortion_i, distortion_j = distortion[..., :, None], distortion[..., None, :]
    pair = is_place[..., :, None] & is_place[..., None, :]
    # Place j goes if some i costs no more in both respects (of equals the first stays).
    is_equal = (rate_i == rate_j) & (distortion_i == distortion_j)
    no_worse = (rate_i <= rate_j) & (distortion_i <= distortion_j)
    dominates = no_worse & (~is_equal | (order[:, None] < order[None, :])) & pair
    is_left = is_place & ~np.any(dominates, axis=-2)
    # A corner: the steepest way down from its left is steeper than any to its right.
    run = np.where(rate_j != rate_i, rate_j - rate_i, 1)
    slope = (distortion_j - distortion_i) / run
    others = is_left[..., :, None] & pair
    before = np.max(np.where(others & (rate_i < rate_j), slope, -np.inf), axis=-2)
    after = np.min(np.where(others & (rate_i > rate_j), slope, np.inf), axis=-2)
    return is_left & (before < after)


def allocate_rates(
    size_bits: Float[np.ndarray, "layers places"] | Sequence[Float[np.ndarray, " places"]],
    distortion: Float[np.ndarray, "layers places"] | Sequence[Float[np.ndarray, " places"]],
    *,
    budget_bits: Float[np.ndarray, "..."] | float | None = None,
    max_distortion: Float[np.ndarray, "..."] | float | None = None,
    layer_weight: Float[np.ndarray, " layers"] | None = None,
) -> Allocation:
    """Choose a place on the curve of every layer, under a budget of bits or of distortion.

    With `budget_bits` the total weighted distortion is minimised, with `max_distortion` the total
    of bits.

    Args:
        size_bits: (L, M) bits of the whole layer at each place (bits per weight times the number
            of weights, plus the codebook), >= 0, in any order. Curves of different lengths: a
            sequence of arrays, or padding with NaN.
        distortion: likewise, >= 0.
        budget_bits: most bits of all layers together: a number or (...) of them. Met to 1e-12 of
            itself, so that a budget that is a sum of rates is not missed by rounding; whatever
            some choice of places meets is never refused.
        max_distortion: largest weighted distortion of all layers together, likewise. Exactly one of
            the two.
        layer_weight: (L,) > 0, what a unit of distortion of each layer counts; None means 1.

    Returns:
        The allocation, with a leading shape of that of the budget.

    Raises:
        ValueError: on curves that do not fit or hold no place, negative entries, both budgets or
            none, or a budget that cannot be met: the message says what can.
    """
    rate, cost = _pad(size_bits, "size_bits"), _pad(distortion, "distortion")
    if rate.shape != cost.shape:
        raise ValueError(
            f"size_bits and distortion must have one shape (layers, places), got {rate.shape} and "
            f"{cost.shape}."
        )
    is_place = np.isfinite(rate) & np.isfinite(cost)
    if not np.all(np.any(is_place, axis=1)):
        empty = int(np.argmin(np.any(is_place, axis=1)))
        raise ValueError(f"every layer needs a finite place on its curve, layer {empty} has none.")
    for name, values in (("size_bits", rate), ("distortion", cost)):
        if np.any(values[is_place] < 0):
            raise ValueError(f"{name} must be at least 0, got {values[is_place].min():g}.")
    weight = np.ones(len(rate)) if layer_weight is None else np.asarray(layer_weight, np.float64)
    if weight.shape != (len(rate),) or not np.all(np.isfinite(weight) & (weight > 0)):
        raise ValueError(
            f"layer_weight must be {len(rate)} positive numbers, one for each layer, got "
            f"{layer_weight!r}."
        )
    if (budget_bits is None) == (max_distortion is None):
        came = "neither" if budget_bits is None else "both"
        raise ValueError(f"pass either budget_bits or max_distortion, got {came}.")
    rate = np.where(is_place, rate, np.inf)
    cost = np.where(is_place, weight[:, None] * cost, np.inf)
    hulls = _Hulls.of(rate, cost)
    if budget_bits is not None:
        budgets = np.asarray(budget_bits, np.float64)
        _check_budgets(budgets, rate, cost, hulls.start, "budget_bits")
        places, multiplier, bound = _spend(rate, cost, hulls, budgets.ravel())
    else:
        budgets = np.asarray(max_distortion, np.float64)
        _check_budgets(budgets, cost, rate, hulls.final, "max_distortion")
        # The same problem with the axes exchanged: the hull is read from its other end.
        mirrored = hulls.mirrored()
        places, slope, bound = _spend(cost, rate, mirrored, budgets.ravel())
        multiplier = np.where(slope > 0, 1 / np.where(slope > 0, slope, 1), 0)
    chosen_rate, chosen_cost = _chosen(rate, places), _chosen(cost, places)
    shape = budgets.shape
    return Allocation(
        places=places.reshape(*shape, -1),
        size_bits=chosen_rate.reshape(*shape, -1),
        distortion=(chosen_cost / weight).reshape(*shape, -1),
        total_size_bits=_totals(rate, places).reshape(shape),
        total_distortion=_totals(cost, places).reshape(shape),
        multiplier=multiplier.reshape(shape),
        lower_bound=bound.reshape(shape),
    )


class _Hulls(NamedTuple):
    """The steps down all hulls, steepest first, and where they start.

    Attributes:
        start: (L,) place of the least rate of each hull.
        layer: (S,) layer of each step.
        end: (S,) place where the step ends.
        final: (L,) place of the least cost of each hull.
    """

    start: Int[np.ndarray, " layers"]
    layer: Int[np.ndarray, " steps"]
    end: Int[np.ndarray, " steps"]
    final: Int[np.ndarray, " layers"]

    @classmethod
    def of(cls, rate: _Curves, cost: _Curves) -> "_Hulls":
        """Cut all hulls into steps and sort them by slope; costs fall as rates rise."""
        is_corner = lower_convex_hull(rate, cost)
        # Corners first, by rate.
        order = np.argsort(np.where(is_corner, rate, np.inf), axis=1, kind="stable")
        number = is_corner.sum(axis=1)
        sorted_rate = np.take_along_axis(rate, order, axis=1)
        sorted_cost = np.take_along_axis(cost, order, axis=1)
        layer, step = np.nonzero(np.arange(1, rate.shape[1])[None, :] < number[:, None])
        more = sorted_rate[layer, step + 1] - sorted_rate[layer, step]
        less = sorted_cost[layer, step] - sorted_cost[layer, step + 1]
        # Stable: steps of one layer with slopes that rounding made equal stay in order.
        by_slope = np.argsort(-less / more, kind="stable")
        layers = np.arange(len(rate))
        return cls(
            start=order[:, 0],
            layer=layer[by_slope],
            end=order[layer, step + 1][by_slope],
            final=order[layers, number - 1],
        )

    def mirrored(self) -> "_Hulls":
        """Return the same hulls walked from the least cost to the least rate, axes exchanged."""
        # A step backwards ends where the layer's step before ended, or at its start.
        previous = np.empty_like(self.end)
        order = np.argsort(self.layer, kind="stable")
        previous[order[1:]] = self.end[order[:-1]]
        is_first = np.append(True, np.diff(self.layer[order]) > 0)[: len(order)]
        previous[order[is_first]] = self.start[self.layer[order[is_first]]]
        return _Hulls(
            start=self.final,
            layer=self.layer[::-1],
            end=previous[::-1],
            final=self.start,
        )

    def places(self, taken: Int[np.ndarray, " budgets"]) -> Int[np.ndarray, "budgets layers"]:
        """Return where the layers stand after so many steps, by budget."""
        places = np.empty((len(taken), len(self.start)), np.intp)
        for layer, start in enumerate(self.start):
            steps = np.flatnonzero(self.layer == layer)
            stops = np.append(start, self.end[steps])
            # How many steps of its own the layer has gone down.
            places[:, layer] = stops[np.searchsorted(steps, taken, side="left")]
        return places


# A sum of numbers that are at least 0, added pairwise, is off by less than this, relatively.
_SUM_ROUNDING = 1e-14
_SLACK = 1e-12


def _totals(values: _Curves, places: Int[np.ndarray, "... layers"]) -> Float[np.ndarray, "..."]:
    """Return the sums over the layers, each from its own terms."""
    return values[np.arange(len(values)), places].sum(axis=-1)


def _limits(budgets: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return what a computed total may be, so that the exact one exceeds by 1e-12 at most."""
    return budgets * (1 + (_SLACK - _SUM_ROUNDING))


def _spend(
    rate: _Curves, cost: _Curves, hulls: _Hulls, budgets: Float[np.ndarray, " budgets"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the places, the slope of the next step and the lower bound of the cost, by budget."""
    num_steps = len(hulls.layer)
    limits = _limits(budgets)
    # The most steps that fit, by halving: totals rise with every step.
    taken, too_many = np.zeros(len(budgets), np.intp), np.full(len(budgets), num_steps + 1)
    for _ in range(num_steps.bit_length() + 1):
        middle = (taken + too_many) // 2
        fits = _totals(rate, hulls.places(middle)) <= limits
        taken, too_many = np.where(fits, middle, taken), np.where(fits, too_many, middle)
    places, following = hulls.places(taken), hulls.places(np.minimum(taken + 1, num_steps))
    # Of the step that does not fit whole, in its own layer.
    stepping = np.argmax(places != following, axis=1)
    before, after = (
        np.take_along_axis(ends, stepping[:, None], axis=1)[:, 0] for ends in (places, following)
    )
    more = rate[stepping, after] - rate[stepping, before]
    less = cost[stepping, before] - cost[stepping, after]
    is_step = more > 0
    slope = np.where(is_step, less / np.where(is_step, more, 1), 0)
    # Rounding of the totals must not raise the bound.
    spent = _totals(rate, places)
    with np.errstate(invalid="ignore"):
        left = np.clip(budgets * (1 + _SUM_ROUNDING) - spent, 0, more)
        left = np.where(is_step, left + _SUM_ROUNDING * spent, 0)
    # Between the two ends of the step as a weighted mean, which keeps its digits.
    share = np.minimum(left / np.where(is_step, more, 1), 1)
    within = (1 - share) * cost[stepping, before] + share * cost[stepping, after]
    others = np.where(np.arange(len(rate)) == stepping[:, None], 0, _chosen(cost, places))
    bound = (others.sum(axis=1) + within) * (1 - _SUM_ROUNDING)
    places = _use_the_rest(rate, cost, places, limits)
    return places, slope, np.minimum(bound, _totals(cost, places))


def _chosen(
    values: _Curves, places: Int[np.ndarray, "budgets layers"]
) -> Float[np.ndarray, "budgets layers"]:
    return values[np.arange(len(values)), places]


def _use_the_rest(
    rate: _Curves,
    cost: _Curves,
    places: Int[np.ndarray, "budgets layers"],
    limits: Float[np.ndarray, " budgets"],
) -> Int[np.ndarray, "budgets layers"]:
    """Move single layers to any place that fits, the largest gain first, as long as one gains."""
    budget_rows = np.arange(len(limits))
    places = places.copy()
    is_open = np.ones((len(limits), *rate.shape), bool)
    while True:
        now_rate, now_cost = _chosen(rate, places), _chosen(cost, places)
        # Every gain makes its layer cheaper: no move is ever taken back.
        gain = np.where(is_open, now_cost[:, :, None] - cost[None], -np.inf)
        left = limits - now_rate.sum(axis=1)
        slack = _SUM_ROUNDING * now_rate.sum(axis=1)
        fits = rate[None] - now_rate[:, :, None] <= (left + slack)[:, None, None]
        flat = np.where(fits, gain, -np.inf).reshape(len(limits), -1)
        best = np.argmax(flat, axis=1)
        gains = flat[budget_rows, best] > 0
        if not np.any(gains):
            return places
        layer, place = np.unravel_index(best, rate.shape)
        rows = budget_rows[gains]
        moved = places[rows]
        moved[np.arange(len(rows)), layer[gains]] = place[gains]
        # Differences of totals may be wrong by their rounding: the new total decides.
        is_met = _totals(rate, moved) <= limits[rows]
        places[rows[is_met]] = moved[is_met]
        is_open[rows, layer[gains], place[gains]] = False


def _check_budgets(
    budgets: Float[np.ndarray, "..."],
    spent: _Curves,
    cost: _Curves,
    start: Int[np.ndarray, " layers"],
    name: str,
) -> None:
    least = float(_totals(spent, start))
    bad = budgets[~(_limits(budgets) >= least)]
    if bad.size:
        unit = "bits" if name == "budget_bits" else "of distortion"
        other = "distortion" if name == "budget_bits" else "bits"
        # All digits, so that the number can be passed back.
        raise ValueError(
            f"{name} must be at least {least:.17g}, which the curves can meet (with {other} "
            f"{float(_totals(cost, start)):.10g}), got {float(bad.min()):.10g} {unit}."
        )


def _pad(curves: Sequence[Float[np.ndarray, " places"]] | np.ndarray, name: str) -> _Curves:
    """Return curves of any lengths as one matrix, NaN where there is no place."""
    rows = [np.asarray(row, np.float64) for row in curves]
    if not rows or any(row.ndim != 1 for row in rows):
        raise ValueError(
            f"{name} must be one array of places for each of at least one layer, got shapes "
            f"{[row.shape for row in rows]}."
        )
    longest = max(row.size for row in rows)
    return np.stack([np.pad(row, (0, longest - row.size), constant_values=np.nan) for row in rows])
