"""Methods that are solved on histograms of the weights, several tensors by one call.

A solve is a long sequence of small operations on a few thousand bins. An accelerator runs it at the
pace of the host, and the host waits for its result: with a leading axis of tensors the sequence is
as long as that of one. What waits for a solve is the histogram of a tensor, no copy of its weights.

Axes: `L` tensors, `M` points of a curve, `B` bins, `K` clusters.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from jaxcomp.numerics.host import default_device
from jaxcomp.numerics.memory import chunk_bytes
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.histograms import Moments
from jaxcomp.quantizers.methods.base import CodebookMethod, power_of_two
from jaxcomp.quantizers.problems import Problem

# Tensors that are solved together, at most; a power of two.
_MOST_TOGETHER = 16


class Asked(NamedTuple):
    """A tensor whose curve is asked for.

    Attributes:
        problem: the tensor.
        parameters: (M,), of the points.
        moments: (1, B), its histogram.
        numbers: (M,), the parameters as the solver takes them.
        max_clusters: K, size of the codebooks.
    """

    problem: Problem
    parameters: Shaped[np.ndarray, " points"]
    moments: Moments
    numbers: Shaped[np.ndarray, " points"]
    max_clusters: int

    @property
    def kind(self) -> tuple[Any, ...]:
        """What tensors agree in that are solved by one call."""
        return (
            self.max_clusters,
            self.problem.codebook_dtype,
            self.numbers.shape,
            self.moments.position.aval,
            self.moments.position.sharding,
        )

    @property
    def num_bytes(self) -> int:
        """What its solve may need: a number for each point, bin and cluster."""
        return 8 * self.numbers.size * self.max_clusters * self.moments.position.shape[-1]


@dataclass(frozen=True)
class HistogramMethod(CodebookMethod):
    """A method whose codebooks are solved on a histogram of the weights."""

    def curve(self, problem: Problem, parameters: Shaped[np.ndarray, " points"]) -> Curve:
        (found,) = self._solved_together([self._asked(problem, parameters)], 1)
        return found

    def curves(
        self,
        problems: Iterable[Problem],
        parameters: Iterable[Shaped[np.ndarray, " points"]],
    ) -> Iterator[Curve]:
        if type(self).curve is not HistogramMethod.curve:  # a user's, which knows of no others
            yield from super().curves(problems, parameters)
            return
        asked = (self._asked(*pair) for pair in zip(problems, parameters, strict=True))
        sizes: dict[tuple[Any, ...], int] = {}
        number = most_together() if self._is_solved_together else 1
        while some := list(islice(asked, number)):
            yield from self._solved(some, sizes)

    def points(self, problems: Iterable[Problem], parameters: Iterable[Any]) -> Iterator[Point]:
        if type(self).point is not HistogramMethod.point:
            yield from super().points(problems, parameters)
            return
        each = (np.asarray([parameter]) for parameter in parameters)
        for found in self.curves(problems, each):
            yield found.at(0)

    def _solved(self, asked: Sequence[Asked], sizes: dict[tuple[Any, ...], int]) -> list[Curve]:
        """Return the curves of some tensors, those of one kind from one call.

        Args:
            asked: the tensors.
            sizes: L by kind, padding included, of the calls so far; one that is smaller is filled
                up, so that nothing is compiled for the last tensors.
        """
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for place, one in enumerate(asked):
            kinds.setdefault(one.kind, []).append(place)
        curves: dict[int, Curve] = {}
        for kind, places in kinds.items():
            fit = max(chunk_bytes() // asked[places[0]].num_bytes, 1)
            most = min(1 << (fit.bit_length() - 1), _MOST_TOGETHER)
            size = min(max(power_of_two(len(places)), sizes.get(kind, 1)), most)
            sizes[kind] = size
            for start in range(0, len(places), size):
                some = places[start : start + size]
                found = self._solved_together([asked[place] for place in some], size)
                curves.update(zip(some, found, strict=True))
        return [curves[place] for place in range(len(asked))]

    def _solved_together(self, asked: Sequence[Asked], size: int) -> list[Curve]:
        """Return the curves of tensors of one kind, filled up by the last one to so many."""
        padded = [*asked, *[asked[-1]] * (size - len(asked))]
        moments, numbers = asked[0].moments, asked[0].numbers
        if size > 1:
            moments = _stacked([one.moments for one in padded])
            numbers = np.stack([one.numbers for one in padded])
        found = self._solve(
            moments,
            numbers,
            max_clusters=asked[0].max_clusters,
            dtype=asked[0].problem.codebook_dtype,
        )
        # One wait for all of them; on the host, since rows that are taken on the device are
        # programs of their own.
        moments, found = jax.device_get((moments, found))
        if size == 1:
            moments, found = jax.tree.map(lambda part: part[None], (moments, found))
        curves = []
        for place, one in enumerate(asked):
            row = jax.tree.map(lambda part, place=place: part[place], (moments, found))
            own = jax.tree.map(lambda part: part[0], row[0])
            curves.append(self._curve_of(one._replace(moments=own), row[1]))
        return curves

    @property
    def _is_solved_together(self) -> bool:
        """Whether a solve of several tensors is a shorter sequence than one of each."""
        return True

    @abstractmethod
    def _asked(self, problem: Problem, parameters: Shaped[np.ndarray, " points"]) -> Asked:
        """Return a tensor with its histogram."""

    @abstractmethod
    def _solve(
        self,
        moments: Moments,
        numbers: Shaped[np.ndarray, "*L M"],
        *,
        max_clusters: int,
        dtype: np.dtype,
    ) -> Any:
        """Solve one tensor or several.

        Args:
            moments: of (1,) groups, or of (L, 1).
            numbers: (M,), or (L, M) of several; see `Asked`.
            max_clusters: K, static.
            dtype: of the centroids, static.

        Returns:
            A pytree of arrays; of several with leading axis L.
        """

    @abstractmethod
    def _curve_of(self, asked: Asked, found: Any) -> Curve:
        """Return the curve of one tensor.

        Args:
            asked: the tensor; its moments (B,) on the host.
            found: what `_solve` found of it, on the host.
        """


def most_together() -> int:
    """Return how many tensors are solved by one call, at most.

    One on a CPU, which takes as long for each of several as for one of them, and for all of them as
    long as the one that needs most iterations.
    """
    return 1 if default_device().platform == "cpu" else _MOST_TOGETHER


@jax.jit
def _stacked(moments: list[Moments]) -> Moments:
    """Return the moments (L, 1, B) of several tensors."""
    return jax.tree.map(lambda *parts: jnp.stack(parts), *moments)
