"""A user's own Python file: what a compressed model is to do, and on what."""

import runpy
from collections.abc import Callable, Iterable
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

    defined, pairs = _run(path)
    loss: Any = defined.get("loss")
    if not callable(loss) and loss not in ("softmax_cross_entropy", "squared_error"):
        raise ValueError(
            f"{path} defines no loss that is known; set loss to 'softmax_cross_entropy', "
            "'squared_error', or a function (outputs, target) of one example."
        )
    if not pairs:
        raise ValueError(_no_batches(path))
    return CalibrationData(defined["predict_fn"], defined["loss"], pairs)


def read_predict_fn(path: Path) -> tuple[Callable[[Any, Any], Any], list[tuple[Any, Any]]]:
    """Run a Python file, and return its `predict_fn` and its batches; none if it defines none.

    Raises:
        ValueError: if there is no such file, it fails, or lacks `predict_fn`.
    """
    defined, pairs = _run(path)
    return defined["predict_fn"], pairs


def _run(path: Path) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
    """Run a file; return what it defines, and its batches."""
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
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(_no_batches(path))
    return defined, pairs


def _no_batches(path: Path) -> str:
    return (
        f"{path} defines no batches; set batches to a list of pairs (inputs, targets), or to a "
        "function that returns one."
    )
