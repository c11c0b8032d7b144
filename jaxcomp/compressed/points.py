"""Operating points of the tensors of a tree that keep to a budget, by what their codes need."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from jaxcomp.compressed.budgets import Budget, choose, least_of
from jaxcomp.compressed.rate_control import largest_under
from jaxcomp.compressed.selected import Tensor
from jaxcomp.compressed.spending import Spending
from jaxcomp.compressed.tensors import CompressedTensor, size_of
from jaxcomp.compressed.together import AskedLeaf, curves_together, points_together
from jaxcomp.compressed.workers import ALONE, Workers
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.methods import Method
from jaxcomp.trees.paths import shorten

_Asked = TypeVar("_Asked")
_Result = TypeVar("_Result")

# How often a choice is repeated to keep to a budget that the first one missed.
_MOST_CHOICES = 6
# A choice that uses this share of a budget is not repeated to use more.
_SPENT = 0.99
# One that uses less than this share of the bits is made finer between its points, in so many
# trials, each of which may halve what a bit is worth four times.
_WASTED, _MOST_TRIALS, _MOST_HALVINGS = 0.985, 5, 4.0


def own_parameters(tensors: list[Tensor], *, shared: bool) -> list[Any]:
    """Return the methods' own parameters; where they have none, their defaults."""
    parameters: list[Any] = [tensor.method.parameter for tensor in tensors]
    families: dict[Method, list[int]] = {}
    for place, tensor in enumerate(tensors):
        if tensor.method.parameter is None:
            families.setdefault(tensor.method.family(), []).append(place)
    for method, places in families.items():
        layers = np.asarray([len(tensors[place].problems) for place in places])
        sizes = np.asarray([tensors[place].num_weights for place in places]) // layers
        own = method.defaults(sizes, layers) if shared else [method.default] * len(places)
        for place, parameter in zip(places, own, strict=True):
            parameters[place] = parameter
    return parameters


def with_curves(
    tensors: Sequence[Tensor],
    parameters: Sequence[np.ndarray],
    then: Callable[[Tensor, list[Curve]], _Result],
    workers: Workers | None = None,
) -> Iterator[_Result]:
    """Yield what becomes of every tensor and its curves, in order.

    Args:
        tensors: to visit.
        parameters: of the points of each.
        then: `(tensor, curves of its layers) -> result`.
        workers: who visits them, one by one and no more at a time than may be in memory; None if
            all are, so that those of one method may be solved together.
    """
    return _each(
        tensors,
        parameters,
        curves_together,
        lambda tensor, own: tensor.curves(own),
        then,
        workers,
    )


def with_points(
    tensors: Sequence[Tensor],
    parameters: Sequence[Any],
    then: Callable[[Tensor, list[Point]], _Result],
    workers: Workers | None = None,
) -> Iterator[_Result]:
    """Yield what becomes of every tensor and the points of its layers at a parameter, likewise."""
    return _each(
        tensors,
        parameters,
        points_together,
        lambda tensor, own: tensor.points(own),
        then,
        workers,
    )


def _each(
    tensors: Sequence[Tensor],
    parameters: Sequence[Any],
    find_together: Callable[[Sequence[AskedLeaf]], Iterator[_Asked]],
    find_alone: Callable[[Tensor, Any], _Asked],
    then: Callable[[Tensor, _Asked], _Result],
    workers: Workers | None,
) -> Iterator[_Result]:
    """Yield what becomes of every tensor and what is found of it at its parameters, in order.

    What finds one alone asks the tensor: one of a spool has methods of its own.
    """
    pairs = list(zip(tensors, parameters, strict=True))
    if workers is None:
        asked = [tensor.asked(own) for tensor, own in pairs]
        return map(then, tensors, find_together(asked))
    return workers.each(
        lambda pair: then(pair[0], find_alone(*pair)),
        pairs,
        [tensor.num_bytes for tensor in tensors],
    )


def points_within(
    tensors: Mapping[int, Tensor],
    budget: Budget,
    spending: Spending,
    report: Callable[[int, int, str], None],
    *,
    is_relative: bool,
    workers: Workers | None = None,
) -> dict[int, CompressedTensor]:
    """Apply the points that keep to a budget, by what the codes really cost.

    Args:
        tensors: by number of the leaf.
        budget: a limit in bits of the tensors, or in distortion.
        spending: what tensors need of it.
        report: of progress.
        is_relative: whether the error of every layer counts relative to the squares of its weights.
        workers: see `with_curves`.
    """
    if not tensors:
        return {}
    numbers, total = list(tensors), 3 * len(tensors)
    own = list(tensors.values())
    curves, energies = [], []
    measured = with_curves(
        own,
        [tensor.candidates() for tensor in own],
        lambda tensor, found: (found, tensor.energies() if is_relative else [1.0]),
        workers,
    )
    for done, tensor in enumerate(own):
        report(done, total, shorten(tensor.paths, 1))
        curve, energy = next(measured)
        curves.append(curve)
        energies.append(np.asarray(energy))
    places = choose(*rates_and_costs(own, curves, energies), budget).tolist()
    between = {
        number: parameters
        for number, tensor in enumerate(own)
        if (parameters := tensor.between(curves[number], places[number])) is not None
    }
    closer = with_curves(
        [own[number] for number in between],
        list(between.values()),
        lambda _, found: found,
        workers,
    )
    found = list(curves)
    for number in between:
        report(len(own) + number, total, shorten(own[number].paths, 1))
        pairs = zip(curves[number], next(closer), strict=True)
        found[number] = [coarse.and_points_of(fine) for coarse, fine in pairs]
    choice = _Choice(own, found, energies, budget, spending, numbers, workers)
    for _ in range(_MOST_CHOICES):
        if choice.step(report):
            break
    choice.use_up()
    return choice.result()


class _Found(NamedTuple):
    """A choice that keeps to the budget.

    Attributes:
        reached: bits of the tensors, or distortion, whichever has a limit.
        other: the other of both.
        leaves: the tensors compressed.
        places: of their points on the curves.
    """

    reached: float
    other: float
    leaves: list[CompressedTensor]
    places: list[int]


class _Choice:
    """A choice of points that is repeated with what the ones before really cost."""

    def __init__(
        self,
        tensors: Sequence[Tensor],
        curves: Sequence[Sequence[Curve]],
        energies: Sequence[Float[np.ndarray, " layers"]],
        budget: Budget,
        spending: Spending,
        numbers: Sequence[int],
        workers: Workers | None,
    ) -> None:
        self._tensors, self._curves, self._energies = tensors, curves, energies
        self._budget, self._spending, self._numbers = budget, spending, numbers
        self._workers = workers
        self._promised = rates_and_costs(tensors, curves, energies)
        self._rates, self._costs = ([own.copy() for own in part] for part in self._promised)
        self._applied: dict[tuple[int, int], CompressedTensor] = {}
        self._best: _Found | None = None
        self._aim, self._nearest = budget.limit, math.inf

    def step(self, report: Callable[[int, int, str], None]) -> bool:
        """Choose and apply once more; return whether that is good enough."""
        budget = self._budget
        is_least = self._aim <= least_of(self._rates, self._costs, budget)
        places = choose(self._rates, self._costs, budget.at(self._aim)).tolist()
        new = [pair for pair in enumerate(places) if pair not in self._applied]
        coded = (self._workers or ALONE).each(
            self._coded, new, [self._tensors[number].num_bytes for number, _ in new]
        )
        for number, place in new:
            report(
                2 * len(self._tensors) + number,
                3 * len(self._tensors),
                shorten(self._tensors[number].paths, 1),
            )
            self._apply(number, place, *next(coded))
        found = [self._applied[number, place] for number, place in enumerate(places)]
        lost = math.fsum(own[place] for own, place in zip(self._costs, places, strict=True))
        if budget.bits is not None:
            reached, other = self._spent(found), lost
        else:
            reached, other = (
                lost,
                math.fsum(own[place] for own, place in zip(self._rates, places, strict=True)),
            )
        self._nearest = min(self._nearest, reached)
        if reached <= budget.limit * (1 + 1e-9):
            if self._best is None or other < self._best.other:
                self._best = _Found(reached, other, found, places)
            # Points that nothing lies between may leave more.
            if reached >= _SPENT * budget.limit:
                return True
            self._aim = budget.limit
        else:
            # Fine points use a budget up, and what they cost scatters: a little less then.
            self._aim *= max(1 - 2 * (reached / budget.limit - 1), 0.2)
            return is_least
        return False

    def use_up(self) -> None:
        """Make the best choice finer, by one factor for all slopes, if it leaves bits unused.

        Of few tensors and at few bits points are far apart in bits, however near their parameters.
        """
        best, limit = self._best, self._budget.limit
        if self._budget.bits is None or best is None or best.reached >= _WASTED * limit:
            return
        chosen = [
            own[0].parameter[place] for own, place in zip(self._curves, best.places, strict=True)
        ]
        is_fluid = [
            len(own[0].parameter) > 1 and tensor.method.between(own[0].parameter, place) is not None
            for tensor, own, place in zip(self._tensors, self._curves, best.places, strict=True)
        ]
        if not any(is_fluid):
            return

        fluid = [number for number, own in enumerate(is_fluid) if own]

        def try_at(halvings: float) -> tuple[float, list[CompressedTensor]]:
            finer = with_points(
                [self._tensors[number] for number in fluid],
                [float(chosen[number]) * 0.5**halvings for number in fluid],
                lambda tensor, points: tensor.apply(points),
                self._workers,
            )
            found = list(best.leaves)
            for number, leaf in zip(fluid, finer, strict=True):
                found[number] = leaf
            return self._spent(found), found

        start = 2 * math.log2(limit / best.reached)
        trial = largest_under(
            try_at,
            0.0,
            _MOST_HALVINGS,
            limit,
            start=start,
            slope=0.5,
            spent=_SPENT,
            max_trials=_MOST_TRIALS,
        )
        if trial is not None and trial.size > best.reached:
            self._best = best._replace(reached=trial.size, leaves=trial.result)

    def result(self) -> dict[int, CompressedTensor]:
        """Return the best of all choices.

        Raises:
            ValueError: if none kept to the budget: the message says what would.
        """
        budget = self._budget
        if self._best is None:
            unit = "bits of the compressed tensors" if budget.bits is not None else "distortion"
            raise ValueError(
                f"{budget.name} = {budget.value:g} allows {budget.limit:.6g} {unit}, but these "
                f"methods need {self._nearest:.6g} at least; allow more, or leave the methods' "
                "parameters open."
            )
        return dict(zip(self._numbers, self._best.leaves, strict=True))

    def _spent(self, found: Sequence[CompressedTensor]) -> float:
        layouts = (tensor.layout for tensor in self._tensors)
        stored = zip(found, layouts, strict=True)
        return self._spending.of_all(dict(zip(self._numbers, stored, strict=True)))

    def _coded(self, pair: tuple[int, int]) -> tuple[CompressedTensor, float]:
        """Return a tensor at a point of its curve, and its bits."""
        number, place = pair
        tensor = self._tensors[number]
        leaf = tensor.apply([own.at(place) for own in self._curves[number]])
        if self._budget.bits is not None:
            return leaf, self._spending.of_leaf((leaf, tensor.layout))
        size = size_of(leaf, tensor.layout)
        return leaf, float(size.entropy_bits + size.codebook_bits)

    def _apply(self, number: int, place: int, leaf: CompressedTensor, bits: float) -> None:
        """From now on this point counts with what it really is, and others likewise."""
        self._applied[number, place] = leaf
        cost = float(np.sum(distortions(leaf) / self._energies[number]))
        known = [other for owner, other in self._applied if owner == number]
        pairs = zip((self._rates, self._costs), self._promised, (bits, cost), strict=True)
        for values, own, real in pairs:
            values[number] = _corrected(values[number], own[number], known, place, real)


def _corrected(
    values: Float[np.ndarray, " points"],
    promised: Float[np.ndarray, " points"],
    known: Sequence[int],
    place: int,
    real: float,
) -> Float[np.ndarray, " points"]:
    """Return what the points of a tensor cost, now that one of them is known.

    Args:
        values: as they counted before.
        promised: by the curve.
        known: points whose numbers are real, this one too.
        place: of the point.
        real: its number.
    """
    ratio = real / promised[place] if promised[place] > 0 and real > 0 else 1.0
    # Only neighbours are off by the same; what is far away is not to be made worse.
    corrected = promised * min(max(ratio, 0.8), 1.25)
    corrected[list(known)] = values[list(known)]
    corrected[place] = real
    return corrected


def rates_and_costs(
    tensors: Sequence[Tensor],
    curves: Sequence[Sequence[Curve]],
    energies: Sequence[Float[np.ndarray, " layers"]],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return bits of every tensor at each of its points, and distortions over energies."""
    rates, costs = [], []
    for tensor, own, units in zip(tensors, curves, energies, strict=True):
        relative = [
            layer._replace(distortion=layer.distortion / unit)
            for layer, unit in zip(own, np.resize(units, len(own)), strict=True)
        ]
        whole = tensor.joined(relative)
        rates.append(whole.size_bits(tensor.num_weights))
        costs.append(whole.distortion)
    return rates, costs


def distortions(leaf: CompressedTensor) -> Float[np.ndarray, "*layers"]:
    """Return the distortion of every layer of a tensor, in original units."""
    exponent = np.asarray(leaf.measures.distortion_exponent)
    return np.ldexp(np.asarray(leaf.measures.distortion, np.float64), exponent)
