"""Checkpoints of Orbax: folders, read and written by `orbax.checkpoint.v1`."""

import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.checkpoints.tensors import Checkpoint, tensors_of
from jaxcomp.storage.files import reason


def is_orbax(path: Path) -> bool:
    """Tell whether a folder is a checkpoint of Orbax."""
    return (path / "_CHECKPOINT_METADATA").exists() or (path / "_METADATA").exists()


def open_orbax(path: Path) -> Checkpoint:
    """Read a checkpoint of Orbax, as arrays of this process.

    Raises:
        ImportError: without Orbax.
        ValueError: if it cannot be read.
    """
    orbax = _orbax()
    try:
        with _quietly():
            tree = _on_host(orbax.load(path.absolute()))
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint of Orbax ({_first_line(error)}); save its tree "
            "again by orbax.checkpoint.v1.save."
        ) from error
    return Checkpoint(path, "orbax", (path,), dict(tensors_of(tree)), nested=tree)


def write_orbax(path: Path, tree: Any) -> None:
    """Write a checkpoint of Orbax, whole or not at all.

    Raises:
        ImportError: without Orbax.
        ValueError: if there is something at `path` already.
        OSError: if it cannot be written.
    """
    orbax = _orbax()
    if path.exists():
        raise ValueError(f"{path} exists; remove it, or name another folder.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _quietly():
            orbax.save(temporary.absolute(), tree)
        temporary.rename(path)
    except OSError as error:
        raise OSError(
            f"The folder {path} could not be written ({reason(error)}); free some space, change "
            "the permissions or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _orbax() -> Any:
    try:
        from orbax.checkpoint import v1
    except ImportError as error:
        raise ImportError(
            "Checkpoints of Orbax need orbax-checkpoint 0.12 or newer, which is not installed; "
            "install it."
        ) from error
    return v1


@contextmanager
def _quietly() -> Iterator[None]:
    """Leave out remarks on shardings, which say nothing to one who reads arrays alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _on_host(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _on_host(child) for key, child in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_on_host(child) for child in tree)
    return np.asarray(tree) if hasattr(tree, "dtype") and hasattr(tree, "shape") else tree


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
