"""A user's own Python file: what a compressed model is to do, and on what."""

import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcomp.compressed import CalibrationData


def read_hook(path: Path) -> "CalibrationData":
    """Run a Python file, and return what it defines.

    Raises:
        ValueError: if there is no such file, it fails, or lacks `predict_fn`, `loss` or `batches`.
    """
    from jaxcomp.compressed import CalibrationData

    if not path.is_file():
        raise ValueError(f"there is no file {path}; name a Python file that defines predict_fn.")
    try:
        defined = runpy.run_path(str(path))
        batches = defined.get("batches")
        batches = batches() if callable(batches) else batches
        pairs = list(batches) if isinstance(batches, Iterable) else []
    except Exception as error:  # whatever a user's file raises
        raise ValueError(f"{path} failed: {type(error).__name__}: {error}") from error
    if not callable(defined.get("predict_fn")):
        raise ValueError(f"{path} defines no predict_fn; define predict_fn(params, inputs).")
    loss: Any = defined.get("loss")
    if not callable(loss) and loss not in ("softmax_cross_entropy", "squared_error"):
        raise ValueError(
            f"{path} defines no loss that is known; set loss to 'softmax_cross_entropy', "
            "'squared_error', or a function (outputs, target) of one example."
        )
    if not pairs or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(
            f"{path} defines no batches; set batches to a list of pairs (inputs, targets), or to a "
            "function that returns one."
        )
    return CalibrationData(defined["predict_fn"], defined["loss"], pairs)
