"""How far can a trained model be compressed, what does each bit cost, and does it generalise?

`quantize` compresses the weights of any JAX model; the submodules hold what it is made of
(`curvature`, `quantizers`, `rate`), the evaluation of compressed networks (`metrics`,
`calibration`, `statistics`, `bounds`), the theory computed (`linear_regression`) and the
experiments (`models`, `data`, `sweep`, `regularization`). Submodules are imported when they are
first used: `import jaxcomp` needs JAX and NumPy only.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxcomp.tree import QuantizedTree, quantize

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


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
