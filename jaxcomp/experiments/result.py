"""Files of a result: tables for people and programs, and proof that none was changed since."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxcomp import storage
from jaxcomp.experiments import drawing
from jaxcomp.experiments.manifest import MANIFEST, read_manifest
from jaxcomp.experiments.picture_style import PictureStyle, current_style


@contextlib.contextmanager
def loading(folder: Path, noun: str) -> Iterator[dict[str, Any]]:
    """Read the results of a finished run in this block.

    Args:
        folder: of the run.
        noun: what it is called in messages.

    Yields:
        The manifest.

    Raises:
        ValueError: one sentence, if the run is not finished, or a file is missing, damaged or not
            the one that the run wrote.
    """
    manifest = read_manifest(folder, noun, finished=True)
    again = f"run the {noun} again with the same command, which uses what is intact."
    try:
        for name, digest in manifest.get("digests", {}).items():
            if storage.digest_of_file(folder / name) != digest:
                raise ValueError(f"{name} was damaged or changed after the run")
        yield manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        told = str(error).rstrip(".")
        raise ValueError(f"cannot read the results in {folder} ({told}): {again}") from error


def folder_of(
    directory: Path | str | None, own: Path | None, told: str = "this run was made without one"
) -> Path:
    """Return the folder that a result is saved in, made if it is not there.

    Args:
        directory: as the caller names it.
        own: that of the run, which stands in for None.
        told: why there is none.

    Raises:
        ValueError: if no directory is known or it cannot be written.
    """
    folder = Path(directory) if directory is not None else own
    if folder is None:
        raise ValueError(f"name a directory: {told}.")
    return storage.ensure_writable_directory(folder)


def seal(manifest: dict[str, Any], folder: Path, files: Sequence[Path]) -> None:
    """Write down which files the results are, and the style of the pictures if it is not light.

    Damage is found so before they are read.
    """
    manifest.pop("style", None)
    if current_style() is not PictureStyle.light:
        manifest["style"] = str(current_style())
    manifest["digests"] = {file.name: storage.digest_of_file(file) for file in files}
    storage.write_json(folder / MANIFEST, manifest)


def write_table(table: pd.DataFrame, folder: Path, name: str = "table") -> list[Path]:
    """Write a table for people (CSV) and for programs (Parquet, exact); return the files."""
    csv, parquet = folder / f"{name}.csv", folder / f"{name}.parquet"
    storage.write_bytes_atomic(csv, table.to_csv(index=False).encode())
    storage.write_bytes_atomic(parquet, table.to_parquet(index=False))
    return [csv, parquet]


def write_run(result: Any, directory: Path | str | None, *, files: str, picture: str) -> list[Path]:
    """Write the table, the files, the report and the one picture of a run.

    Args:
        result: has `table`, `manifest`, `directory`, `write_files`, `report` and `plot`.
        directory: where to; None for that of the run.
        files: the folder that `write_files` fills.
        picture: its name, without a suffix.

    Returns:
        What was written.

    Raises:
        ValueError: if no directory is known or it cannot be written.
    """
    folder = folder_of(directory, result.directory)
    written = [*write_table(result.table, folder), *result.write_files(folder / files)]
    report = folder / "report.md"
    storage.write_bytes_atomic(report, result.report().encode())
    figure = result.plot()
    drawn = [folder / f"{picture}.{form}" for form in ("png", "svg")]
    for file in drawn:
        storage.write_bytes_atomic(file, drawing.encoded(figure, file.suffix[1:]))
    if folder == result.directory:
        seal(result.manifest, folder, [folder / "table.parquet"])
    return [*written, report, *drawn]


def read_table(file: Path) -> pd.DataFrame:
    """Read a table, Parquet or CSV by its suffix.

    Raises:
        OSError: if it is not there.
        ValueError: if it is damaged.
    """
    # From memory: names of files that are not Unicode are beyond the readers.
    buffer = io.BytesIO(file.read_bytes())
    return pd.read_parquet(buffer) if file.suffix == ".parquet" else pd.read_csv(buffer)


def to_dict(result: Any) -> dict[str, Any]:
    """Return a result as plain objects for JSON, under the names of its public fields.

    Tables are lists of rows, named tuples are objects, paths are text.

    Args:
        result: a dataclass with tables, claims and a manifest.
    """
    public = (field.name for field in dataclasses.fields(result) if not field.name.startswith("_"))
    told = {name: _plain(getattr(result, name)) for name in public}
    return {"kind": told["manifest"].get("kind"), **told}


def _plain(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        return value.to_dict("records")
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(own) for key, own in value.items()}
    if (names := getattr(value, "_fields", None)) is not None:
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
