"""Strict promotion around single calls.

It is part of what JAX tells programs apart by: a kernel that some tests of a file call under it and
others not is traced and lowered twice.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def strictly(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Call a function with implicit promotion of dtypes and ranks turned into errors."""

    @wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            return function(*args, **kwargs)

    return wrapped
