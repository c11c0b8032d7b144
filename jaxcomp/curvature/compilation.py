"""A hint where one kernel compiles again and again because only the loss function is a new object.

A kernel takes the function of the loss as a static argument, which is compared by identity: a
lambda that is written anew for every call compiles anew for every call, and so does a method of an
object that is made anew. (An object without a hash is compared by what it holds, so that only new
functions among that count.) That is slow and silent, so the third time it happens for the same code
and the same shapes a warning says what to do.
"""

import functools
import sys
import types
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import jax

from jaxcomp.curvature.estimate import shape_and_dtype
from jaxcomp.curvature.functions import OfArguments, OfHeld, OfIdentity, OfOutput

_NUM_COMPILATIONS = 3
_QUIET = ("jaxcomp.", "jax.", "jax_", "functools", "contextlib")

# (kernel, code of the function, shapes) -> the functions that were compiled for.
_compiled: dict[Hashable, set[int]] = {}


def hint_if_compiled_again(kernel: str, function: Callable[..., Any], arguments: Any) -> None:
    """Warn, once, at the third compilation that only the identity of `function` has caused.

    To be called where a kernel is traced, which happens once per compilation.

    Args:
        kernel: its public name.
        function: the static function (of a loss, or of predictions). One that compares by value
            causes no compilation of its own and is passed over.
        arguments: pytree of the arrays that the kernel is traced for.
    """
    while isinstance(function, OfArguments | OfOutput):
        function = function.function
    if isinstance(function, OfIdentity):
        function = function.function.value
    # jax.tree_util.Partial wraps a functools.partial, which is still compared by identity.
    inner = getattr(function, "fun", function)
    function = inner if isinstance(inner, functools.partial) else function
    identity = _identity(function)
    if identity is None:
        return
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple(shape_and_dtype(leaf) for leaf in leaves)
    key = (kernel, _origin(function), structure, shapes)
    functions = _compiled.setdefault(key, set())
    if len(functions) >= _NUM_COMPILATIONS:
        return
    # JAX's own cache keeps the functions alive, so that an id is not given twice.
    functions.add(identity)
    if len(functions) == _NUM_COMPILATIONS:
        name = _name(function)
        warnings.warn(
            f"{kernel} compiles for the {_NUM_COMPILATIONS}rd time with the same shapes, because "
            f"{name} is a new object each time; define it once and pass the same object, or bind "
            "the arrays that change to one function with jax.tree_util.Partial.",
            UserWarning,
            stacklevel=_level_of_the_caller(),
        )


def _identity(function: Callable[..., Any]) -> int | None:
    """Return what tells a function from others of its code; None if it compares by value."""
    if isinstance(function, OfHeld):
        return hash(function)
    if isinstance(function, types.MethodType):
        return id(function.__self__)
    # Functions, lambdas, functools.partial, and objects without an __eq__ of their own or a hash.
    return id(function) if type(function).__hash__ in (object.__hash__, None) else None


def _name(function: Callable[..., Any]) -> str:
    if isinstance(function, OfHeld):
        if function.method is not None:
            return f"what holds {function.method.__qualname__}"
        return getattr(function.kind, "__qualname__", "the pytree that is called")
    return getattr(function, "__qualname__", type(function).__qualname__)


def _origin(function: Callable[..., Any]) -> Hashable:
    """Return what two functions share that were made by the same lines of code."""
    if isinstance(function, functools.partial):
        return ("partial", _origin(function.func))
    if isinstance(function, OfHeld):
        return ("held", function.kind, function.method, function.frame.structure)
    function = function.__func__ if isinstance(function, types.MethodType) else function
    return function.__code__ if isinstance(function, types.FunctionType) else type(function)


def _level_of_the_caller() -> int:
    """Return the stack level, for the caller of this function, of the first line of a user."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and f"{frame.f_globals.get('__name__', '')}.".startswith(_QUIET):
        level, frame = level + 1, frame.f_back
    return level
