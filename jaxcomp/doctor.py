"""Is this installation sound: what is there, what does it compute, what to do about a problem?

Numbers that are wrong on one machine alone (a matrix product in shorter floats than was asked for,
a flag that changes what a compiler does) make every later result worthless, and nobody looks for
them. `examine` solves a handful of small problems whose answers are known in closed form.
"""

import math
import os
import platform
import re
import shutil
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcomp import __version__


class Check(NamedTuple):
    """A small problem with a known answer, as this machine solves it.

    Attributes:
        name: what was computed.
        error: by how much the result is off, relative to its size; NaN if there was none.
        limit: what it may be off.
        seconds: that it took, compiling included.
        told: what was raised instead of a result; empty if nothing.
    """

    name: str
    error: float
    limit: float
    seconds: float
    told: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether the result is right."""
        return not self.told and self.error <= self.limit


class Problem(NamedTuple):
    """Something that is not as it should be, and what to do about it."""

    what: str
    remedy: str


class Diagnosis(NamedTuple):
    """What was found.

    Attributes:
        versions: of Python and of the packages, by name; None for one that is not installed.
        devices: a line for each kind of device that JAX uses.
        settings: what shapes numbers, programs and where they are kept; memory in bytes.
        checks: problems with a known answer.
        problems: what to mend, the worst first.
    """

    versions: dict[str, str | None]
    devices: tuple[str, ...]
    settings: dict[str, Any]
    checks: tuple[Check, ...]
    problems: tuple[Problem, ...]

    @property
    def is_sound(self) -> bool:
        """Whether every check has the right answer."""
        return all(check.is_sound for check in self.checks)

    def __str__(self) -> str:
        versions = [f"{name} {version}" for name, version in self.versions.items() if version]
        width = max(len(check.name) for check in self.checks)
        lines = [", ".join(versions), *self.devices]
        lines += [f"{name}: {_words(name, value)}" for name, value in self.settings.items()]
        lines += ["", f"{'known answers':{width}}  off by   allowed"]
        lines += [
            f"{check.name:{width}}  {check.error:<8.1e} {check.limit:<8.1e}"
            + ("" if check.is_sound else " WRONG")
            for check in self.checks
        ]
        lines += ["", *(f"! {problem.what}\n  {problem.remedy}" for problem in self.problems)]
        return "\n".join(lines if self.problems else [*lines, "Nothing is wrong."])

    def to_dict(self) -> dict[str, Any]:
        """Return the same in plain types; what is not finite is None."""
        checks = [
            check._asdict()
            | {"error": check.error if math.isfinite(check.error) else None}
            | {"is_sound": check.is_sound}
            for check in self.checks
        ]
        return {
            "is_sound": self.is_sound,
            "versions": self.versions,
            "devices": list(self.devices),
            "settings": self.settings,
            "checks": checks,
            "problems": [problem._asdict() for problem in self.problems],
        }


# The packages that results depend on, then those that only some commands need.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "chex", "jaxtyping")
_EXTRAS = {
    "coding": ("constriction", "scipy", "orbax-checkpoint"),
    "sweep": ("typer", "pandas", "pyarrow", "matplotlib", "scikit-learn", "platformdirs"),
}
_USES = {"coding": "reading and writing files", "sweep": "experiments and pictures"}
# What changes numbers or programs, and is easily forgotten.
_OPTIONS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_disable_jit",
    "jax_debug_nans",
)
_VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "JAXCOMP_CACHE_DIR", "JAXCOMP_DATA_DIR")
_LEAST_MEMORY = 2 * 2**30
_MEMORY = "free_memory_bytes"
# Three clusters, the squared distances in them 1/2, 1/2 and 2.
_PAIRS = np.asarray([0, 1, 10, 11, 50, 52], np.float32)


def examine(on_check: Callable[[Check], None] | None = None) -> Diagnosis:
    """Look at versions, devices and settings, and solve small problems with known answers.

    Args:
        on_check: is told each check when it is done; some compile for seconds.

    Returns:
        What was found; nothing is raised for what is wrong.
    """
    checks = []
    for name, (run, limit) in _CHECKS.items():
        checks.append(_checked(name, run, limit))
        if on_check is not None:
            on_check(checks[-1])
    versions, host = _versions(), _look_at_host()
    problems = (*_failures(checks), *_of_versions(versions), *_of_devices(), *_of_settings(host))
    return Diagnosis(versions, _devices(), _settings(host), tuple(checks), problems)


def _checked(name: str, run: Callable[[], float], limit: float) -> Check:
    start = time.perf_counter()
    try:
        error, told = float(run()), ""
    except Exception as raised:  # whatever it is, it is what a user would meet
        error, told = math.nan, f"{type(raised).__name__}: {' '.join(str(raised).split())}"
    return Check(name, error, limit, time.perf_counter() - start, told)


def _relative_error(found: Any, wanted: Any) -> float:
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.max(np.abs(found - wanted)) / np.max(np.abs(wanted)))


def _matrix_product() -> float:
    """Float32 in earnest, where a device would rather multiply shorter numbers."""
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 128, 128)).astype(np.float32)
    found = jnp.matmul(jnp.asarray(a), jnp.asarray(b), precision="highest")
    return _relative_error(found, a.astype(np.float64) @ b)


def _double_precision() -> float:
    """The certificate of a network without errors, in closed form: `1 - (delta 2^-B)^(1/n)`."""
    from jaxcomp.bounds import occam

    # Of a probability of 1e-9 near 1, float32 knows nothing.
    found = occam(0.0, 8.0, num_examples=10**6, delta=1e-9)
    return _relative_error(found, -math.expm1((math.log(1e-9) - 8 * math.log(2)) / 10**6))


def _small_numbers() -> float:
    """Weights of 1e-40, which processors take for zero, have the codes of weights of 1."""
    import jax

    from jaxcomp.quantizers import kmeans

    # Made on the host: a device would take them for zero.
    found = kmeans(jax.device_put(_PAIRS * np.float32(1e-40)), num_clusters=3)
    return float(np.count_nonzero(np.asarray(found.assignments) != [0, 0, 1, 1, 2, 2]))


def _clusters() -> float:
    """Three pairs: the squared distances to their means are 1/2 + 1/2 + 2."""
    import jax

    from jaxcomp.quantizers import kmeans, optimal_kmeans

    points = jax.device_put(_PAIRS)
    of_lloyd = kmeans(points, num_clusters=3).distortion
    of_optimum = optimal_kmeans(points, max_clusters=3).distortion[3]
    return max(_relative_error(of_lloyd, 3.0), _relative_error(of_optimum, 3.0))


def _diagonal() -> float:
    """The Gauss-Newton diagonal of softmax regression: the mean of `x_i^2 p_j (1 - p_j)`."""
    from jaxcomp.curvature import gauss_newton_diagonal

    rng = np.random.default_rng(1)
    weights, inputs = rng.normal(size=(5, 3)), rng.normal(size=(7, 5))
    logits = inputs @ weights
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = np.einsum("bi,bj->ij", inputs**2, p * (1 - p)) / 7
    found = gauss_newton_diagonal(
        lambda params, x: x @ params,
        np.asarray(weights, np.float32),
        (np.asarray(inputs, np.float32), np.zeros(7, np.int32)),
    )
    return _relative_error(found.mean, wanted)


def _file() -> float:
    """A file decodes, without JAX, to the bits that the device computes from codes."""
    import jax

    from jaxcomp.compressed import compress, load, to_bytes

    rng = np.random.default_rng(2)
    params = {"kernel": rng.normal(size=(64, 48)).astype(np.float32), "bias": np.ones(3, "f4")}
    tree = compress(params, bits_per_weight=3.0)
    again = load(to_bytes(tree)).params()
    pairs = zip(jax.tree.leaves(tree.params()), jax.tree.leaves(again), strict=True)
    return float(sum(np.asarray(a).tobytes() != np.asarray(b).tobytes() for a, b in pairs))


_CHECKS: dict[str, tuple[Callable[[], float], float]] = {
    "matrix product in float32": (_matrix_product, 1e-5),
    "a bound in float64": (_double_precision, 1e-6),
    "clusters of weights of 1e-40": (_small_numbers, 0.0),
    "K-means and its optimum": (_clusters, 1e-6),
    "Gauss-Newton diagonal": (_diagonal, 1e-5),
    "a file and back": (_file, 0.0),
}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str | None]:
    names = (*_PACKAGES, *(name for extra in _EXTRAS.values() for name in extra))
    own = {"jaxcomp": __version__, "Python": platform.python_version()}
    return own | {name: _version(name) for name in names}


def _devices() -> tuple[str, ...]:
    import jax

    lines: dict[str, int] = {}
    for device in jax.devices():
        memory = (device.memory_stats() or {}).get("bytes_limit")
        told = f", {memory / 2**30:.1f} GiB each" if memory else ""
        line = f"{device.platform} ({device.device_kind}{told})"
        lines[line] = lines.get(line, 0) + 1
    return tuple(f"{number} x {line}" for line, number in lines.items())


class _Host(NamedTuple):
    """What the machine gives: bytes that are free, the cache folder, and what is wrong with it."""

    memory: int | None
    cache: Path | None
    trouble: str


def _look_at_host() -> _Host:
    root, trouble = None, ""
    if _version("platformdirs"):
        from jaxcomp.experiments.caches import cache_root

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            root = cache_root()
        if root is None:
            trouble = str(caught[0].message) if caught else "the cache folder cannot be written"
    return _Host(_free_memory(), root, trouble)


def _settings(host: _Host) -> dict[str, Any]:
    import jax

    told: dict[str, Any] = {name: getattr(jax.config, name, None) for name in _OPTIONS}
    told |= {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    told["cache"] = str(host.cache) if host.cache else None
    told["processors"] = os.cpu_count()
    told[_MEMORY] = host.memory
    return told


def _words(name: str, value: Any) -> str:
    """A setting as a person reads it."""
    return f"{value / 2**30:.1f} GiB" if name == _MEMORY and value is not None else str(value)


def _free_memory() -> int | None:
    """Bytes that a process could take without swapping, where the system tells (Linux)."""
    told = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", told.read_text()) if told.exists() else None
    return None if found is None else int(found[1]) * 1024


def _failures(checks: list[Check]) -> list[Problem]:
    found = []
    for check in checks:
        if check.told:
            what = f"{check.name}: {check.told}"
        elif not check.is_sound:
            what = f"{check.name}: off by {check.error:.2g}, where {check.limit:.2g} is allowed"
        else:
            continue
        found.append(
            Problem(
                what,
                "Results of this installation are not to be trusted. Try without XLA_FLAGS, then "
                "with JAX_PLATFORMS=cpu, then in a new environment; if it stays, report it with "
                "the output of `jaxcomp doctor --json`.",
            )
        )
    return found


def _of_versions(versions: dict[str, str | None]) -> list[Problem]:
    found = []
    for extra, names in _EXTRAS.items():
        missing = [name for name in names if versions[name] is None]
        if missing:
            found.append(
                Problem(
                    f"{_USES[extra]} need packages that are not installed: {', '.join(missing)}",
                    f"pip install 'jaxcomp[{extra}]'",
                )
            )
    jax, jaxlib = versions["jax"], versions["jaxlib"]
    if jax and jaxlib and jax.split(".")[:2] != jaxlib.split(".")[:2]:
        found.append(
            Problem(
                f"jax {jax} and jaxlib {jaxlib} are not of one release", "pip install -U jax jaxlib"
            )
        )
    return found


def _of_devices() -> list[Problem]:
    import jax

    if jax.default_backend() != "cpu" or "JAX_PLATFORMS" in os.environ:
        return []
    if shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        return [
            Problem(
                "this machine has an NVIDIA GPU, but JAX does not use it",
                "pip install 'jaxcomp[cuda]'",
            )
        ]
    if any(Path("/dev").glob("accel*")):
        return [
            Problem(
                "this machine has an accelerator, but JAX does not use it",
                "on a TPU: pip install 'jaxcomp[tpu]'",
            )
        ]
    return []


def _of_settings(host: _Host) -> list[Problem]:
    import jax

    found = []
    if getattr(jax.config, "jax_disable_jit", False):
        found.append(
            Problem("jax_disable_jit is on: everything takes long", "unset JAX_DISABLE_JIT")
        )
    if "optimization_level=0" in os.environ.get("XLA_FLAGS", ""):
        found.append(
            Problem(
                "XLA_FLAGS turn optimisation off: compiled programs are several times slower",
                "unset XLA_FLAGS",
            )
        )
    if host.memory is not None and host.memory < _LEAST_MEMORY:
        found.append(
            Problem(
                f"only {host.memory / 2**30:.1f} GiB of memory are free",
                "end other programs, or compress layer by layer with `select=`",
            )
        )
    if host.trouble:
        found.append(Problem(host.trouble, "set JAXCOMP_CACHE_DIR to a folder that can be written"))
    return found
