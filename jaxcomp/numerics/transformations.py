"""How the functions of this package behave under the transformations and modes of JAX.

All kernels can be traced (`jit`, `vmap`, loops, checkpoints), run without `jax.jit` while one
debugs (`jax.disable_jit`, `jax_debug_nans`), with strict promotion, with 64-bit types, with any
implementation of random keys and under `jax_transfer_guard`. What is not obvious is decided here.

**Derivatives**, forward and reverse, by what a value is:

- A codebook, assignments, counts and diagnostics of a solver, and whatever a solver has computed
  on a histogram (curves over K or over multipliers, bounds on gaps), are *constants*: derivative
  0. They are piecewise constant in the data, or the limit of an iteration.
- `distortion` and `objective` of points (`kmeans`, `uniform`, `polish_kmeans`, `block_kmeans`,
  `vector_kmeans`) have the derivative *of the codebook held fixed*:
  `d(sum h (w - c)^2) = sum 2 h (w - c) dw + (w - c)^2 dh`. Where the centres are the means of
  their points this is the derivative of the least distortion too.
- `quantize_ste` hands the derivative through to the weights, and to the centroids by assignment.
- Everything else is differentiated as it is written: the values of `round_to_nearest` by their
  scales, the weights that `prune_by_magnitude` keeps, lengths, bounds, metrics, curvature.

**Transfers.** Functions that take Python numbers and NumPy arrays move them to the device
themselves: for `jax.transfer_guard` that is explicit. Functions that are compiled as they stand
(`solve_kmeans`, `histogram_moments`, ...) leave it to the guard, as `jax.jit` does. Experiments may
fetch as well, and so may `compress`, which deals weights out on the host: the guard is there to
find transfers in the caller's own loops.

**Without `jit`.** `jax.disable_jit` is for the caller's own functions. Kernels that call none of
those (`kmeans`, `jaxcomp.quantize`, bounds, ...) stay compiled: op by op they would take minutes.
Functions of a `loss_fn` (curvature, `fine_tune_codebook`) and those that are compiled as they stand
run op by op, with the same results.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_State = TypeVar("_State")


def vectorized(function: Callable[..., Any], signature: str) -> Callable[..., Any]:
    """`jnp.vectorize`, also where ranks are promoted explicitly only (`jax_numpy_rank_promotion`).

    Groups of different ranks meet there as documented, so that is no oversight of the caller.

    Args:
        function: of one group; it is traced under the caller's own mode.
        signature: of `jnp.vectorize`.
    """

    @wraps(function)
    def wrapped(*args: Any) -> Any:
        config: Any = jax.config
        mode = config.jax_numpy_rank_promotion

        def of_group(*own: Any) -> Any:
            with jax.numpy_rank_promotion(mode):
                return function(*own)

        with jax.numpy_rank_promotion("allow"):
            return jnp.vectorize(of_group, signature=signature)(*args)

    return wrapped


def explicit_transfers(
    function: Callable[_Arguments, _Result],
) -> Callable[_Arguments, _Result]:
    """Decorate a function that moves numbers and arrays of the host to the device itself."""

    @wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with jax.transfer_guard_host_to_device("allow"):
            return function(*args, **kwargs)

    return wrapped


def all_transfers(
    function: Callable[_Arguments, _Result],
) -> Callable[_Arguments, _Result]:
    """Decorate what fetches from the device too: an experiment, or what the host deals out."""

    @wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with jax.transfer_guard("allow"):
            return function(*args, **kwargs)

    return wrapped


def always_compiled(
    function: Callable[_Arguments, _Result],
) -> Callable[_Arguments, _Result]:
    """Decorate a function that calls nothing of the caller's: compiled also without `jit`.

    Its transfers are explicit too.
    """

    @wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with jax.disable_jit(False), jax.transfer_guard_host_to_device("allow"):
            return function(*args, **kwargs)

    return wrapped


def compiled_quickly(
    **options: Any,
) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Decorate, as by `jax.jit`, what runs a few times on little data, not within `jit`.

    On a CPU such a program, of random numbers say, takes longer to optimise than it ever runs: it
    is compiled in a quarter of the time without. The results are the same up to rounding.

    Args:
        options: of `jax.jit`.
    """

    def decorate(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        optimised = jax.jit(function, **options)
        quick = jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)

        @wraps(function)
        def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            return (quick if jax.default_backend() == "cpu" else optimised)(*args, **kwargs)

        return wrapped

    return decorate


def without_derivative(
    function: Callable[_Arguments, _Result],
) -> Callable[_Arguments, _Result]:
    """Decorate a solver: its results are constants to every derivative.

    Nothing inside is differentiated then: neither loops, which could not be in reverse mode, nor
    arithmetic in float64.
    """

    @wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        args, kwargs = jax.tree.map(_stopped, (args, kwargs))
        return function(*args, **kwargs)

    return wrapped


def _stopped(leaf: Any) -> Any:
    """Return a number without its derivative; what is known already, or no number, as it is."""
    is_varied = isinstance(leaf, Tracer) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    return lax.stop_gradient(leaf) if is_varied else leaf


def with_codebook_held_fixed(
    distortion_of: Callable[[Array, Array | None, Any], Float[Array, "..."]],
) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Decorate a solver that measures the distortion of its first two arguments.

    Args:
        distortion_of: `(points, importance, result) -> distortion`, the plain formula. Its
            derivative in the first two becomes that of the result's fields `distortion` and
            `objective`; everything else in the result is constant.
    """

    @jax.custom_jvp
    def measured(value, points, importance, result):
        return value

    @measured.defjvp
    def _(primals, tangents):
        value, points, importance, result = primals

        def plain(points, importance):
            return distortion_of(points, importance, result).astype(value.dtype)

        return value, jax.jvp(plain, (points, importance), tuple(tangents[1:3]))[1]

    def decorate(quantize: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        solve = without_derivative(quantize)
        signature = inspect.signature(quantize)
        names = list(signature.parameters)[:2]

        @wraps(quantize)
        def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Any:
            result: Any = solve(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            points, importance = (given.get(name) for name in names)
            if not isinstance(points, Tracer) and not isinstance(importance, Tracer):
                return result
            return result._replace(
                distortion=measured(result.distortion, points, importance, result),
                objective=measured(result.objective, points, importance, result),
            )

        return wrapped

    return decorate


def computed_once(
    is_so: Bool[Array, ""], function: Callable[..., _Result], *arguments: Any
) -> _Result:
    """Return `function(*arguments)`, on a CPU computed once for all that read it.

    What XLA can fuse it computes again for each reader, and on CPU an optimization barrier does not
    keep it from that; a branch does.

    Args:
        is_so: what is always true, but unknown to the compiler.
        function: of arrays, without sums over devices.
        arguments: of the function.
    """

    def of_branch(is_so: Array, *arguments: Any) -> Any:
        def nothing(*arguments: Any) -> Any:
            found = jax.eval_shape(function, *arguments)
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), found)

        return lax.cond(is_so, function, nothing, *arguments)

    return lax.platform_dependent(
        is_so, *arguments, cpu=of_branch, default=lambda _, *arguments: function(*arguments)
    )


def counted_loop(
    start: Any, stop: Any, step: Callable[[Any, _State], _State], state: _State
) -> _State:
    """`lax.fori_loop` whose index is int32 in every mode.

    Without `jit` the index of `lax.fori_loop` is a Python number, and int64 where 64-bit types
    are on.
    """
    return lax.fori_loop(
        start, stop, lambda index, state: step(jnp.asarray(index, jnp.int32), state), state
    )
