"""Curves and points of many leaves: those of one method are asked for together.

A method may solve several of them by one call then (`Method.curves`).
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.methods import Method
from jaxcomp.quantizers.problems import Problem

_Result = TypeVar("_Result")


class AskedLeaf(NamedTuple):
    """A leaf and what is asked of it.

    Attributes:
        method: of the leaf.
        problems: its layers.
        parameters: those of a curve, or that of a point.
    """

    method: Method
    problems: Sequence[Problem]
    parameters: Any


def curves_together(leaves: Sequence[AskedLeaf]) -> Iterator[list[Curve]]:
    """Yield the curves of the layers of every leaf, in order; distortions in original units."""

    def of_leaves(method: Method, own: Sequence[AskedLeaf]) -> Iterator[Curve]:
        exponents: deque[int] = deque()  # several layers are taken before the first one is found

        def layers() -> Iterator[Problem]:
            for problem in _layers(own):
                exponents.append(problem.distortion_exponent)
                yield problem

        for found in method.curves(layers(), _parameters(own)):
            yield found._replace(distortion=np.ldexp(found.distortion, exponents.popleft()))

    return _by_method(leaves, of_leaves)


def points_together(leaves: Sequence[AskedLeaf]) -> Iterator[list[Point]]:
    """Yield the points of the layers of every leaf, in order."""
    return _by_method(
        leaves, lambda method, own: iter(method.points(_layers(own), _parameters(own)))
    )


def _by_method(
    leaves: Sequence[AskedLeaf],
    find: Callable[[Method, Sequence[AskedLeaf]], Iterator[_Result]],
) -> Iterator[list[_Result]]:
    """Yield what is found of every leaf, each as soon as it is known.

    Args:
        leaves: in the order of the results.
        find: `(method, its leaves) -> what is found of each of their layers`, in order.
    """
    of_method: dict[Method, list[AskedLeaf]] = {}
    for leaf in leaves:
        of_method.setdefault(leaf.method, []).append(leaf)
    found = {method: find(method, own) for method, own in of_method.items()}
    for leaf in leaves:
        yield list(islice(found[leaf.method], len(leaf.problems)))


def _layers(leaves: Sequence[AskedLeaf]) -> Iterator[Problem]:
    for leaf in leaves:
        yield from leaf.problems


def _parameters(leaves: Sequence[AskedLeaf]) -> Iterator[Any]:
    for leaf in leaves:
        for _ in range(len(leaf.problems)):
            yield leaf.parameters
