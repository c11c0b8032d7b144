"""How far can a trained model be compressed, what does each bit cost, and does it generalise?

`quantize` compresses the weights of any JAX model; the submodules hold what it is made of
(`curvature`, `quantizers`, `coding`, `compressed`), how compressed networks are judged
(`evaluation`, `bounds`), the theory computed (`rate_distortion`, `linear_regression`), and the
laboratory (`experiments`). All of them are imported when they are first used: `import jaxcomp`
itself takes no time, not even that of JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcomp import (
        adapters,
        bits_back,
        bounds,
        coding,
        compressed,
        curvature,
        evaluation,
        experiments,
        linear_regression,
        quantizers,
        rate_distortion,
        training,
        trees,
        types,
    )
    from jaxcomp.compressed.tree import QuantizedTree, quantize

__version__ = "0.1.0"

__all__ = [
    "QuantizedTree",
    "__version__",
    "adapters",
    "bits_back",
    "bounds",
    "coding",
    "compressed",
    "curvature",
    "evaluation",
    "experiments",
    "linear_regression",
    "quantize",
    "quantizers",
    "rate_distortion",
    "training",
    "trees",
    "types",
]


_FROM_COMPRESSED = ("QuantizedTree", "quantize")


def __getattr__(name: str) -> Any:
    if name in _FROM_COMPRESSED:
        value = getattr(importlib.import_module(f"{__name__}.compressed.tree"), name)
        globals()[name] = value  # asked for once
        return value
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
