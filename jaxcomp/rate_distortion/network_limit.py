"""The limit of a network at the distortions that are asked for.

A whole curve (`limits.network_curve`) has tangents at every slope, those of the highest rates the
dearest by far, and a channel at each, that tells how far above the tangent the curve may lie. Who
compares given codes with the limit needs the tangents near their distortions, and no channels.
Every tangent is found on its own, so that what is asked before does not change what is found.

Axes: `S` slopes.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxcomp.numerics.units import LN2
from jaxcomp.rate_distortion.limits import network_source
from jaxcomp.rate_distortion.nested_grids import (
    ITERATED_SHARE,
    Problem,
    Split,
    bounds_at_slopes,
    constant_distortion,
    highest_importance,
    lossless_nats,
    reach_of,
    split_pairs,
)
from jaxcomp.rate_distortion.shannon import shannon_rate

_Array = Float[np.ndarray, "..."]

# Slopes are a factor of about two apart: a tangent that touches so near is the highest of all. At
# high rates, where nearly all weights have a share in D = N / (2 s), tangents cross farther away.
_NEAR, _NEAR_AT_HIGH_RATES = 1.15, 1.35
_HIGH_RATES = 0.8


class Tangent(NamedTuple):
    """What is known at one slope, sums over weights.

    Attributes:
        least_nats: certified lower bound of the least `R + s D`.
        distortion: about the D where it is met.
    """

    least_nats: float
    distortion: float


class NetworkLimit:
    """The rate-distortion limit of a network whose layers have codebooks of their own.

    Args:
        layers: weights and importance h >= 0 of every layer, by name; arrays of one shape. Layers
            without any importance cost nothing and count with their weights.
        num_slopes: S, as in `network_curve`.
        max_bits: about the highest rate at which there are tangents, bits per weight of the
            network.
        gap_bits: gap to aim for, per weight of the network; small layers may have more.

    Raises:
        TypeError: see `layer_curve`.
        ValueError: see `network_curve`.
    """

    def __init__(
        self,
        layers: Mapping[str, tuple[Any, Any]],
        *,
        num_slopes: int = 16,
        max_bits: float = 6.0,
        gap_bits: float = 0.04,
    ) -> None:
        source = network_source(layers, num_slopes=num_slopes, max_bits=max_bits, gap_bits=gap_bits)
        self.num_weights = source.num_weights
        self.slope_nats = source.slope_nats
        self._num_live = sum(w.size for w, _ in source.layers)
        self._entropy = source.together
        self._layers = [
            _Layer(w, h, gap * LN2, float(self.slope_nats[-1]))
            for (w, h), gap in zip(source.layers, source.gaps_bits, strict=True)
        ]
        self._tangents: dict[int, Tangent] = {}

    def limit_bits(self, distortion: float) -> float:
        """Return a certified lower bound of R(D), bits per weight, never below 0.

        Args:
            distortion: `sum h (w - c)^2` over all weights.

        Raises:
            ValueError: if it is negative or NaN.
        """
        if not distortion >= 0:
            raise ValueError(f"distortion must be at least 0, got {distortion:g}.")
        found = max(
            self._tangent(place).least_nats - float(self.slope_nats[place]) * distortion
            for place in self._places(distortion)
        )
        return max(found, 0.0) / (LN2 * self.num_weights)

    def shannon_bits(self, distortion: float) -> float:
        """Return the Shannon lower bound as if the weights had a density, bits per weight.

        Args:
            distortion: `sum h (w - c)^2` over all weights.
        """
        entropy = self._entropy
        num_near = self._num_live * entropy.live_share
        per_live: Any = np.float64(distortion / num_near)
        rate = shannon_rate(entropy.nats, per_live, entropy.mean_log_importance)
        return num_near / self.num_weights * float(rate) / LN2

    def _places(self, distortion: float) -> list[int]:
        """Return the slopes whose tangents are looked at: the last two touch around it, if any."""
        # At high rates D = N / (2 s); at low ones D is less, and the walk goes down.
        guess = self._num_live / (2 * distortion) if distortion > 0 else math.inf
        last = len(self.slope_nats) - 1
        place = int(np.clip(np.searchsorted(self.slope_nats, guess, side="right") - 1, 0, last))
        places = [place]
        touched = self._tangent(place).distortion
        step = -1 if touched < distortion else 1
        is_high = touched * 2 * float(self.slope_nats[place]) > _HIGH_RATES * self._num_live
        near = _NEAR_AT_HIGH_RATES if is_high else _NEAR
        while max(touched, distortion) > near * min(touched, distortion):
            place += step
            if not 0 <= place <= last:
                break
            places.append(place)
            touched = self._tangent(place).distortion
            if (touched - distortion) * step <= 0:
                break
        return places

    def _tangent(self, place: int) -> Tangent:
        if place not in self._tangents:
            slope = float(self.slope_nats[place])
            found = [layer.tangent(slope) for layer in self._layers]
            self._tangents[place] = Tangent(*(sum(own) for own in zip(*found, strict=True)))
        return self._tangents[place]


class _Layer:
    """One layer, w in order.

    Args:
        points: (N,) w, finite, float64.
        importance: (N,) h >= 0, not 0 throughout.
        gap_nats: per weight, to aim for.
        highest: the highest slope that may be asked for.
    """

    def __init__(self, points: _Array, importance: _Array, gap_nats: float, highest: float) -> None:
        order = np.argsort(points, kind="stable")
        self.points, self.importance = points[order], importance[order]
        self.gap_nats, self.number, self.highest = gap_nats, points.size, highest
        is_live = self.importance > 0
        self.live, self.heights = self.points[is_live], self.importance[is_live]
        self.low = float(self.live[0])
        self.span = float(self.live[-1]) - self.low
        self.constant = constant_distortion(self.live, self.heights, self.number)
        self.cap = highest_importance(self.heights, self.number, gap_nats)
        self.lossless = lossless_nats(self.live, self.number)

    def tangent(self, slope: float) -> Tangent:
        """Return what is known at a slope of the sums over the weights."""
        least, distortion = self._tangent(slope)
        # One reproduction for all weights, and every weight sent as it is, are codes.
        for rate, of_code in ((0.0, self.constant), (self.lossless, 0.0)):
            if rate + slope * of_code < least:
                least, distortion = rate + slope * of_code, of_code
        return Tangent(self.number * max(least, 0.0), self.number * distortion)

    def _tangent(self, slope: float) -> tuple[float, float]:
        if slope * self.constant < 1e-9:
            # No code is better than the best constant by more than this.
            return 0.0, self.constant
        if self.span > reach_of(slope, self.cap, self.number, self.gap_nats):
            (found,) = bounds_at_slopes(
                self.points, self.importance, np.array([slope]), gap_nats=self.gap_nats
            )
            return found.lagrangian_nats, found.distortion
        problem = Problem(self._split, slope, self.low, self.span)
        q, least = problem.solve(problem.initial(None), ITERATED_SHARE * self.gap_nats)
        return least, problem.distortion(q)

    @cached_property
    def _split(self) -> Split:
        """The weights by classes of importance that are enough for all slopes."""
        return split_pairs(
            self.live, self.heights, self.highest, self.span, self.cap, self.number, self.gap_nats
        )
