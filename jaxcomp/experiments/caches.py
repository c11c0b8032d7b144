"""What is kept between runs, outside their directories: trained networks, compiled programs.

Both lie in one folder: that which the environment variable `JAXCOMP_CACHE_DIR` names, else the
user's cache folder. It may be deleted at any time, and a run goes on without it where it cannot be
written, after one warning.
"""

import hashlib
import os
import platform
import warnings
from importlib.metadata import version
from pathlib import Path

from jaxcomp import storage

CACHE_DIR_VARIABLE = "JAXCOMP_CACHE_DIR"

MIN_COMPILE_SECONDS = 0.1
"""Programs that compile faster are not kept: reading them would gain nothing."""

_warned: set[str] = set()


def network_cache(cache_dir: Path | str | None) -> Path | None:
    """Return where trained networks are kept; None if they cannot be kept.

    Args:
        cache_dir: as a caller asks for it; None for the folder `networks` in the cache folder.
    """
    if cache_dir is not None:
        return Path(cache_dir)
    root = cache_root()
    return None if root is None else root / "networks"


def cache_root() -> Path | None:
    """Return the cache folder, made if it is not there; None, with a warning, if it is no use."""
    named = os.environ.get(CACHE_DIR_VARIABLE)
    if named:
        return usable(named)
    import platformdirs

    return usable(platformdirs.user_cache_dir("jaxcomp", appauthor=False))


def usable(folder: Path | str) -> Path | None:
    """Return a cache folder, made if it is not there; None, with a warning, if it is no use."""
    try:
        return storage.ensure_writable_directory(folder, noun="cache folder")
    except ValueError as error:
        told = (
            f"{error} The run goes on, but its trained networks and compiled programs are not "
            f"kept ({CACHE_DIR_VARIABLE} names another folder)."
        )
        if told not in _warned:  # Python forgets what it has shown when a filter is added
            _warned.add(told)
            warnings.warn(told, RuntimeWarning, stacklevel=1)
        return None


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs in the cache folder, for the whole process.

    Does nothing where the user has told JAX where to keep them, or not to. There is a folder for
    every version of JAX, kind of machine and set of its instructions: home folders are shared by
    machines that are not alike.
    """
    import jax

    named = getattr(jax.config, "jax_compilation_cache_dir", None)
    if named or not getattr(jax.config, "jax_enable_compilation_cache", True):
        return
    root = cache_root()
    if root is None:
        return
    folder = root / "programs" / f"jax-{version('jax')}-jaxlib-{version('jaxlib')}-{_machine()}"
    # A program that cannot be read or written is compiled, which is no news.
    warnings.filterwarnings(
        "ignore", message="Error (reading|writing) persistent compilation cache entry"
    )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


def _machine() -> str:
    """Return the kind of processor and, where the system tells, a hash of its instructions."""
    told = platform.machine() or "unknown"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return told
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return f"{told}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
