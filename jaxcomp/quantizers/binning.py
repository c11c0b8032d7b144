"""Which bins: rules that say in which bin a value goes, made from what is known of the values.

The density of a sample gives the first ones: its cube root says how many bins a region needs
(Panter and Dite, Proc. IRE 39, 1951). Where values lie on very different scales (one weight of 1e30
among weights of 1) a single bin holds nearly all the variance then: it is cut again, by the same
rule, between its own extremes, until no region has more of the variance than its share. Ordinary
layers need no such round.

A rule is made apart from filling the bins: it is a small table, and holds for points that were not
there when it was made.

Axes: `groups`, `N` points, `B` bins.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.numerics import across
from jaxcomp.numerics.scaling import group_exponent, normalise, restore
from jaxcomp.numerics.sums import pairwise_sum, running_maximum, running_sum
from jaxcomp.quantizers.bins import BinSums, PointBins, counts_of_first, sums_of_bins

# Share of the bins that is spread evenly over the range, whatever the density.
_EQUAL_SHARE = 0.1
# At least this many points, and points per bin, give the density that bins follow.
_DENSITY_POINTS = 1 << 17
_DENSITY_PER_BIN = 8
# At most every so manieth point.
_MOST_STRIDE = 8
# Points that give centre and spread of the first cells.
FEW = 64
_BITS_OF_ONE = 127 << 23
# So many times their spread points may be away from 0 for sums of their squares.
_NEAR = 16.0
# Places of a linear scale.
_LOG2_PLACES = 30
# Neighbouring bins whose variance is compared with that of the others, and by what factor the
# whole may be above what the best bins would leave.
_BLOCK = 16
MOST_EXCESS = 4.0
# With at most this share of the bins in use every distinct value gets one.
_SPARSE_SHARE = 0.25
MOST_ROUNDS = 40


class _Round(NamedTuple):
    """What the bins of one round are, and whether a group needs another."""

    bin_of: Int[Array, "groups points"]
    sums: BinSums
    is_pending: Bool[Array, " groups"]
    root: Float[Array, " groups"]
    number: Int[Array, ""]


def bins_of_points(
    points: Float[Array, "groups points"],
    weights: Float[Array, "groups points"] | None,
    index: Int[Array, "groups points"],
    *,
    num_bins: int,
    num_padding: Int[Array, ""] | None = None,
    most_excess: float = MOST_EXCESS,
) -> tuple[Int[Array, "groups points"], BinSums]:
    """Cut bins again where the data are on another scale than the bins, in rounds.

    Every histogram of many points is made of these bins. Where there are at most `num_bins / 4`
    distinct values each has a bin of its own.

    Args:
        points: (groups, N) in units.
        weights: (groups, N) in units, or None.
        index: (groups, N), a first bin of every point, which never falls as the point rises.
        num_bins: B, static.
        num_padding: as in `histogram_moments`.
        most_excess: by what factor the variance within bins may be above the least possible.

    Returns:
        (groups, N) bins, and the sums over them.
    """

    def measured(index: Array, before: _Round | None) -> _Round:
        sums = sums_of_bins(points, weights, PointBins.of(index, num_bins), num_padding)
        is_pending, root = needs_cut(
            sums, None if before is None else before.root, most_excess=most_excess
        )
        if before is None:
            return _Round(index, sums, is_pending, root, jnp.int32(1))
        return _Round(index, sums, is_pending & before.is_pending, root, before.number + 1)

    def cut(state: _Round) -> _Round:
        # Groups that need no further round keep their bins.
        bins = PointBins.of(state.bin_of, num_bins)
        new = CutBins.of(state.sums, bins.maximum(points)).bins_of(points, bins)
        return measured(jnp.where(state.is_pending[:, None], new, state.bin_of), state)

    # The first round is outside: in the loop the same sums take twice the time.
    found = lax.while_loop(
        lambda state: jnp.any(state.is_pending) & (state.number < MOST_ROUNDS),
        cut,
        measured(index, None),
    )
    return found.bin_of, found.sums


def needs_cut(
    sums: BinSums, root_before: Float[Array, " groups"] | None, *, most_excess: float
) -> tuple[Bool[Array, " groups"], Float[Array, " groups"]]:
    """Return whether bins should be cut again, and the root of the variance within them.

    Args:
        sums: over the bins.
        root_before: of the bins that these were cut from; None if they are the first ones.
        most_excess: by what factor the variance within bins may be above the least possible.
    """
    excess, root, occupied = _unevenness(sums)
    is_sparse = _is_sparse(occupied, sums.mass.shape[-1]) & (root > 0)
    is_uneven = excess > most_excess
    if root_before is not None:
        is_uneven = is_uneven & (root < 0.9 * root_before)
    return is_uneven | is_sparse, root


def _is_sparse(num_occupied: Int[Array, "..."], num_bins: int) -> Bool[Array, "..."]:
    """Return whether every bin in use can be cut in two, and lie apart."""
    return num_occupied <= int(_SPARSE_SHARE * num_bins)


def _unevenness(
    sums: BinSums,
) -> tuple[Float[Array, " groups"], Float[Array, " groups"], Int[Array, " groups"]]:
    """Return the inner variance over what the best bins would leave, its root, bins in use.

    The best bins all have the same share of the variance: `(sum of cube roots)^3 / B^2` is what
    they leave. Taken over blocks of bins, since single bins of few points scatter.
    """
    # The root is the cube root of the variance: the variance itself may be out of range.
    root = jnp.cbrt(sums.mass) * jnp.square(jnp.cbrt(sums.deviation))
    largest = jnp.max(root, axis=-1)
    unit = jnp.where(largest > 0, largest, 1)
    share = root / unit[:, None]
    num_bins = share.shape[-1]
    block = min(_BLOCK, num_bins)
    share = jnp.pad(share, [(0, 0), (0, -num_bins % block)]).reshape(share.shape[0], -1, block)
    of_block = jnp.sum(share * share * share, axis=-1)
    variance = jnp.sum(of_block, axis=-1)
    best = jnp.sum(jnp.cbrt(of_block), axis=-1)
    excess = variance * (of_block.shape[-1] ** 2) / jnp.where(best > 0, best * best * best, 1)
    num_occupied = jnp.sum(sums.num_points > 0, axis=-1, dtype=jnp.int32)
    return excess, jnp.cbrt(variance) * largest, num_occupied


class CutBins(NamedTuple):
    """New bins within old ones: in each as many as its variance asks for, evenly.

    A bin that lies far from the one below begins a new one, whatever its share; neighbours that
    are close may be joined. While few bins are in use none are joined, and each of two values or
    more is cut.

    Attributes:
        lowest: (groups, B), the smallest point of the old bin; -inf without points.
        slope: (groups, B), new bins per unit.
        begin: (groups, B), the first new bin of the old one, a fraction.
        end: (groups, B), likewise, the end.
    """

    lowest: Float[Array, "groups bins"]
    slope: Float[Array, "groups bins"]
    begin: Float[Array, "groups bins"]
    end: Float[Array, "groups bins"]

    @classmethod
    def of(cls, sums: BinSums, highest: Float[Array, "groups bins"]) -> "CutBins":
        """Cut bins by their sums; `highest` is the largest point of each."""
        num_bins = sums.mass.shape[-1]
        is_occupied = sums.num_points > 0
        is_sparse = _is_sparse(jnp.sum(is_occupied, axis=-1, keepdims=True), num_bins)
        lowest = jnp.where(is_occupied, sums.lowest, -jnp.inf)
        highest = jnp.where(is_occupied, highest, -jnp.inf)
        width = jnp.where(is_occupied, highest - lowest, 0)
        before = running_maximum(
            jnp.pad(highest[:, :-1], [(0, 0), (1, 0)], constant_values=-jnp.inf).T
        )
        # Of the occupied bin below, the width; 0 for none.
        place = jnp.arange(num_bins, dtype=jnp.int32)[None, :]
        last = running_maximum(jnp.where(is_occupied, place, -1).T).T
        last = jnp.pad(last[:, :-1], [(0, 0), (1, 0)], constant_values=-1)
        width_before = jnp.take_along_axis(width, jnp.maximum(last, 0), axis=-1)
        gap = lowest - before.T
        is_apart = is_occupied & (last >= 0)
        is_apart = is_apart & (is_sparse | (gap > 4 * jnp.maximum(width, width_before)))
        least = jnp.where(is_sparse & (width > 0), 1.5, jnp.zeros((), width.dtype))
        taken = pairwise_sum(is_apart.astype(width.dtype) + least)[:, None]
        need = jnp.cbrt(sums.mass) * jnp.square(jnp.cbrt(width))
        unit = jnp.max(need, axis=-1, keepdims=True)
        need = need / jnp.where(unit > 0, unit, 1)
        total = pairwise_sum(need)[:, None]
        length = least + need * ((num_bins - 1 - taken) / jnp.where(total > 0, total, 1))
        ends = running_sum((length + is_apart.astype(length.dtype)).T)
        # Sums in a tree: rounding may let one fall.
        ends = running_maximum(ends).T
        begins = jnp.pad(ends[:, :-1], [(0, 0), (1, 0)]) + is_apart.astype(ends.dtype)
        slope = length / jnp.where(width > 0, width, 1)
        slope = jnp.where(jnp.isfinite(slope), slope, 0)
        return cls(lowest, slope, begins, jnp.maximum(ends, begins))

    def bins_of(
        self, points: Float[Array, "groups points"], bins: PointBins
    ) -> Int[Array, "groups points"]:
        """Return the new bin of every point, given the old one."""
        begin, end = bins.look_up(self.begin), bins.look_up(self.end)
        # Not beyond the end of the bin, where the next one begins: bins must not overlap.
        inside = (points - bins.look_up(self.lowest)) * bins.look_up(self.slope)
        index = jnp.minimum(begin + inside, end).astype(jnp.int32)
        return jnp.clip(index, 0, bins.num_bins - 1)

    def in_order(self) -> "CutBins":
        """Return the old bins that have points, in order, before those that have none."""
        key = jnp.where(jnp.isfinite(self.lowest), self.lowest, jnp.inf)
        ordered = lax.sort((key, *self[1:]), dimension=1, num_keys=1)
        return CutBins(*ordered)

    def bins_of_values(self, points: Float[Array, "groups points"]) -> Int[Array, "groups points"]:
        """Return the new bin of points of whatever old bin; the rule must be `in_order`."""
        search = jax.vmap(lambda lowest, own: jnp.searchsorted(lowest, own, side="right"))
        old = jnp.maximum(search(self.lowest, points).astype(jnp.int32) - 1, 0)
        return self.bins_of(points, PointBins.of(old, self.lowest.shape[-1]))


def bins_by_density(
    points: Float[Array, "groups points"],
    weights: Float[Array, "groups points"] | None,
    minimum: Float[Array, " groups"],
    maximum: Float[Array, " groups"],
    num_bins: int,
    num_padding: Int[Array, ""] | None,
) -> Int[Array, "groups points"]:
    """Return the bin of every point, which never falls as the point rises; see `DensityBins`.

    Of large groups every n-th point is enough for it.
    """
    rule, _ = density_of_every(
        points, weights, minimum, maximum, num_bins=num_bins, num_padding=num_padding
    )
    return rule.bins_of(points, num_bins)


def density_of_every(
    points: Float[Array, "groups points"],
    weights: Float[Array, "groups points"] | None,
    minimum: Float[Array, " groups"],
    maximum: Float[Array, " groups"],
    *,
    num_bins: int,
    num_padding: Int[Array, ""] | None,
    units: tuple[Int[Array, " groups"], Int[Array, " groups"]] | None = None,
) -> tuple["DensityBins", Float[Array, "groups few"]]:
    """Return the bins that follow the density of every n-th point, and some 64 points.

    Args:
        points: in units, or as they come if `units` says what these are.
        weights: likewise, or None.
        minimum: of all points, in units.
        maximum: likewise.
        num_bins: B.
        num_padding: as in `histogram_moments`.
        units: exponents of points and weights; None if they are in units already.
    """
    num_points = across.number_of_points(points.shape[-1])
    stride = min(_MOST_STRIDE, max(1, num_points // density_points(num_bins)))
    number = None
    if weights is None and num_padding is not None:
        number = (num_points - num_padding + stride - 1) // stride
    some, own = _every(points, weights, stride)
    few = across.every(points, max(1, num_points // FEW))
    if units is not None:
        some, few = normalise(some, units[0]), normalise(few, units[0])
        own = None if own is None else normalise(own, units[1])
    rule = DensityBins.of(
        some,
        own,
        few,
        minimum,
        maximum,
        num_bins=num_bins,
        num_sampled=number,
        is_part=stride > 1,
    )
    return rule, few


def middle_of(few: Float[Array, "1 few"]) -> Float[Array, ""]:
    """Return a point from which most others are not far, compared with each other: 0 if it is one.

    Args:
        few: some of the points of one group, in units.
    """
    scale = _Logarithmic.of(few)
    is_near = jnp.abs(scale.centre) * scale.per_unit <= _NEAR
    return jnp.where(is_near, 0, scale.centre)[0, 0]


def _every(
    points: Float[Array, "groups points"],
    weights: Float[Array, "groups points"] | None,
    stride: int,
) -> tuple[Float[Array, "groups sampled"], Float[Array, "groups sampled"] | None]:
    """Return every n-th point that this device has, and its weight."""
    own = points.shape[-1]
    if own % stride == 0 or not across.axes_of_points():
        return points[:, ::stride], None if weights is None else weights[:, ::stride]
    place = across.first_place(own) + jnp.arange(own, dtype=jnp.int32)
    is_sampled = jnp.broadcast_to((place % stride == 0).astype(points.dtype), points.shape)
    return points, is_sampled if weights is None else is_sampled * weights


def density_points(num_bins: int) -> int:
    """Return how many points are enough for the density that so many bins follow."""
    return max(_DENSITY_POINTS, _DENSITY_PER_BIN * num_bins)


class DensityBins(NamedTuple):
    """Bins that follow the cube root of the density of mass, as the cells of the best quantizer do.

    A first histogram, of a sample, gives the density. If the sample is a part of the points its
    cells are even around the median and wider in proportion further out: of equal ones ten million
    Student-t weights (3 degrees of freedom) would fill a few, and the variance within the bins
    would be 3 to 5 times as large. Of small groups the bins are the same in whatever order the
    points come.

    Attributes:
        scale: of the cells.
        low: (groups, 1) int32, place of the smallest point on the scale.
        high: (groups, 1) int32, of the largest one.
        shift: (groups, 1) int32: a cell has `2^shift` places.
        begin: (groups, cells), the first bin of a cell, a fraction.
        end: (groups, cells), likewise, the end.
    """

    scale: "_Linear | _Logarithmic"
    low: Int[Array, "groups 1"]
    high: Int[Array, "groups 1"]
    shift: Int[Array, "groups 1"]
    begin: Float[Array, "groups cells"]
    end: Float[Array, "groups cells"]

    @classmethod
    def of(
        cls,
        some: Float[Array, "groups sampled"],
        weights: Float[Array, "groups sampled"] | None,
        few: Float[Array, "groups few"],
        minimum: Float[Array, " groups"],
        maximum: Float[Array, " groups"],
        *,
        num_bins: int,
        num_sampled: Int[Array, ""] | None,
        is_part: bool,
    ) -> "DensityBins":
        """Make the rule of a sample.

        Args:
            some: the sample.
            weights: of the sample, or None.
            few: some 64 points, for centre and spread.
            minimum: of all points.
            maximum: likewise.
            num_bins: B.
            num_sampled: how many points of the sample count, the first ones; None for all. Not
                read where there are weights: theirs are 0.
            is_part: whether there are points beside the sample.
        """
        scale = _Logarithmic.of(few) if is_part else _Linear.of(minimum, maximum)
        low, high = scale.place(minimum[:, None]), scale.place(maximum[:, None])
        # A power of two of places is a cell; there are enough for at least `num_bins` to be in use.
        log2_cells = (num_bins - 1).bit_length() + is_part
        num_cells = 1 << log2_cells
        shift = jnp.maximum(32 - log2_cells - lax.clz(high - low), 0)
        sample = PointBins.of(_cell_of(scale.place(some) - low, shift), num_cells)
        if weights is not None:
            mass = sample.sum(weights).astype(jnp.float32)
        elif num_sampled is not None:
            mass = sample.sum(counts_of_first(some, num_sampled))
        else:
            mass = sample.count().astype(jnp.float32)
        largest = jnp.max(mass, axis=-1, keepdims=True)
        mass = mass / jnp.where(largest > 0, largest, 1)
        if is_part:
            # Half of it spread over neighbours: in a tail most cells have no point of the sample.
            blocks = mass.reshape(mass.shape[0], -1, min(2 * _BLOCK, num_cells))
            even = jnp.broadcast_to(jnp.mean(blocks, axis=-1, keepdims=True), blocks.shape)
            mass = 0.5 * mass + 0.5 * even.reshape(mass.shape)
        length = (high - low).astype(jnp.float32)
        one = lax.shift_left(jnp.ones_like(shift), shift).astype(jnp.float32)
        begins = jnp.arange(num_cells + 1, dtype=jnp.float32)[None, :] * one
        border = scale.value(low.astype(jnp.float32) + jnp.minimum(begins, length))
        need = jnp.cbrt(mass) * jnp.square(jnp.cbrt(border[:, 1:] - border[:, :-1]))
        total = pairwise_sum(need)[:, None]
        is_inside = (begins[:, :-1] <= length).astype(jnp.float32)
        # A small part stays equal, for regions that matter little but are many.
        share = (1 - _EQUAL_SHARE) * need / jnp.where(total > 0, total, 1)
        share = share + _EQUAL_SHARE * is_inside / pairwise_sum(is_inside)[:, None]
        edge = running_sum(share.T).T
        edge = edge * (num_bins / edge[:, -1:])
        # Sums in a tree: rounding may let one fall.
        edge = running_maximum(edge.T).T
        start = jnp.pad(edge[:, :-1], [(0, 0), (1, 0)])
        return cls(scale, low, high, shift, start, edge)

    def bins_of(
        self, points: Float[Array, "groups points"], num_bins: int
    ) -> Int[Array, "groups points"]:
        """Return the bin of every point between the extremes."""
        one = lax.shift_left(jnp.ones_like(self.shift), self.shift)

        def spread_out(points: Array) -> Array:
            place = self.scale.place(points) - self.low
            cells = PointBins.of(_cell_of(place, self.shift), self.begin.shape[-1])
            begin, end = cells.look_up(self.begin), cells.look_up(self.end)
            inside = (place & (one - 1)).astype(jnp.float32)
            # Not beyond the end of the cell, where the next one begins: bins must not overlap.
            per_place = 1 / one.astype(jnp.float32)
            index = jnp.minimum(begin + inside * per_place * (end - begin), end)
            return jnp.minimum(index, num_bins - 1).astype(jnp.int32)

        # A branch, so that it is computed once: what XLA can fuse it computes for each reader.
        return lax.cond(
            jnp.all(self.high == self.low),
            lambda points: jnp.zeros(points.shape, jnp.int32),
            spread_out,
            points,
        )


def _cell_of(place: Int[Array, "groups points"], shift: Int[Array, "groups 1"]) -> Array:
    return lax.shift_right_logical(place, jnp.broadcast_to(shift, place.shape))


class _Linear(NamedTuple):
    """A scale that is even between the extremes.

    Attributes:
        minimum: (groups, 1).
        per_unit: (groups, 1), places per unit; 0 without a range.
    """

    minimum: Float[Array, "groups 1"]
    per_unit: Float[Array, "groups 1"]

    @classmethod
    def of(cls, minimum: Float[Array, " groups"], maximum: Float[Array, " groups"]) -> "_Linear":
        """Take the range of every group."""
        per_unit = 2.0**_LOG2_PLACES / (maximum - minimum)
        per_unit = jnp.where(jnp.isfinite(per_unit), per_unit, 0)
        return cls(minimum[:, None], per_unit[:, None])

    def place(self, points: Float[Array, "groups points"]) -> Int[Array, "groups points"]:
        """Return int32 from 0 to 2^30 - 1 that never falls as the point rises."""
        place = ((points - self.minimum) * self.per_unit).astype(jnp.int32)
        return jnp.minimum(place, (1 << _LOG2_PLACES) - 1)

    def value(self, place: Float[Array, "groups places"]) -> Float[Array, "groups places"]:
        """Return the distance from the minimum at a place, in places."""
        return place


class _Logarithmic(NamedTuple):
    """A scale that is even near a centre and nearly logarithmic further out, to both sides.

    With y the distance in units of the spread, the place is the logarithm of 1 + y, linear between
    powers of two: the bits of that float32, read as an integer, which is the quickest way to it.

    Attributes:
        centre: (groups, 1).
        per_unit: (groups, 1), the inverse of the spread, a power of two: no product is rounded,
            whether or not the sum is fused with it.
    """

    centre: Float[Array, "groups 1"]
    per_unit: Float[Array, "groups 1"]

    @classmethod
    def of(cls, points: Float[Array, "groups points"]) -> "_Logarithmic":
        """Take median and median distance from a few points; both matter up to a factor of 2."""
        few = jnp.sort(points, axis=-1)
        centre = few[:, few.shape[-1] // 2][:, None]
        distance = jnp.abs(few - centre)
        is_apart = distance > 0
        distance = jnp.sort(jnp.where(is_apart, distance, jnp.inf), axis=-1)
        middle = jnp.sum(is_apart, axis=-1, keepdims=True, dtype=jnp.int32) // 2
        spread = jnp.take_along_axis(distance, jnp.maximum(middle - 1, 0), axis=-1)
        spread = jnp.where(jnp.isfinite(spread), spread, 1)
        # No distance, 2^66 at most, gets out of range.
        exponent = jnp.maximum(group_exponent(spread), -60)
        return cls(centre, restore(jnp.ones_like(centre), -exponent))

    def place(self, points: Float[Array, "groups points"]) -> Int[Array, "groups points"]:
        """Return int32 that never falls as the point rises, 0 at the centre."""
        distance = ((points - self.centre) * self.per_unit).astype(jnp.float32)
        bits = lax.bitcast_convert_type(1 + jnp.abs(distance), jnp.int32) - _BITS_OF_ONE
        return jnp.where(distance < 0, -bits, bits)

    def value(self, place: Float[Array, "groups places"]) -> Float[Array, "groups places"]:
        """Return the distance from the centre at a place, signed, in units of the spread."""
        bits = jnp.abs(place).astype(jnp.int32) + _BITS_OF_ONE
        return jnp.copysign(lax.bitcast_convert_type(bits, jnp.float32) - 1, place)
