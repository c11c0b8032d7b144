"""How far can a trained model be compressed, what does each bit cost, and does it generalise?

`quantize` compresses the weights of any JAX model; the submodules hold what it is made of
(`curvature`, `quantizers`, `rate`), the evaluation of compressed networks (`metrics`,
`calibration`, `statistics`, `bounds`), the theory computed (`linear_regression`) and the
experiments (`models`, `data`, `sweep`, `regularization`). All of them are imported when they are
first used: `import jaxcomp` itself takes no time, not even that of JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcomp import (
        bits_back,
        bounds,
        calibration,
        curvature,
        data,
        linear_regression,
        metrics,
        models,
        priors,
        quantizers,
        rate,
        rate_distortion,
        regularization,
        statistics,
        sweep,
        types,
    )
    from jaxcomp.tree import QuantizedTree, quantize

__version__ = "0.1.0"

__all__ = [
    "QuantizedTree",
    "__version__",
    "bits_back",
    "bounds",
    "calibration",
    "curvature",
    "data",
    "linear_regression",
    "metrics",
    "models",
    "priors",
    "quantize",
    "quantizers",
    "rate",
    "rate_distortion",
    "regularization",
    "statistics",
    "sweep",
    "types",
]


_FROM_TREE = ("QuantizedTree", "quantize")


def __getattr__(name: str) -> Any:
    if name in _FROM_TREE:
        value = getattr(importlib.import_module(f"{__name__}.tree"), name)
        globals()[name] = value  # asked for once
        return value
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
