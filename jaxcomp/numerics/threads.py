"""Threads of one process that compute as the thread that starts them would."""

import contextlib
from collections.abc import Callable, Iterator

import jax

# Contexts of JAX, which a thread begins without.
_OPTIONS = (
    "enable_x64",
    "default_matmul_precision",
    "default_prng_impl",
    "threefry_partitionable",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
)


def options_of_this_thread() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return what gives another thread the options of JAX that are set in this one."""
    set_up = [(getattr(jax, name), getattr(jax.config, f"jax_{name}")) for name in _OPTIONS]
    set_up.append((jax.transfer_guard, "allow"))

    @contextlib.contextmanager
    def options() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for option, value in set_up:
                stack.enter_context(option(value))
            yield

    return options
