"""How far quantizers are from the limit: the rate-distortion curve of the weights of a real layer.

The source is the layer itself: its N pairs (w_i, h_i) with probability 1/N each. Importance is
never a probability. The limit is one for codes that treat the weights as independent symbols (fixed
length, Huffman, order-0 arithmetic codes); a coder that models context may go below it.

Conventions as in the quantizers and on the outside of the package: distortion is the *sum*
`sum h_i (w_i - c)^2` over the layer, rates are in *bits per weight*.

Axes: `S` slopes, `N` weights, `...` operational points.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxcomp.numerics.units import LN2
from jaxcomp.rate_distortion.discrete import check_slopes
from jaxcomp.rate_distortion.nested_grids import bounds_at_slopes
from jaxcomp.rate_distortion.shannon import shannon_rate

# Classes of h in which the entropy of the weights is estimated, and weights that one must hold.
_NUM_CLASSES = 8
_LEAST_IN_CLASS = 50
# A weight is far from the others beyond so many times the distance of this share of them.
_FAR, _USUAL_SHARE = 256.0, 0.95
# Of fewer weights spacings tell nothing; of more than so many their ends do not matter.
_LEAST_IN_SAMPLE, _MOST_WITH_ENDS = 10, 1000

_Array = Float[np.ndarray, "..."]


class Source(NamedTuple):
    """Pairs (w, h) with probabilities, float64.

    Attributes:
        points: (P,) w.
        importance: (P,) h.
        probabilities: (P,) shares of the weights, sum 1.
        inner_distortion: mean over weights of `h (w - point)^2`: what the histogram left out. A
            code for the pairs is one for the weights with this much more distortion.
    """

    points: Float[Any, " pairs"]
    importance: Float[Any, " pairs"]
    probabilities: Float[Any, " pairs"]
    inner_distortion: float


class LayerCurve(NamedTuple):
    """The limit for one layer, or for several together.

    Certified means: by sums that are exact but for the interpolation of c(y) between the points of
    a grid, some 1e-5 bit. Rates and distortions of large layers are interpolated, and may be off by
    1e-3 bit along the curve; no point of the curve lies below the limit that it certifies.

    Attributes:
        num_weights: N.
        slope_nats: (S,) increasing, nats per unit of distortion.
        rate_bits: (S,) per weight, an upper bound on the limit at `distortion`.
        distortion: (S,) `sum h (w - y)^2` over the N weights.
        gap_bits: (S,) per weight: how far below the limit may lie. With the rate in bits,
            `R(D') >= rate_bits - gap_bits - s / ln 2 (D' - D) / N` for every D'.
        converged: (S,) whether the gap is the one asked for.
        live_share: share of the weights with h > 0, without those that lie far from all others.
        entropy_nats: differential entropy h(W | H) of those, estimated from spacings, -infinity
            for a handful of weights or many equal ones: for the Shannon lower bound.
        mean_log_importance: E ln H of those.
    """

    num_weights: int
    slope_nats: Float[np.ndarray, " slopes"]
    rate_bits: Float[np.ndarray, " slopes"]
    distortion: Float[np.ndarray, " slopes"]
    gap_bits: Float[np.ndarray, " slopes"]
    converged: Bool[np.ndarray, " slopes"]
    live_share: float
    entropy_nats: float
    mean_log_importance: float


class Distance(NamedTuple):
    """Operational points against the limit, in bits per weight.

    Attributes:
        rate_bits: (...) of the points.
        distortion: (...) of the points.
        limit_bits: (...) certified lower bound of R(D) at the distortion: the highest of the
            tangents of all slopes, never below 0.
        curve_bits: (...) R(D) interpolated on the lower convex hull of the curve, an upper bound;
            infinity below the least distortion of the curve.
        shannon_bits: (...) Shannon lower bound as if the weights had a density.
        excess_bits: (...) `rate_bits - limit_bits`, how far above the limit.
    """

    rate_bits: _Array
    distortion: _Array
    limit_bits: _Array
    curve_bits: _Array
    shannon_bits: _Array
    excess_bits: _Array


def layer_source(
    weights: Any,
    importance: Any = None,
    *,
    max_pairs: int = 2048,
    num_importance_bins: int = 16,
) -> Source:
    """Return the weights of a layer as a source of pairs (w, h).

    Up to `max_pairs` weights every one is a pair of its own. Beyond, they are classed by h, in
    octaves down from the largest (the last class takes all below; h = 0 has one of its own), and
    each class is cut into intervals of w, half of them of equal length and half of equal number, so
    that neither the bulk nor the tails are coarse (weights far from all others are a class by
    themselves); the classes share the pairs so that the inner
    distortion is least. A cell is represented by its mean h and the mean of w weighted by h:
    whatever reproduction it gets, its distortion is that of the pair plus an inner part. Taking h
    as equal within an octave changes the curve by some 0.015 bit.

    Args:
        weights: N numbers of any shape.
        importance: h >= 0 of the same shape; None means 1.
        max_pairs: most pairs of the result.
        num_importance_bins: classes of h.

    Returns:
        The source.

    Raises:
        TypeError: if the weights are not real numbers.
        ValueError: on no weights, shapes that differ, NaN or infinity, negative importance, all
            importances 0, or fewer than 2 pairs per class.
    """
    w, h = _checked(weights, importance)
    if num_importance_bins < 1 or max_pairs < 2 * num_importance_bins:
        raise ValueError(
            "max_pairs must be at least twice num_importance_bins >= 1, got "
            f"{max_pairs} and {num_importance_bins}."
        )
    if w.size <= max_pairs:
        return Source(w, h, np.full(w.size, 1 / w.size), 0.0)
    cell = _cells(w, h, max_pairs, num_importance_bins)
    _, cell = np.unique(cell, return_inverse=True)
    count = np.bincount(cell)
    mass = np.bincount(cell, h)
    # From the first point of each cell: means of close numbers far from 0 keep their digits.
    first = np.zeros(count.size)
    first[cell[::-1]] = w[::-1]
    offset = w - first[cell]
    mean = np.bincount(cell, np.where(mass[cell] > 0, h, 1) * offset)
    points = first + mean / np.where(mass > 0, mass, count)
    inner = float(np.mean(h * (w - points[cell]) ** 2))
    return Source(points, mass / count, count / w.size, inner)


def _checked(weights, importance, *, may_vanish: bool = False) -> tuple[_Array, _Array]:
    w = np.asarray(weights)
    if not (np.issubdtype(w.dtype, np.floating) or jnp.issubdtype(w.dtype, jnp.floating)):
        raise TypeError(f"weights must be floating, got {w.dtype}.")
    w = w.astype(np.float64)
    h = np.ones(w.shape) if importance is None else np.asarray(importance).astype(np.float64)
    if h.shape != w.shape:
        raise ValueError(f"importance must have the shape of weights, {w.shape}, got {h.shape}.")
    if w.size == 0:
        raise ValueError("weights must hold at least one weight, got none.")
    for name, values in (("weights", w), ("importance", h)):
        if not np.all(np.isfinite(values)):
            bad = int(np.sum(~np.isfinite(values)))
            raise ValueError(f"{name} must be finite, got {bad} NaN or infinite of {values.size}.")
    if np.any(h < 0):
        raise ValueError(
            f"importance must be at least 0, got {h.min():g}; apply a policy for negative "
            "curvature first."
        )
    if not (may_vanish or np.any(h > 0)):
        raise ValueError(
            "importance must not be 0 throughout, since every code has distortion 0 then."
        )
    return w.ravel(), h.ravel()


def _is_near(w: _Array, h: _Array) -> np.ndarray:
    """Return which weights lie near the others; those without importance do wherever they lie.

    Mask constants and values of dead units, 10^6 times the spread and more: the scale of all others
    must not be taken from them. Far is what lies 256 times as far from the median as 19 of 20
    weights that differ from it.
    """
    is_live = h > 0
    distance = np.abs(w - np.median(w[is_live]))
    apart = distance[is_live & (distance > 0)]
    if not apart.size:
        return np.ones(w.shape, bool)
    reach = _FAR * np.quantile(apart, _USUAL_SHARE, method="lower")
    return ~is_live | (distance <= reach)


def _cells(w: _Array, h: _Array, max_pairs: int, num_classes: int) -> np.ndarray:
    """Return the cell of every weight."""
    cell = np.full(w.size, -1)
    octave = np.floor(np.log2(h.max()) - np.log2(np.where(h > 0, h, 1.0)))
    group = np.where(h > 0, np.minimum(octave, num_classes - 1), num_classes).astype(int)
    # Weights far from all others would take every interval: few get one each, many a quarter.
    is_near = _is_near(w, h)
    far = np.flatnonzero(~is_near)
    for_far = min(np.unique(w[far]).size, max_pairs // 4)
    members = [np.flatnonzero((group == index) & is_near) for index in range(num_classes)]
    members = [inside for inside in members if inside.size]
    energy = np.array([np.sum(h[i] * (w[i] - w[i].mean()) ** 2) for i in members])
    # m intervals leave a class about energy / m^2.
    share = np.cbrt(energy) / max(np.sum(np.cbrt(energy)), np.finfo(float).tiny)
    number = 1 + np.floor(share * (max_pairs - for_far - 1 - len(members))).astype(int)
    if far.size:
        members, number = [*members, far], np.append(number, for_far)
    for index, (inside, intervals) in enumerate(zip(members, number, strict=True)):
        values = w[inside]
        equal = 1 if inside is far else (intervals + 1) // 2
        edges = np.concatenate(
            [
                np.linspace(values.min(), values.max(), equal + 1)[1:-1],
                np.quantile(values, np.linspace(0, 1, intervals - equal + 2)[1:-1]),
            ]
        )
        edges = np.sort(edges)[: intervals - 1]
        if inside is far and (distinct := np.unique(values)).size <= intervals:
            edges = distinct[1:]
        cell[inside] = index * max_pairs + np.searchsorted(edges, values, side="right")
    return cell


def layer_curve(
    weights: Any,
    importance: Any = None,
    *,
    num_slopes: int = 32,
    max_bits: float = 5.0,
    slope_nats: Any = None,
    gap_bits: float = 0.02,
) -> LayerCurve:
    """Return the rate-distortion curve of the weights of one layer, however many.

    Every weight counts as it is: see `nested_grids` for how. Half a second for a layer of 65,536
    weights, some 2 for 200,000, most of it for the highest rates.

    Args:
        weights: N numbers of any shape.
        importance: h >= 0 of the same shape; None means 1.
        num_slopes: S, spaced evenly in the logarithm.
        max_bits: about the highest rate of the curve, in bits per weight.
        slope_nats: (S,) to use instead, nats per unit of `sum h (w - y)^2` over the layer; layers
            that are to be added need the same ones.
        gap_bits: certified gap to aim for, bits per weight; the cost goes up with its inverse.
            Beyond some 8 bits, and where the rate comes near log2 N, it may stay larger.

    Returns:
        The curve.

    Raises:
        TypeError: if the weights are not real numbers.
        ValueError: on no weights, shapes that differ, NaN or infinity, negative importance, all
            importances 0, slopes that are negative or not finite, `gap_bits` <= 0.
    """
    w, h = _checked(weights, importance)
    given: Any = np.zeros(1) if slope_nats is None else np.asarray(slope_nats, np.float64)
    check_slopes(given, gap_bits)
    if given.ndim != 1 or not np.all(np.isfinite(given)):
        raise ValueError(
            f"slope_nats must be a vector of finite numbers, got shape {given.shape}."
            if given.ndim != 1
            else f"slope_nats must be finite, got {np.max(given):g}."
        )
    entropy = _entropy(w, h)
    if slope_nats is None:
        given = _slopes([(w, h)], entropy, num_slopes, max_bits)
    return _curve(w, h, np.sort(given), gap_bits, entropy)


def network_curve(
    layers: Mapping[str, tuple[Any, Any]],
    *,
    num_slopes: int = 16,
    max_bits: float = 6.0,
    gap_bits: float = 0.04,
) -> LayerCurve:
    """Return the limit of a whole network whose layers have codebooks of their own.

    Args:
        layers: weights and importance h >= 0 of every layer, by name; arrays of one shape. Layers
            without any importance cost nothing and count with their weights.
        num_slopes: S, shared by all layers.
        max_bits: about the highest rate of the curve, in bits per weight of the network.
        gap_bits: certified gap to aim for, per weight of the network; small layers may have more.

    Returns:
        The curve of all weights, the rate shared out between the layers as well as can be.

    Raises:
        TypeError: see `layer_curve`.
        ValueError: see `layer_curve`; on no layers, or no importance in any of them.
    """
    network = network_source(layers, num_slopes=num_slopes, max_bits=max_bits, gap_bits=gap_bits)
    slope_nats = network.slope_nats
    curves = [
        _curve(w, h, slope_nats, gap, entropy)
        for (w, h), entropy, gap in zip(
            network.layers, network.entropies, network.gaps_bits, strict=True
        )
    ]
    dead = network.num_weights - sum(w.size for w, _ in network.layers)
    nothing = np.zeros(slope_nats.size)
    free = LayerCurve(dead, slope_nats, nothing, nothing, nothing, nothing == 0, 0.0, 0.0, 0.0)
    return add_curves([*curves, free] if dead else curves)


class NetworkSource(NamedTuple):
    """Layers of a network, and at which slopes and how closely their limit is sought.

    Attributes:
        num_weights: of all layers, those without any importance too.
        layers: w and h, (N,) float64, of the layers that have importance.
        entropies: of them.
        together: of all of them together.
        slope_nats: (S,) ascending, nats per unit of distortion.
        gaps_bits: of the layers, bits per weight.
    """

    num_weights: int
    layers: list[tuple[_Array, _Array]]
    entropies: list["Entropy"]
    together: "Entropy"
    slope_nats: Float[np.ndarray, " slopes"]
    gaps_bits: list[float]


def network_source(
    layers: Mapping[str, tuple[Any, Any]], *, num_slopes: int, max_bits: float, gap_bits: float
) -> NetworkSource:
    """Check the layers of a network and choose slopes and gaps; see `network_curve`."""
    none: Any = np.zeros(1)
    check_slopes(none, gap_bits)
    checked = [_checked(*pair, may_vanish=True) for pair in layers.values()]
    live = [(w, h) for w, h in checked if np.any(h > 0)]
    if not live:
        raise ValueError("layers must hold at least one with some importance, got none.")
    entropies = [_entropy(w, h) for w, h in live]
    number = np.array([w.size for w, _ in live], float)
    shares = number * np.array([entropy.live_share for entropy in entropies])
    together = Entropy(
        float(shares.sum() / number.sum()),
        *(float(mean) for mean in np.average([e[1:] for e in entropies], axis=0, weights=shares)),
    )
    return NetworkSource(
        num_weights=sum(w.size for w, _ in checked),
        layers=live,
        entropies=entropies,
        together=together,
        slope_nats=_slopes(live, together, num_slopes, max_bits),
        # What a small layer lacks matters little to the whole, and costs as much as in a large one.
        gaps_bits=(gap_bits * np.clip(np.sqrt(number.mean() / number), 1.0, 8.0)).tolist(),
    )


class Entropy(NamedTuple):
    """What the Shannon lower bound needs; see `LayerCurve`."""

    live_share: float
    nats: float
    mean_log_importance: float


def _curve(w: _Array, h: _Array, slopes: _Array, gap_bits: float, entropy: Entropy) -> LayerCurve:
    # The slope of the sums over N weights is that of one weight.
    found = bounds_at_slopes(w, h, slopes, gap_nats=gap_bits * LN2)
    rate = np.array([point.rate_nats for point in found])
    distortion = np.array([point.distortion for point in found])
    least = np.array([point.lagrangian_nats for point in found])
    gap = np.maximum(rate + slopes * distortion - least, 0.0) / LN2
    return LayerCurve(
        num_weights=w.size,
        slope_nats=slopes,
        rate_bits=rate / LN2,
        distortion=w.size * distortion,
        gap_bits=gap,
        converged=gap <= gap_bits,
        live_share=entropy.live_share,
        entropy_nats=entropy.nats,
        mean_log_importance=entropy.mean_log_importance,
    )


def _entropy(w: _Array, h: _Array) -> Entropy:
    """Return the share of weights with h > 0 near the others, their h(W | H) and their E ln H."""
    is_live = (h > 0) & _is_near(w, h)
    share = float(np.mean(is_live))
    w, h = w[is_live], h[is_live]
    num_classes = 1 if np.all(h == h[0]) else min(_NUM_CLASSES, max(1, w.size // _LEAST_IN_CLASS))
    classes = np.array_split(np.argsort(h, kind="stable"), num_classes)
    entropy = 0.0
    for members in classes:
        if members.size < _LEAST_IN_SAMPLE:
            return Entropy(share, -np.inf, float(np.mean(np.log(h))))
        # Equal weights have spacing 0 and no density.
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy += members.size * _entropy_of_spacings(w[members])
    return Entropy(share, entropy / w.size, float(np.mean(np.log(h))))


def _entropy_of_spacings(sample: _Array) -> float:
    """Estimate a differential entropy in nats from the distances of values some ranks apart.

    Vasicek's estimate, J. R. Stat. Soc. B 38 (1976), for few values with the weights of Ebrahimi,
    Pflughoeft and Soofi, Stat. Probab. Lett. 20 (1994), at the ends. Ten lines of NumPy: to import
    `scipy.stats` takes longer than all limits of a sweep of a small network.
    """
    ordered, number = np.sort(sample), sample.size
    reach = int(np.sqrt(number) + 0.5)
    ranks = np.arange(number)
    above, below = np.minimum(ranks + reach, number - 1), np.maximum(ranks - reach, 0)
    spacing = ordered[above] - ordered[below]
    share = (above - below) / reach if number <= _MOST_WITH_ENDS else 2.0
    return float(np.mean(np.log(number * spacing / (share * reach))))


def _slopes(
    layers: Sequence[tuple[_Array, _Array]], entropy: Entropy, num_slopes: int, max_bits: float
) -> _Array:
    """Return 0, then slopes from rates near 0 to about `max_bits`."""
    if num_slopes < 3:
        raise ValueError(f"num_slopes must be at least 3, got {num_slopes}.")
    if not (max_bits > 0 and np.isfinite(max_bits)):
        raise ValueError(f"max_bits must be a positive finite number, got {max_bits}.")
    # The layer with the most to lose is the first to get a rate.
    variance = max(_variance(w, h) for w, h in layers)
    # Of equal weights only rounding is left.
    if variance == 0 or all(np.ptp(w[h > 0]) == 0 for w, h in layers):
        return np.linspace(0.0, 1.0, num_slopes)
    near = max(_variance(w[kept], h[kept]) for w, h in layers for kept in [_is_near(w, h)])
    # Of weights far away one slope tells what leaving them out costs; the rest get the others.
    first = [0.0] if near == variance else [0.0, 0.2 / variance]
    low, high = 0.2 / near, 0.5 * 4.0**max_bits / near
    if np.isfinite(entropy.nats):
        # At high rates D = 1 / (2 s), and the Shannon lower bound is nearly met.
        exponent = 1 + 2 * LN2 * max_bits - 2 * entropy.nats - entropy.mean_log_importance
        high = max(4 * low, np.pi * np.exp(exponent))
    return np.append(first, np.geomspace(low, high, num_slopes - len(first)))


def _variance(w: _Array, h: _Array) -> float:
    return float(np.mean(h * (w - np.average(w, weights=h)) ** 2))


def add_curves(curves: Sequence[LayerCurve]) -> LayerCurve:
    """Return the limit of several layers coded together, the rate shared out as well as can be.

    At equal slopes rates and distortions add: that is the best allocation, and the tangents of the
    sum are the sums of the tangents.

    Args:
        curves: of the layers, all at the same slopes.

    Returns:
        The curve of all their weights.

    Raises:
        ValueError: on no curves, or slopes that differ.
    """
    if not curves:
        raise ValueError("curves must hold at least one curve, got none.")
    slope_nats = curves[0].slope_nats
    if any(not np.array_equal(curve.slope_nats, slope_nats) for curve in curves):
        raise ValueError(
            "curves must share their slope_nats; pass the same ones to every layer_curve."
        )
    number = np.array([curve.num_weights for curve in curves], float)
    live = number * np.array([curve.live_share for curve in curves])

    def mean(weights, values):
        # A weight of 0 silences an entropy of -infinity.
        silenced = np.array(values, float)
        silenced[weights == 0] = 0
        return np.tensordot(weights / weights.sum(), silenced, axes=1)

    return LayerCurve(
        num_weights=int(number.sum()),
        slope_nats=slope_nats,
        rate_bits=mean(number, [curve.rate_bits for curve in curves]),
        distortion=np.sum([curve.distortion for curve in curves], axis=0),
        gap_bits=mean(number, [curve.gap_bits for curve in curves]),
        converged=np.all([curve.converged for curve in curves], axis=0),
        live_share=float(live.sum() / number.sum()),
        entropy_nats=float(mean(live, [curve.entropy_nats for curve in curves])),
        mean_log_importance=float(mean(live, [curve.mean_log_importance for curve in curves])),
    )


def distance_to_limit(curve: LayerCurve, rate_bits: Any, distortion: Any) -> Distance:
    """Return how far operational points lie above the limit.

    Args:
        curve: of the layer, or of several (`add_curves`).
        rate_bits: (...) of the points, bits per weight. For the entropy of a quantizer's own
            assignments the distance is never negative.
        distortion: (...) of the points, `sum h (w - c)^2` over all weights of the curve.

    Returns:
        The points and the limits at their distortions, ready for a table or a plot.

    Raises:
        ValueError: if the shapes do not broadcast, or a distortion is negative or NaN.
    """
    try:
        rate, cost = np.broadcast_arrays(
            np.asarray(rate_bits, np.float64), np.asarray(distortion, np.float64)
        )
    except ValueError:
        raise ValueError(
            "rate_bits and distortion must broadcast, got shapes "
            f"{np.shape(rate_bits)} and {np.shape(distortion)}."
        ) from None
    if np.any(~(cost >= 0)):
        raise ValueError(f"distortion must be at least 0, got {np.min(cost):g}.")
    per_weight = curve.distortion / curve.num_weights
    limit = lower_envelope(
        curve.rate_bits - curve.gap_bits,
        per_weight,
        curve.slope_nats / LN2,
        cost / curve.num_weights,
    )
    live = cost / curve.num_weights / curve.live_share
    per_live: Any = live
    shannon = shannon_rate(curve.entropy_nats, per_live, curve.mean_log_importance)
    return Distance(
        rate_bits=rate,
        distortion=cost,
        limit_bits=limit,
        curve_bits=upper_hull(curve.rate_bits, per_weight, cost / curve.num_weights),
        shannon_bits=curve.live_share * np.asarray(shannon, np.float64) / LN2,
        excess_bits=rate - limit,
    )


def lower_envelope(
    rate: Float[np.ndarray, " slopes"],
    distortion: Float[np.ndarray, " slopes"],
    slope_nats: Float[np.ndarray, " slopes"],
    query: _Array,
) -> _Array:
    """Return the highest of the tangents `rate - s (D - distortion)` at D = query, at least 0."""
    tangents = rate - slope_nats * (query[..., None] - distortion)
    return np.maximum(np.max(tangents, axis=-1), 0.0)


def upper_hull(
    rate: Float[np.ndarray, " slopes"], distortion: Float[np.ndarray, " slopes"], query: _Array
) -> _Array:
    """Return the lower convex hull of achievable points at D = query.

    Between any two points time sharing achieves their chord, and more distortion is always
    allowed: the hull is the least of all chords and of all points to the left. Infinity to the
    left of all points.
    """
    order = np.argsort(distortion, kind="stable")
    x, y = distortion[order], rate[order]
    left, right = x[:, None], x[None, :]
    width = right - left
    share = (query[..., None, None] - left) / np.where(width > 0, width, 1.0)
    inside = (width > 0) & (share >= 0) & (share <= 1)
    chords = np.where(inside, y[:, None] + share * (y[None, :] - y[:, None]), np.inf)
    points = np.where(x <= query[..., None], y, np.inf)
    return np.minimum(np.min(chords, axis=(-2, -1)), np.min(points, axis=-1))
