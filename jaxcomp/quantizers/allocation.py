"""Allocation of bits between layers: equal slopes on the lower convex hulls of their curves.

Every layer has a curve: places with a rate and a distortion, of which one has to be chosen. The sum
of the distortions under a budget of bits, and the sum of the bits under a bound on the distortion,
are minimised by Lagrange multipliers: all layers go down their hulls to the same slope. Whenever
the budget is met exactly this way, nothing else is as good, hull or not. In between (one step of
one hull does not fit) what is left is spent by the best single moves that fit, and
`lower_bound` tells how far from optimal that can be: it is the optimum if one layer could be split
between two places.

On the host in float64: totals in bits exceed what float32 counts. Adding distortions of layers is
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
        rate_bits: (..., L) bits of each layer.
        distortion: (..., L) distortion of each layer, not multiplied by the weights of the layers.
        total_rate_bits: (...) sum over the layers.
        total_distortion: (...) weighted sum over the layers.
        multiplier: (...) weighted distortion per bit: the slope at which the layers stopped; 0
            where everything is at its lowest distortion.
        lower_bound: (...) no choice of places is better: in distortion under a budget of bits, in
            bits under a bound on the distortion.
    """

    places: Int[np.ndarray, "... layers"]
    rate_bits: Float[np.ndarray, "... layers"]
    distortion: Float[np.ndarray, "... layers"]
    total_rate_bits: Float[np.ndarray, "..."]
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
    rate_bits: Float[np.ndarray, "layers places"] | Sequence[Float[np.ndarray, " places"]],
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
        rate_bits: (L, M) bits of the whole layer at each place (bits per weight times the number
            of weights, plus the codebook), >= 0, in any order. Curves of different lengths: a
            sequence of arrays, or padding with NaN.
        distortion: likewise, >= 0.
        budget_bits: most bits of all layers together: a number or (...) of them. Met to 1e-12 of
            itself, so that a budget that is a sum of rates is not missed by rounding.
        max_distortion: largest weighted distortion of all layers together, likewise. Exactly one of
            the two.
        layer_weight: (L,) > 0, what a unit of distortion of each layer counts; None means 1.

    Returns:
        The allocation, with a leading shape of that of the budget.

    Raises:
        ValueError: on curves that do not fit or hold no place, negative entries, both budgets or
            none, or a budget that cannot be met: the message says what can.
    """
    rate, cost = _pad(rate_bits, "rate_bits"), _pad(distortion, "distortion")
    if rate.shape != cost.shape:
        raise ValueError(
            f"rate_bits and distortion must have one shape (layers, places), got {rate.shape} and "
            f"{cost.shape}."
        )
    is_place = np.isfinite(rate) & np.isfinite(cost)
    if not np.all(np.any(is_place, axis=1)):
        empty = int(np.argmin(np.any(is_place, axis=1)))
        raise ValueError(f"every layer needs a finite place on its curve, layer {empty} has none.")
    for name, values in (("rate_bits", rate), ("distortion", cost)):
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
        _check_budgets(budgets, hulls.rate, hulls.cost, "budget_bits")
        places, multiplier, bound = _spend(rate, cost, hulls, budgets.ravel())
    else:
        budgets = np.asarray(max_distortion, np.float64)
        _check_budgets(budgets, hulls.cost[::-1], hulls.rate[::-1], "max_distortion")
        # The same problem with the axes exchanged: the hull is read from its other end.
        mirrored = hulls.mirrored()
        places, slope, bound = _spend(cost, rate, mirrored, budgets.ravel())
        multiplier = np.where(slope > 0, 1 / np.where(slope > 0, slope, 1), 0)
    layers = np.arange(len(rate))
    chosen_rate, chosen_cost = rate[layers, places], cost[layers, places]
    shape = budgets.shape
    return Allocation(
        places=places.reshape(*shape, -1),
        rate_bits=chosen_rate.reshape(*shape, -1),
        distortion=(chosen_cost / weight).reshape(*shape, -1),
        total_rate_bits=chosen_rate.sum(axis=1).reshape(shape),
        total_distortion=chosen_cost.sum(axis=1).reshape(shape),
        multiplier=multiplier.reshape(shape),
        lower_bound=bound.reshape(shape),
    )


class _Hulls(NamedTuple):
    """The steps down all hulls, steepest first, and where they start.

    Attributes:
        start: (L,) place of the least rate of each hull.
        layer: (S,) layer of each step.
        end: (S,) place where the step ends.
        rate: (S + 1,) total rate after the first s steps.
        cost: (S + 1,) total cost after them.
    """

    start: Int[np.ndarray, " layers"]
    layer: Int[np.ndarray, " steps"]
    end: Int[np.ndarray, " steps"]
    rate: Float[np.ndarray, " steps_plus_1"]
    cost: Float[np.ndarray, " steps_plus_1"]
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
            rate=np.append(0, np.cumsum(more[by_slope])) + sorted_rate[:, 0].sum(),
            cost=sorted_cost[:, 0].sum() - np.append(0, np.cumsum(less[by_slope])),
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
            rate=self.cost[::-1],
            cost=self.rate[::-1],
            final=self.start,
        )


def _spend(
    rate: _Curves, cost: _Curves, hulls: _Hulls, budgets: Float[np.ndarray, " budgets"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the places, the slope of the next step and the lower bound of the cost, by budget."""
    num_steps = len(hulls.layer)
    # Sums of many terms: a budget that is one of them must not be missed by rounding.
    slack = 1e-12 * np.abs(budgets)
    taken = np.searchsorted(hulls.rate, budgets + slack, side="right") - 1
    taken = np.clip(taken, 0, num_steps)
    # How many steps of its own each layer has gone down.
    places = np.empty((len(budgets), len(rate)), np.intp)
    for layer in range(len(rate)):
        steps = np.flatnonzero(hulls.layer == layer)
        stops = np.append(hulls.start[layer], hulls.end[steps])
        places[:, layer] = stops[np.searchsorted(steps, taken, side="left")]
    following = np.minimum(taken + 1, num_steps)
    more = hulls.rate[following] - hulls.rate[taken]
    less = hulls.cost[taken] - hulls.cost[following]
    slope = np.where(more > 0, less / np.where(more > 0, more, 1), 0)
    left = np.clip(budgets - hulls.rate[taken], 0, more)
    bound = hulls.cost[taken] - slope * left
    return _use_the_rest(rate, cost, places, budgets + slack), slope, bound


def _use_the_rest(
    rate: _Curves,
    cost: _Curves,
    places: Int[np.ndarray, "budgets layers"],
    budgets: Float[np.ndarray, " budgets"],
) -> Int[np.ndarray, "budgets layers"]:
    """Move single layers to any place that fits, the largest gain first, as long as one gains."""
    layers, budget_rows = np.arange(len(rate)), np.arange(len(budgets))
    places = places.copy()
    while True:
        now_rate, now_cost = rate[layers, places], cost[layers, places]
        left = budgets - now_rate.sum(axis=1)
        fits = rate[None] - now_rate[:, :, None] <= left[:, None, None]
        gain = np.where(fits, now_cost[:, :, None] - cost[None], -np.inf)
        flat = gain.reshape(len(budgets), -1)
        best = np.argmax(flat, axis=1)
        # A relative floor, so that rounding cannot move a layer back and forth.
        gains = flat[budget_rows, best] > 1e-12 * now_cost.sum(axis=1)
        if not np.any(gains):
            return places
        layer, place = np.unravel_index(best, rate.shape)
        rows = budget_rows[gains]
        places[rows, layer[gains]] = place[gains]


def _check_budgets(
    budgets: Float[np.ndarray, "..."],
    spent: Float[np.ndarray, " steps_plus_1"],
    cost: Float[np.ndarray, " steps_plus_1"],
    name: str,
) -> None:
    least = spent[0]
    bad = budgets[~(budgets >= least * (1 - 1e-12))] if budgets.size else budgets
    if bad.size:
        unit = "bits" if name == "budget_bits" else "of distortion"
        other = "distortion" if name == "budget_bits" else "bits"
        raise ValueError(
            f"{name} must be at least {least:.10g}, which the curves can meet (with {other} "
            f"{cost[0]:.10g}), got {bad.min():.10g} {unit}."
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
