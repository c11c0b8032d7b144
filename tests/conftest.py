"""How tests compile, and in which order they run; fixtures that many of them use."""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# The command keeps compiled programs; a test that wants it says so.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
# Threads of NumPy's products wait by turning: a fortieth of the processor.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Programs need not know which lines they come from: a twentieth of the time of compiling.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")


def _quick_compilation() -> str:
    """Flags with which XLA's CPU back end compiles in half the time; compiling is what tests cost.

    It does not optimise, nor split a program into parts for threads, of which there are no more
    than tests that run at once; it fuses in the simpler of two ways where there still are two
    (JAX 0.10), and does not verify what its emitters make where that can be chosen (JAX 0.12). A
    jaxlib that does not know a flag ends the process, so they are tried in another one. (Set
    XLA_FLAGS yourself to test optimised programs; workers inherit what the first process found.)
    """
    base = "--xla_backend_optimization_level=0"
    common = (
        f"{base} --xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1"
    )
    own = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_emitter_verification_level=0")
    for quick in (f"{common} {flag}" for flag in own):
        tried = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env=os.environ | {"XLA_FLAGS": quick},
            capture_output=True,
            check=False,
        )
        if tried.returncode == 0:
            return quick
    return base


if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = _quick_compilation()

import hypothesis  # noqa: E402
import jax  # noqa: E402
import promotion  # noqa: E402
import pytest  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402
from jax._src.lib.mlir import ir  # noqa: E402


def _one_context_for_many_programs() -> None:
    """Let JAX 0.10 keep what it lowers programs in, as later versions do by themselves.

    Setting it up is a third of the time of a program of one operation, of which tests compile
    thousands; now and then a new one, since a context keeps all types and constants it has seen.
    """
    make = getattr(mlir, "make_ir_context", None)
    if make is None or hasattr(mlir, "_thread_local_context"):
        return
    own, uses = threading.local(), 100

    def kept() -> Any:
        # One that is lowered while another is goes into a context of its own.
        if ir.Context.current is not None:
            return make()
        if getattr(own, "left", 0) == 0:
            own.context, own.left = make(), uses
        own.left -= 1
        return own.context

    mlir.make_ir_context = kept


_one_context_for_many_programs()

# Programs of this run, for all its processes: a test elsewhere, or the same function in another
# mode, may compile the same. Nothing stays for the next run, unless the variable names a folder.
_PROGRAMS = "JAXCOMP_PROGRAMS_OF_TESTS"

# Those that take longest; the others follow, so that no worker is left with one at the end.
_TESTS = Path(__file__).parent
_DEAREST = (
    "compressed/test_compress.py",
    "experiments/sweep/test_experiment.py",
    "numerics/test_transformations.py",
    "experiments/regularization/test_experiment.py",
    "quantizers/scalar/test_lloyd.py",
    "test_lowering.py",
    "experiments/sweep/test_codebooks.py",
    "curvature/test_gauss_newton.py",
    "experiments/linear_regression/test_experiment.py",
    "quantizers/test_scales.py",
    "bounds/test_bounds.py",
    "test_readme.py",
    "experiments/train_small/test_experiment.py",
    "quantizers/scalar/test_optimal.py",
    "compressed/test_layers.py",
    "numerics/test_linear_algebra.py",
    "quantizers/scalar/test_entropy_constrained.py",
    "curvature/test_batches.py",
    "compressed/test_spool.py",
    "linear_regression/test_simulation.py",
    "cli/test_experiments.py",
    "quantizers/test_vector.py",
    "quantizers/test_histograms.py",
    "compressed/test_files.py",
    "experiments/sweep/test_compress.py",
    "quantizers/scalar/test_optimal_diameter.py",
    "quantizers/scalar/test_coarse_to_fine.py",
    "quantizers/test_passes.py",
    "quantizers/test_padding.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Share programs between workers; give out files in the order below, not by their size."""
    missing = [name for name in _DEAREST if not (_TESTS / name).exists()]
    if missing:
        raise pytest.UsageError(f"tests/conftest.py names files that are not there: {missing}.")
    config.option.loadscopereorder = False
    if _PROGRAMS not in os.environ:
        folder = tempfile.mkdtemp(prefix="programs-")
        os.environ[_PROGRAMS] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    for option, value in _kept_programs().items():
        jax.config.update(option, value)


def _kept_programs() -> dict[str, bool | int | str]:
    """Options of JAX that keep every program where all processes of this run look for it."""
    return {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": os.environ[_PROGRAMS],
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the dearest files first, each in its own order."""
    order = {_TESTS / name: place for place, name in enumerate(_DEAREST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


# The same examples on every run of the same sources, and no clock in a test.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

# Looking for cycles through all that JAX keeps took a twentieth of the time.
gc.freeze()
gc.set_threshold(100_000, 50, 50)


# Linux grants a process 65,530 mappings of memory by default, and a compiled program holds dozens.
# Forgetting all of them takes ten seconds, and what the next modules share is compiled again: as
# rarely as memory allows (at 40,000 a process held six gigabytes).
_MOST_MAPPINGS = 30_000


def pytest_sessionfinish() -> None:
    """Leave what is there alone: pytest looks five times for cycles in it when all is done."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs() -> Iterator[None]:
    """Forget compiled programs after a module once they are many; compiling fails at the limit."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > _MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def strict_promotion() -> Iterator[None]:
    """Turn implicit dtype and rank promotion into errors inside one test of a kernel."""
    with promotion.strict_promotion():
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """Enable 64-bit types inside one test; restored even if the test fails."""
    with jax.enable_x64(True):
        yield


# JAX keeps programs for each value apart. Forgetting them instead would make every later module of
# this process trace and load again what it shares with those before.
_standing_in = jax.make_user_context()


@pytest.fixture
def programs_apart() -> Callable[[str], AbstractContextManager[None]]:
    """Give contexts, told apart by names, that share no traced function with what is outside."""
    return _standing_in


@pytest.fixture
def accelerator_branches(monkeypatch, programs_apart) -> Callable[..., Any]:
    """Give a context in which this CPU computes what is meant for another platform, anew."""

    @contextmanager
    def taken(platform: str = "default") -> Iterator[None]:
        def chosen(*args: Any, default: Any = None, **branches: Any) -> Any:
            return branches.get(platform, default)(*args)

        with monkeypatch.context() as patched, programs_apart(f"branches of {platform}"):
            patched.setattr(jax.lax, "platform_dependent", chosen)
            yield

    return taken


@pytest.fixture(scope="session")
def programs_of_processes() -> dict[str, str]:
    """Environment in which processes that a test starts, and does not kill, share programs."""
    return {option.upper(): str(value) for option, value in _kept_programs().items()}
