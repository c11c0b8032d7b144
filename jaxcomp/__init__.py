"""How far can a trained model be compressed, what does each bit cost, and does it generalise?

`compress` compresses the weights of any JAX model, `curve` says what each size would cost, `load`
reads the file of a compressed model, `inspect` lists what is in it and `certify` bounds its error
in the population; the submodules hold what they are made of (`curvature`, `quantizers`, `coding`,
`compressed`, and `decoder`, which needs no JAX), how compressed networks are judged (`evaluation`,
`bounds`, `certificates`), the theory computed (`rate_distortion`, `linear_regression`), and the
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
        certificates,
        checkpoints,
        coding,
        compressed,
        curvature,
        decoder,
        evaluation,
        experiments,
        linear_regression,
        quantizers,
        rate_distortion,
        training,
        trees,
        types,
    )
    from jaxcomp.certificates import certify
    from jaxcomp.compressed import CompressedTree, compress, curve, load
    from jaxcomp.decoder import FormatError, inspect

__version__ = "0.2.0"

__all__ = [
    "CompressedTree",
    "FormatError",
    "__version__",
    "adapters",
    "bits_back",
    "bounds",
    "certificates",
    "certify",
    "checkpoints",
    "coding",
    "compress",
    "compressed",
    "curvature",
    "curve",
    "decoder",
    "evaluation",
    "experiments",
    "inspect",
    "linear_regression",
    "load",
    "quantizers",
    "rate_distortion",
    "training",
    "trees",
    "types",
]


_FROM = {
    **dict.fromkeys(("FormatError", "inspect"), "decoder"),
    "certify": "certificates",
    **dict.fromkeys(("CompressedTree", "compress", "curve", "load"), "compressed"),
}


def __getattr__(name: str) -> Any:
    if name in _FROM:
        value = getattr(importlib.import_module(f"{__name__}.{_FROM[name]}"), name)
        globals()[name] = value  # asked for once
        return value
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
