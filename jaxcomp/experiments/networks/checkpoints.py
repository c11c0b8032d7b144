"""Groups of networks in files: finished ones, and where an interrupted one stood.

A group has two files, named by the hash of all that shaped it; a checkpoint goes when the group is
finished. A disk that is full does not end the training.
"""

import contextlib
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxcomp.experiments.networks.descent import Best, Learner
from jaxcomp.experiments.networks.reports import Report
from jaxcomp.experiments.networks.training_data import Sample
from jaxcomp.storage import (
    flatten_tree,
    load_arrays,
    save_arrays,
    unflatten_tree,
    write_bytes_atomic,
)


class State(NamedTuple):
    """All that a checkpoint keeps: where a group stands."""

    learner: Learner
    best: Best
    train_loss: Float[np.ndarray, "E M"]  # NaN in the epochs to come
    validation_loss: Float[np.ndarray, "E M"]
    epoch: np.int32
    step: np.int32  # within the epoch


class Files(NamedTuple):
    """Where a group is kept: nowhere if there is no folder."""

    directory: Path | None
    name: str

    @property
    def result(self) -> Path | None:
        """The finished group."""
        return self.directory and self.directory / f"{self.name}.npz"

    @property
    def checkpoint(self) -> Path | None:
        """Where it stood."""
        return self.directory and self.directory / f"{self.name}.checkpoint.npz"

    def copy_to(self, other: "Files") -> None:
        """Copy what another folder lacks, as far as it can be read and written."""
        for here, there in ((self.result, other.result), (self.checkpoint, other.checkpoint)):
            if here is None or there is None or there.exists():
                continue
            with contextlib.suppress(OSError):
                write_bytes_atomic(there, here.read_bytes())


def load_result(files: Files, report: Report) -> dict[str, Any] | None:
    """Read a finished group; None if there is none, or none that can be read."""
    path = files.result
    if path is None or files.checkpoint is None or not path.exists():
        return None
    try:
        arrays, header = load_arrays(path)
        if header["fingerprint"] != files.name:
            raise ValueError("The file has the name of another.")
        result = unflatten_tree(arrays)
    except (ValueError, KeyError):
        report.warn(
            f"The cache file {path} is damaged or not one of this cache, so {report.models} will "
            "be trained again."
        )
        return None
    files.checkpoint.unlink(missing_ok=True)  # a run killed between the two files leaves it
    return _on_device(result)


def save_result(files: Files, group: Sample, state: State) -> dict[str, Any]:
    """Write a finished group, remove its checkpoint."""
    result = {
        "variables": state.learner.variables,
        "early_stopped": state.best.variables,
        "best_epoch": np.asarray(state.best.epoch),
        "history": {"train_loss": state.train_loss, "validation_loss": state.validation_loss},
    }
    if files.result is not None and files.checkpoint is not None:
        arrays = {name: np.asarray(leaf) for name, leaf in flatten_tree(result).items()}
        header = {"fingerprint": files.name, "model_ids": list(group.model_ids)}
        if _keep(files.result, arrays, header):
            files.checkpoint.unlink(missing_ok=True)
    return _on_device(result)


def _on_device(result: dict[str, Any]) -> dict[str, Any]:
    return result | jax.device_put({name: result[name] for name in ("variables", "early_stopped")})


def load_checkpoint(files: Files, report: Report, initial: State) -> State:
    """Read where an interrupted group stood; the initial state if nothing can be read."""
    path = files.checkpoint
    if path is None or not path.exists():
        return initial
    leaves, structure = jax.tree.flatten(initial)
    try:
        arrays, header = load_arrays(path)
        if header["fingerprint"] != files.name:
            raise ValueError("The file has the name of another.")
        saved = [arrays[f"{index:04d}"] for index in range(len(leaves))]
    except (ValueError, KeyError):
        report.warn(
            f"The checkpoint {path} is damaged or not one of this cache, so {report.models} will "
            "be trained from the beginning."
        )
        return initial
    state: State = jax.tree.unflatten(structure, saved)
    learner, best = jax.device_put((state.learner, state.best))
    return state._replace(learner=learner, best=best)


def save_checkpoint(files: Files, state: State) -> None:
    """Write where a group stands."""
    if files.checkpoint is None:
        return
    # By position: the state of an optimizer is no tree of named arrays.
    leaves = {f"{index:04d}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(state))}
    _keep(files.checkpoint, leaves, {"fingerprint": files.name})


def _keep(path: Path, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> bool:
    """Write a file of the cache; a disk that is full does not end the training."""
    try:
        save_arrays(path, arrays, header)
    except OSError as error:
        warnings.warn(
            f"{error} The training goes on without keeping its networks.",
            RuntimeWarning,
            stacklevel=1,
        )
        return False
    return True
