"""Strict promotion in a block, or around single calls.

It is part of what JAX tells programs apart by: a kernel that some tests of a file call under it and
others not is traced and lowered twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@contextmanager
def strict_promotion() -> Iterator[None]:
    """Turn implicit promotion of dtypes and ranks into errors."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def strictly(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Call a function under strict promotion."""

    @wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with strict_promotion():
            return function(*args, **kwargs)

    return wrapped
