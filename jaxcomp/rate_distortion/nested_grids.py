"""Rate-distortion functions of hundreds of thousands of pairs (w, h), by convolution on grids.

The source is every weight of a layer with its importance, 1/N each; the distortion `h (w - y)^2`.
At slope -s a pair sees the probabilities q of the reproductions through a Gaussian of standard
deviation `(2 s h)^(-1/2)`: `Z(w, h) = sum_y q(y) exp(-s h (w - y)^2)`, and the certificate is
`c(y) = E exp(-s h (w - y)^2) / Z(w, h)`, at most 1 for all real y at the optimum (see `discrete`).

**Splitting.** Every pair is split at random between the grid points w_j, w_{j+1} around w and the
classes h_k, h_{k+1} around h, so that the means stay: the split pairs have
`E H~ (W~ - y)^2 = E H (W - y)^2 + Delta`, `Delta = E H~ (w - w_j)(w_{j+1} - w)`, and Y - (W, H) -
(W~, H~) is a Markov chain. So `R(D) >= R~(D + Delta)`: a lower bound for the split source is one
for the layer, with nothing neglected. The importance of the few weights with the largest h is
lowered as well, which only lowers R.

**Far weights.** No grid reaches from fine Gaussians to a weight a million times as far away as the
others. Where it would have to, the weights are parted in two, those that one grid can hold and the
rest. To be told for nothing which of them a weight is only lowers R, so that
`R~ = P_0 R_0 + P_1 R_1` is a lower bound; sending it first costs no more than the entropy of
(P_0, P_1), which is little where few lie far away. The rest is solved likewise if it is much, else
it is sent as it is.

**Nested grids.** On a grid whose spacing is a fraction of its Gaussian, Z and c are convolutions.
Classes share a grid per octave of width, each twice as fine as the one before; q is handed down to
the coarse ones, c up to the fine ones, by cubic interpolation and its transpose.

**Iteration.** Blahut's `q <- q c` has relaxation factors here, `q <- q c^omega`, in Chebyshev's
order: what a Gaussian smooths away does not matter to c either, so that the rest, of eigenvalues
above 0.02, is gone in some thirty steps, where the plain iteration takes hundreds. (Above 0.05, and
in twenty, where the gap may be wide.)

The certificate takes the maximum of c on a grid eight times as fine as the finest, interpolated by
polynomials of degree 5 (exact to some 1e-5 of it). Between its points ln c rises by no more than a
Gaussian of the narrowest width may, 1e-4 nats, which are added. On the other side are rate and
distortion of the channel at the very pairs, not the split ones: summed over the reproductions where
those are few, as they are for few weights and for weights of few values, interpolated otherwise. An
interpolated channel may be off by some 1e-3 bit along the curve; the bounds are lowered where one
of the channels found would lie below them, so that none ever does.

Float64 on the host: the grids of every slope have their own lengths, each of which a compiled
program would have to be compiled for.

Axes: `N` pairs, `K` classes of importance, `G` grid points.

Sources: Golub and Varga, Numer. Math. 3 (1961), for the relaxation factors; Young (1971) for their
order.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import fft

from jaxcomp.numerics.units import LN2
from jaxcomp.rate_distortion.grids import (
    back,
    blurred,
    finely_prolonged,
    prolonged,
    restricted,
    transformed,
)

_Array = Float[np.ndarray, "..."]

# For a gap of 0.02 bit: nodes of h per octave, spacings of a grid per standard deviation of its
# narrowest Gaussian, and what lowering the largest importances may cost. Together some 0.01 bit.
_USUAL_GAP = 0.0139
_PER_OCTAVE = 3
_RESOLUTION = 4.0
_CAP_SHARE = 0.1
_COARSEST = 0.4
# Of the gap, what iterating may leave; splitting takes the rest.
ITERATED_SHARE = 0.4
# Classes down to a Gaussian of so many times the range of the weights; below all is free.
_WIDEST = 4.0
_LEAST_COARSE = 32
# Points of the finest grid: at most, and for every pair.
_MAX_GRID = 1 << 17
_LEAST_MAX_GRID = 4096
_GRID_PER_PAIR = 8
# A rest of less than this share of the pairs is not worth a problem of its own.
_LEAST_REST = 1 / 64
_CYCLE = 8
# What is spread evenly at the start.
_EVEN_START = 0.3
_MAX_STEPS = 60
# Pairs times reproductions that a channel is summed over; reproductions of less have no part in it.
_MAX_SUMMED = 1 << 20
_LEAST_USED = 1e-9
_TINY = 1e-300


class _Pace(NamedTuple):
    """How q is iterated.

    Attributes:
        least_eigenvalue: what has smaller ones is taken for smoothed away.
        num_plain: steps before the relaxed ones.
        even: what is spread evenly in every step: no place is emptied for good.
    """

    least_eigenvalue: float
    num_plain: int
    even: float


# For gaps (that iteration may leave) of less than so many nats and for others, where weights far
# from all others need not set the pace.
_WIDE_GAP = 0.008
_FINE, _WIDE = _Pace(0.02, 4, 1e-9), _Pace(0.05, 2, 1e-3)


class Bounds(NamedTuple):
    """What is known of the curve at one slope, per pair.

    Attributes:
        rate_nats: rate of the channel found.
        distortion: `E h (w - y)^2` of it.
        lagrangian_nats: certified lower bound of the least `R + s D`.
    """

    rate_nats: float
    distortion: float
    lagrangian_nats: float


class Split(NamedTuple):
    """Pairs split between neighbouring classes of importance, sorted by class, then by w.

    `nodes` descend; pairs `start[k] : start[k + 1]` lie between nodes k and k + 1 (the last ones
    between the last node and 0) and belong to node k with probability `share`.
    """

    nodes: Float[np.ndarray, " classes"]
    start: np.ndarray
    points: _Array
    importance: _Array
    lowered: _Array
    share: _Array
    number: int
    per_octave: int
    resolution: float


def bounds_at_slopes(
    points: Float[np.ndarray, " pairs"],
    importance: Float[np.ndarray, " pairs"],
    slope_nats: Float[np.ndarray, " slopes"],
    *,
    gap_nats: float,
) -> list[Bounds]:
    """Return both bounds at every slope.

    Args:
        points: (N,) w, finite, float64.
        importance: (N,) h >= 0, not 0 throughout.
        slope_nats: (S,) s >= 0, ascending, in nats per unit of `h (w - y)^2` of one pair.
        gap_nats: aim for the gap per pair; 40 % of it are for the iteration, the rest is lost by
            splitting.

    Returns:
        The bounds, in the order of the slopes.
    """
    is_live = importance > 0
    live, heights = points[is_live], importance[is_live]
    span = float(np.ptp(live))
    constant = constant_distortion(live, heights, points.size)
    lossless = lossless_nats(live, points.size)
    found: list[Bounds] = []
    split: Split | None = None
    start: tuple[_Array, float] | None = None
    parted = _bounds_of_parts(points, importance, slope_nats, gap_nats)
    for place, slope in reversed(list(enumerate(map(float, slope_nats)))):
        if slope * constant < 1e-9 or span == 0:
            # Nothing to gain: no code is better than the best constant by more than this.
            found.append(Bounds(0.0, constant, 0.0))
            continue
        if place in parted:
            rate, distortion, lower = parted[place]
        else:
            if split is None:
                cap = highest_importance(heights, points.size, gap_nats)
                split = split_pairs(live, heights, slope, span, cap, points.size, gap_nats)
            problem = Problem(split, slope, float(live.min()), span)
            q, lower = problem.solve(problem.initial(start), ITERATED_SHARE * gap_nats)
            rate, distortion = problem.channel(q)
            start = (q, problem.spacings[-1])
        if slope * constant <= rate + slope * distortion:
            rate, distortion = 0.0, constant
        if lossless < rate + slope * distortion:
            rate, distortion = lossless, 0.0
        found.append(Bounds(rate, distortion, max(lower, 0.0)))
    return _consistent(found[::-1], slope_nats)


def _bounds_of_parts(
    points: _Array, importance: _Array, slope_nats: _Array, gap_nats: float
) -> dict[int, Bounds]:
    """Return the bounds at the slopes, by place, at which the pairs are better parted in two."""
    is_near = None
    places: list[int] = []
    # What one grid can hold only grows as the slope falls: the highest decides for the others.
    for place in reversed(range(len(slope_nats))):
        found = _near_pairs(points, importance, float(slope_nats[place]), gap_nats)
        if found is None:
            break
        is_near = found if is_near is None else is_near
        places.append(place)
    if is_near is None:
        return {}
    slopes = np.asarray(slope_nats)[places[::-1]]
    near = bounds_at_slopes(points[is_near], importance[is_near], slopes, gap_nats=gap_nats)
    rest, weights = points[~is_near], importance[~is_near]
    share = rest.size / points.size
    far = [Bounds(lossless_nats(rest, rest.size), 0.0, 0.0)] * slopes.size
    if share >= _LEAST_REST:
        far = bounds_at_slopes(rest, weights, slopes, gap_nats=gap_nats)
    which = -share * np.log(share) - (1 - share) * np.log1p(-share)
    parts = [
        Bounds(*((1 - share) * one + share * other for one, other in zip(a, b, strict=True)))
        for a, b in zip(near, far, strict=True)
    ]
    return {
        place: part._replace(rate_nats=part.rate_nats + which)
        for place, part in zip(places[::-1], parts, strict=True)
    }


def _near_pairs(
    points: _Array, importance: _Array, slope: float, gap_nats: float
) -> np.ndarray | None:
    """Return which pairs to solve on a grid of their own; None if all can be, or had better be."""
    is_live = importance > 0
    live, heights = points[is_live], importance[is_live]
    span = float(np.ptp(live))
    if slope == 0 or span == 0:
        return None
    highest = highest_importance(heights, points.size, gap_nats)
    reach = reach_of(slope, highest, points.size, gap_nats)
    if span <= reach:
        return None
    # The most pairs that lie within reach of each other.
    ordered = np.sort(live)
    first = np.searchsorted(ordered, ordered - reach)
    last = int(np.argmax(np.arange(live.size) - first))
    low, high = ordered[first[last]], ordered[last]
    is_near = ~is_live | ((points >= low) & (points <= high))
    share = 1 - np.count_nonzero(is_near) / points.size
    # What sending the others as they are may lose, against lower importances on a grid of all.
    parted = -share * np.log(share) - (1 - share) * np.log1p(-share)
    parted += share * np.log(share * points.size)
    lowered = reach**2 / span**2 * highest
    together = 0.5 * float(np.sum(np.log(np.maximum(heights / lowered, 1)))) / points.size
    return is_near if parted < together else None


def reach_of(slope: float, highest: float, number: int, gap_nats: float) -> float:
    """Return the largest range that one grid holds, of weights whose h is at most `highest`."""
    resolution = _RESOLUTION * _fineness(gap_nats)
    return _most_points(number) / (resolution * np.sqrt(2 * slope * highest))


def _consistent(found: list[Bounds], slope_nats: Float[np.ndarray, " slopes"]) -> list[Bounds]:
    """Lower the bounds that a channel found at another slope would beat by its rounding."""
    rate = np.array([point.rate_nats for point in found])
    distortion = np.array([point.distortion for point in found])
    reached = np.min(rate + slope_nats[:, None] * distortion, axis=1)
    return [
        point._replace(lagrangian_nats=min(point.lagrangian_nats, float(least)))
        for point, least in zip(found, reached, strict=True)
    ]


def constant_distortion(live: _Array, heights: _Array, number: int) -> float:
    """Return the distortion per pair of the best constant, of pairs with h > 0 among `number`."""
    if np.ptp(live) == 0:
        return 0.0  # the mean of equal numbers is another number by rounding
    mean = np.average(live, weights=heights)
    return float(np.sum(heights * (live - mean) ** 2)) / number


def lossless_nats(live: _Array, number: int) -> float:
    """Return the rate of sending the weights themselves, those without importance at random.

    These take the values in the proportions of the others, which costs nothing.
    """
    shares = np.unique(live, return_counts=True)[1] / live.size
    return float(-np.sum(shares * np.log(shares))) * live.size / number


def split_pairs(
    points: _Array,
    importance: _Array,
    slope: float,
    span: float,
    cap: float,
    number: int,
    gap_nats: float,
) -> Split:
    """Split the importances between nodes that are even in the logarithm, enough for a slope.

    Args:
        points: w, of the pairs with h > 0.
        importance: h of them.
        slope: the highest that the nodes have to be enough for.
        span: the range of w.
        cap: what larger h are lowered to.
        number: of pairs, those with h = 0 too.
        gap_nats: says how fine the nodes are.
    """
    fineness = _fineness(gap_nats)
    per_octave = int(np.ceil(_PER_OCTAVE * fineness))
    least = min(1 / (2 * slope * (_WIDEST * span) ** 2), cap)
    number_nodes = 1 + int(np.ceil(per_octave * np.log2(cap / least)))
    nodes = cap * 2.0 ** (-np.arange(number_nodes) / per_octave)
    lowered = np.minimum(importance, cap)
    # The last node that is not below; what lies under all nodes is split with h = 0.
    upper = np.searchsorted(-nodes, -lowered, side="right") - 1
    # By class, then by w: numbers of one byte are sorted at once, and points may be in order.
    by_point = np.argsort(points, kind="stable")
    classes = upper.astype(np.min_scalar_type(number_nodes))[by_point]
    order = by_point[np.argsort(classes, kind="stable")]
    upper, lowered = upper[order], lowered[order]
    below = np.append(nodes[1:], 0.0)[upper]
    return Split(
        nodes=nodes,
        start=np.searchsorted(upper, np.arange(number_nodes + 1)),
        points=points[order],
        importance=importance[order],
        lowered=lowered,
        share=(lowered - below) / (nodes[upper] - below),
        number=number,
        per_octave=per_octave,
        resolution=_RESOLUTION * fineness,
    )


def _fineness(gap_nats: float) -> float:
    """Return how fine all steps are: what splitting loses goes with the square of every step."""
    return float(np.sqrt(max(_USUAL_GAP / gap_nats, _COARSEST)))


def highest_importance(importance: _Array, number: int, gap_nats: float) -> float:
    """Return what the largest importances are lowered to, at a cost of a share of the gap."""
    highest = np.sort(importance)[::-1]
    rank = np.arange(1, highest.size + 1)
    loss = np.cumsum(np.log(highest)) - rank * np.log(highest)
    allowed = 2 * _CAP_SHARE * gap_nats * number
    return float(highest[np.searchsorted(loss, allowed, side="right") - 1])


def _most_points(number: int) -> int:
    """Return the most points of the finest grid for so many pairs."""
    return min(_MAX_GRID, max(_LEAST_MAX_GRID, _GRID_PER_PAIR * number))


class Problem:
    """The split source at one slope, on its nested grids.

    Args:
        split: the pairs by class.
        slope: s.
        low: the least w, where all grids begin.
        span: the range of w.
    """

    def __init__(self, split: Split, slope: float, low: float, span: float) -> None:
        self.split, self.slope, self.low = split, slope, low
        # Where few weights tower above all others, the grid stays within bounds all the same.
        most = _most_points(split.number)
        cap = (most / (split.resolution * span)) ** 2 / (2 * slope)
        self.nodes = np.minimum(split.nodes, cap)
        self.widths = 1 / np.sqrt(2 * slope * self.nodes)
        finest = self.widths[0] / split.resolution
        num_finer = max(0, int(np.ceil(np.log2(span / finest / _LEAST_COARSE))))
        self.spacings = finest * 2.0 ** np.arange(num_finer, -1, -1)
        coarse = max(3, int(np.ceil(span / self.spacings[0] - 1e-9)))
        self.lengths = [coarse * 2**level + 1 for level in range(num_finer + 1)]
        # The coarsest grid that is fine enough, by class; classes of one are neighbours.
        level_of = np.searchsorted(-self.spacings, -self.widths / split.resolution * (1 + 1e-9))
        self.ranges = [
            (int(np.sum(level_of > level)), int(np.sum(level_of >= level)))
            for level in range(num_finer + 1)
        ]
        shares = (split.share, 1 - split.share)
        unsplit = split.number - split.points.size
        last = split.start[-2]
        self.free = (unsplit + float(np.sum(shares[1][last:]))) / split.number
        self.mass: list[_Array] = []
        self.excess = 0.0
        self.kernels: list[_Array] = []
        self.sizes: list[int] = []
        for level, (first, end) in enumerate(self.ranges):
            mass = np.zeros((end - first) * self.lengths[level])
            # As the upper neighbour of pairs, then as the lower one.
            for offset, share in enumerate(shares):
                self._add(mass, level, first - offset, end - offset, share / split.number)
            self.mass.append(mass.reshape(end - first, -1))
            self._prepare(level, self.widths[first:end])

    def _add(self, mass: _Array, level: int, first: int, end: int, share: _Array) -> None:
        """Split the pairs of classes `first : end` between the points of a grid."""
        skipped = max(0, -first)
        start = self.split.start[first + skipped : end + 1]
        if start.size < 2 or start[0] == start[-1]:
            return
        inside = slice(start[0], start[-1])
        place = (self.split.points[inside] - self.low) / self.spacings[level]
        row = np.repeat(np.arange(skipped, skipped + start.size - 1), np.diff(start))
        left = np.minimum(place.astype(np.int64), self.lengths[level] - 2)
        right = place - left
        flat = row * self.lengths[level] + left
        share = share[inside]
        to_right = share * right
        mass += np.bincount(flat, share - to_right, minlength=mass.size)
        mass += np.bincount(flat + 1, to_right, minlength=mass.size)
        # The class that a pair is counted in, not the one it lies in, has the h that matters.
        first_node = self.ranges[level][0]
        inner = np.bincount(row, to_right * (1 - right), minlength=1)
        nodes = self.nodes[first_node : first_node + inner.size]
        self.excess += float(np.sum(inner * nodes)) * self.spacings[level] ** 2

    def _prepare(self, level: int, widths: _Array) -> None:
        """Keep the Gaussians of one grid: a matrix each on the coarsest, transforms elsewhere."""
        if level == 0:
            place = np.arange(self.lengths[0]) * self.spacings[0]
            deviation = (place[:, None] - place[None, :])[None] / widths[:, None, None]
            self.kernels.append(np.exp(-0.5 * deviation**2))
            self.sizes.append(0)
            return
        reach = int(np.ceil(8 * widths.max() / self.spacings[level])) if widths.size else 0
        size: Any = fft.next_fast_len(self.lengths[level] + reach, real=True)
        steps = np.arange(size)
        distance = np.minimum(steps, size - steps) * self.spacings[level]
        gaussian = np.exp(-0.5 * (distance[None, :] / widths[:, None]) ** 2)
        self.kernels.append(transformed(gaussian, size).real)
        self.sizes.append(size)

    def _smoothed(self, level: int, values: _Array) -> _Array:
        """Convolve (G,) with every Gaussian of a grid: (K, G)."""
        if level == 0:
            return self.kernels[0] @ values
        size = self.sizes[level]
        spectrum = transformed(values, size)[None, :] * self.kernels[level]
        return back(spectrum, size)[:, : self.lengths[level]]

    def normalisers(self, q: _Array) -> list[_Array]:
        """Return Z at the points of every grid, (K of the level, G)."""
        handed = [q]
        for _ in range(len(self.lengths) - 1):
            handed.append(restricted(handed[-1]))
        return [
            np.maximum(self._smoothed(level, values), _TINY)
            for level, values in enumerate(reversed(handed))
        ]

    def certificates(self, multipliers: list[_Array], interpolate=None) -> _Array:
        """Return c on the finest grid."""
        interpolate = prolonged if interpolate is None else interpolate
        total: _Array | None = None
        for level, values in enumerate(multipliers):
            if level == 0:
                here = np.einsum("kij,kj->i", self.kernels[0], values)
            else:
                size = self.sizes[level]
                spectrum = np.einsum("kf,kf->f", transformed(values, size), self.kernels[level])
                here = back(spectrum, size)[: self.lengths[level]]
            total = here if total is None else interpolate(total) + here
        assert total is not None
        return np.maximum(total + self.free, _TINY)

    def initial(self, before: tuple[_Array, float] | None) -> _Array:
        """Return where to start: from a finer slope's q, or from the weights themselves."""
        length, spacing = self.lengths[-1], self.spacings[-1]
        weights = np.zeros(length)
        for level, mass in enumerate(self.mass):
            weights[:: 2 ** (len(self.lengths) - 1 - level)] += mass.sum(axis=0)
        total = weights.sum()
        if before is None:
            start = blurred(weights / total if total > 0 else np.full(length, 1 / length))
        else:
            q, finer = before
            place = np.arange(q.size) * finer / spacing
            left = np.clip(place.astype(np.int64), 0, length - 2)
            right = np.clip(place - left, 0, 1)
            start = np.bincount(left, q * (1 - right), minlength=length)
            start += np.bincount(left + 1, q * right, minlength=length)
            start = start / start.sum()
        start = (1 - _EVEN_START) * start + _EVEN_START / length
        return start / start.sum()

    def solve(self, q: _Array, gap_nats: float) -> tuple[_Array, float]:
        """Iterate from q; return the best q and the certified least `R + s D` of the layer."""
        best_gap, best_q = np.inf, q
        best_multipliers: list[_Array] = []
        pace = _FINE if gap_nats < _WIDE_GAP else _WIDE
        factors = _relaxation_factors(pace.least_eigenvalue)
        for step in range(_MAX_STEPS):
            z = self.normalisers(q)
            multipliers = [mass / values for mass, values in zip(self.mass, z, strict=True)]
            c = self.certificates(multipliers)
            log_c = np.log(c)
            # The gap is this less the mean of ln c, which is small, and wrong where Z underflows.
            gap = float(log_c.max())
            if gap < best_gap:
                best_gap, best_q, best_multipliers = gap, q, multipliers
            if gap <= gap_nats:
                break
            later = step - pace.num_plain
            factor = 1.0 if later < 0 else factors[later % _CYCLE]
            # No step empties a place for good: what was taken too much has to come back.
            q = q * np.exp(np.clip(factor * log_c, -4.0, 2.0)) + pace.even / q.size
            q = q / q.sum()
        return best_q, self._certified(best_multipliers)

    def _certified(self, multipliers: list[_Array]) -> float:
        c = self.certificates(multipliers, finely_prolonged)
        c = finely_prolonged(finely_prolonged(finely_prolonged(c)))
        # The second derivative of ln c is at least that of the narrowest Gaussian's logarithm.
        hidden = (self.spacings[-1] / 8 / self.widths[0]) ** 2 / 8
        value = sum(
            float(np.sum(mass[mass > 0] * np.log(mass[mass > 0] / values[mass > 0])))
            for mass, values in zip(self.mass, multipliers, strict=True)
        )
        return -value - float(np.log(c.max())) - hidden - self.slope * self.excess

    def channel(self, q: _Array) -> tuple[float, float]:
        """Return rate and distortion, per pair, of the channel that q makes at the very pairs.

        Of many reproductions the logarithms of Z and of the mean distortion are interpolated: by
        cubics in w, and between classes in ln h, where ln Z has a known derivative, by Hermite's
        cubic.
        """
        split = self.split
        is_used = q > _LEAST_USED
        if split.points.size * np.count_nonzero(is_used) <= _MAX_SUMMED:
            return self._summed_channel(np.flatnonzero(is_used), q[is_used])
        z = self.normalisers(q)
        exponents = [np.log(np.maximum(values, _TINY)) for values in self._mean_exponents(q, z)]
        fields = ([np.log(values) for values in z], exponents)
        top, top_slope = self._looked_up(0, *fields)
        bottom, bottom_slope = self._looked_up(1, *fields)
        height = np.minimum(split.lowered, self.nodes[0])
        step = LN2 / split.per_octave
        upper = np.repeat(self.nodes, np.diff(split.start))
        t = np.clip(np.log(upper / height) / step, 0.0, 1.0)
        # ln Z falls with ln h by the mean exponent s h E (w - y)^2.
        log_normaliser = (1 + 2 * t) * (1 - t) ** 2 * top + t**2 * (3 - 2 * t) * bottom
        log_normaliser += step * (
            t * (1 - t) ** 2 * np.exp(top_slope) - t**2 * (1 - t) * np.exp(bottom_slope)
        )
        exponent = np.exp((1 - t) * top_slope + t * bottom_slope)
        # Below all classes both are proportional to h.
        under = slice(split.start[-2], None)
        share = height[under] / self.nodes[-1]
        log_normaliser[under] = share * top[under]
        exponent[under] = share * np.exp(top_slope[under])
        rate = -float(np.sum(log_normaliser + exponent)) / split.number
        distortion = float(np.sum(exponent * (split.importance / height)))
        return max(rate, 0.0), distortion / (split.number * self.slope)

    def _summed_channel(self, places: np.ndarray, q: _Array) -> tuple[float, float]:
        """Return rate and distortion of the channel that few reproductions make, exactly."""
        split = self.split
        q = q / q.sum()
        deviation = split.points[:, None] - (self.low + places * self.spacings[-1])[None, :]
        exponent = self.slope * split.importance[:, None] * deviation**2
        least = np.min(exponent, axis=1, keepdims=True)
        joint = q * np.exp(least - exponent)
        z = joint.sum(axis=1, keepdims=True)
        joint = joint / (z * split.number)
        # Weights without importance take any reproduction, and need no bits for it.
        output = joint.sum(axis=0) + (1 - split.points.size / split.number) * q
        distortion = float(np.sum(joint * exponent))
        log_normaliser = float(np.sum(np.log(z) - least)) / split.number
        divergence = float(np.sum(output * np.log(np.maximum(output, _TINY) / q)))
        return max(-log_normaliser - distortion - divergence, 0.0), distortion / self.slope

    def distortion(self, q: _Array) -> float:
        """Return about `E h (w - y)^2` per pair of the channel that q makes."""
        exponents = self._mean_exponents(q, self.normalisers(q))
        total = sum(float(np.vdot(m, own)) for m, own in zip(self.mass, exponents, strict=True))
        return max(total / self.slope - self.excess, 0.0)

    def _mean_exponents(self, q: _Array, z: list[_Array]) -> list[_Array]:
        """Return `s h E (w - y)^2` given the points of every grid."""
        handed = [q]
        for _ in range(len(self.lengths) - 1):
            handed.append(restricted(handed[-1]))
        found = []
        for level, values in enumerate(reversed(handed)):
            widths = self.widths[slice(*self.ranges[level])]
            place = np.arange(self.lengths[level]) * self.spacings[level]
            if level == 0:
                square = (
                    0.5 * ((place[:, None] - place[None, :])[None] / widths[:, None, None]) ** 2
                )
                total = (square * self.kernels[0]) @ values
            else:
                size = self.sizes[level]
                steps = np.arange(size)
                distance = np.minimum(steps, size - steps) * self.spacings[level]
                square = 0.5 * (distance[None, :] / widths[:, None]) ** 2
                spectrum = transformed(square * np.exp(-square), size).real
                spectrum = spectrum * transformed(values, size)[None, :]
                total = back(spectrum, size)[:, : self.lengths[level]]
            found.append(np.maximum(total, 0.0) / z[level])
        return found

    def _looked_up(self, offset: int, *fields: list[_Array]) -> list[_Array]:
        """Interpolate fields on the grids at every pair's w, in its upper (0) or lower (1) node."""
        split = self.split
        results = [np.zeros(split.points.size) for _ in fields]
        for level, (first, end) in enumerate(self.ranges):
            skipped = max(0, offset - first)
            start = split.start[first - offset + skipped : end - offset + 1]
            if start.size < 2 or start[0] == start[-1]:
                continue
            inside = slice(start[0], start[-1])
            length = self.lengths[level]
            place = (split.points[inside] - self.low) / self.spacings[level]
            left = np.clip(place.astype(np.int64) - 1, 0, length - 4)
            t = place - left
            row = np.repeat(np.arange(skipped, skipped + start.size - 1), np.diff(start))
            left = left + row * length
            factors = (
                -(t - 1) * (t - 2) * (t - 3) / 6,
                t * (t - 2) * (t - 3) / 2,
                -t * (t - 1) * (t - 3) / 2,
                t * (t - 1) * (t - 2) / 6,
            )
            for result, field in zip(results, fields, strict=True):
                flat = field[level].ravel()
                for tap, factor in enumerate(factors):
                    result[inside] += factor * flat[left + tap]
        return results


def _relaxation_factors(least: float) -> _Array:
    """Return the factors of one cycle for eigenvalues from the least, large ones between small."""
    angles = np.cos(np.pi * (2 * np.arange(_CYCLE) + 1) / (2 * _CYCLE))
    spread = 1 + least - (1 - least) * angles
    order = [0]
    while len(order) < _CYCLE:
        order = [place for first in order for place in (first, 2 * len(order) - 1 - first)]
    return np.sort(2 / spread)[order]
