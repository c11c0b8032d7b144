"""Functions that a caller gives (a loss, a model, its logits) as arguments of compiled functions.

The code of such a function is static: a compiled program is found again if an equal function
comes. The arrays that belong to it are traced, so that other arrays compile nothing:

- those bound by a `jax.tree_util.Partial`;
- those held by an object that has no hash (a module of Equinox, a dataclass with arrays) and is
  called, or whose method is. Whatever else it holds is static and compared by value.

Plain functions, closures, `functools.partial` and methods of other objects are compared by
identity, as `jax.jit` does: the arrays inside them are constants.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.tree_util import Partial

from jaxcomp.trees.leaves import Constant, Frame, is_argument, is_array, split_constants
from jaxcomp.trees.paths import leaves_by_path, shorten
from jaxcomp.types import Params

PickOutput = str | Callable[[Any], Any]
"""The path of an array in a tree of outputs, or a function that picks it."""


def as_partial(
    function: Callable[..., Any],
    *,
    name: str = "loss_fn",
    signature: str = "(params, batch) -> scalar",
) -> Partial:
    """Return a function as a pytree: its code static, the arrays that belong to it traced.

    Args:
        function: the function.
        name: of the argument it came by, for messages.
        signature: what it should be, for messages.

    Raises:
        TypeError: if it is not callable.
    """
    if not callable(function):
        raise TypeError(f"{name} must be a function {signature}, got {type(function).__name__}.")
    # A Partial inside another would be compared by identity: its arrays would be constants.
    partial = function if isinstance(function, Partial) else Partial(function)
    held = _held(partial.func)
    if held is None:
        return partial
    return Partial(held.func, *held.args, *partial.args, **partial.keywords)


@dataclass(frozen=True)
class OfArguments:
    """A function of a whole tree as one of its arrays and numbers; equal for equal functions.

    Attributes:
        function: takes the whole tree.
        frame: the leaves that no compiled function takes.
        place: of the tree among the arguments, behind those that are bound.
    """

    function: Callable[..., Any]
    frame: Frame
    place: int

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function on the whole tree."""
        whole = list(arguments)
        whole[self.place] = self.frame.fill(whole[self.place])
        return self.function(*whole, **keywords)


def open_params(function: Partial, params: Params) -> tuple[Partial, Params]:
    """Take the leaves that no compiled function takes (functions, text) out of a tree of weights.

    Returns:
        The function of the rest of the tree, and the rest, which has None in their place.
    """
    arguments, frame = split_constants(params, is_argument)
    if frame.is_empty:
        return function, params
    framed = OfArguments(function.func, frame, len(function.args))
    return Partial(framed, *function.args, **function.keywords), arguments


# --- Objects without a hash ----------------------------------------------------------------------


@dataclass(frozen=True)
class OfHeld:
    """An object that is called, as a function of the arrays it holds; equal for equal objects.

    Attributes:
        kind: the class of the object, whose attributes are held; None for a pytree.
        method: the function that is called on the object; None to call the object itself.
        frame: what it holds beside the arrays.
    """

    kind: type | None
    method: Callable[..., Any] | None
    frame: Frame

    def __call__(self, arrays: Any, *arguments: Any, **keywords: Any) -> Any:
        """Put the object together again, and call it."""
        holder = self.frame.fill(arrays)
        if self.kind is not None:
            # A class may forbid to set attributes (a frozen dataclass), or check them at its start.
            attributes, holder = holder, object.__new__(self.kind)
            holder.__dict__.update(attributes)
        if self.method is None:
            return holder(*arguments, **keywords)
        return self.method(holder, *arguments, **keywords)


@dataclass(frozen=True)
class OfIdentity:
    """A callable that can be compared by identity alone."""

    function: Constant

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function."""
        return self.function.value(*arguments, **keywords)


def _held(function: Callable[..., Any]) -> Partial | None:
    """Return a callable without a hash as a pytree of what it holds; None if it has a hash."""
    method = None
    holder: Any = function
    if isinstance(function, types.MethodType):
        # The hash of a method is that of an identity, whatever its object says of itself.
        method, holder = function.__func__, function.__self__
    if _has_hash(holder):
        return None
    content, kind = holder, None
    if jax.tree_util.all_leaves([holder]):
        if not hasattr(holder, "__dict__"):
            return Partial(OfIdentity(Constant(function)))
        content, kind = dict(vars(holder)), type(holder)
    arrays, frame = split_constants(content, is_array)
    held = OfHeld(kind, method, frame)
    return Partial(held, arrays) if _has_hash(held) else Partial(OfIdentity(Constant(function)))


def _has_hash(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


# --- One of many outputs -------------------------------------------------------------------------


@dataclass(frozen=True)
class OfOutput:
    """A function of whose outputs one array is picked; equal for equal functions and picks."""

    function: Callable[..., Any]
    output: PickOutput

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function and pick.

        Raises:
            ValueError: if no output has that name.
        """
        outputs = self.function(*arguments, **keywords)
        if not isinstance(self.output, str):
            return self.output(outputs)
        named = leaves_by_path(outputs)
        if self.output not in named:
            raise ValueError(
                f"predict_fn has no output {self.output!r}; it has {shorten(map(repr, named))}."
            )
        return named[self.output]


def pick_output(function: Partial, output: PickOutput | None) -> Partial:
    """Return a function of one of the outputs alone.

    Raises:
        TypeError: if `output` is neither a path nor a function.
    """
    if output is None:
        return function
    if not (isinstance(output, str) or callable(output)):
        raise TypeError(
            "output must be the path of an array among the outputs of predict_fn, or a function "
            f"that picks it, got {type(output).__name__}."
        )
    if not _has_hash(output):
        output = OfIdentity(Constant(output))
    return Partial(OfOutput(function.func, output), *function.args, **function.keywords)


def check_one_output(outputs: Any) -> None:
    """Refuse what is no array of a batch of one example.

    Args:
        outputs: shapes and dtypes of what a model returned.

    Raises:
        ValueError: naming the outputs there are.
    """
    if not jax.tree_util.all_leaves([outputs]):
        raise ValueError(
            "predict_fn returns a tree of arrays: name the one that the loss takes by output=, one "
            f"of {shorten(map(repr, leaves_by_path(outputs)))}, or pass a function that picks it."
        )
    shape = getattr(outputs, "shape", ())
    if len(shape) < 1 or shape[0] != 1:
        raise ValueError(
            "predict_fn must return an array (batch, ...) for the loss, got the shape "
            f"{tuple(shape)} for a batch of one example."
        )
