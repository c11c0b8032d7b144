"""The laboratory: sweeps, regularization, linear regression, small descriptions, training.

An experiment is settings, work that is stored part by part, a table, claims and pictures. The
modules here are what does not depend on which; the library never imports any of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcomp.experiments import (
        data,
        linear_regression,
        networks,
        regularization,
        small_descriptions,
        sweep,
        train_small,
    )

__all__ = [
    "data",
    "linear_regression",
    "networks",
    "regularization",
    "small_descriptions",
    "sweep",
    "train_small",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
