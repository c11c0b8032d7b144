"""The manifest of a run: settings, versions, device, times and status, in one file of JSON."""

from pathlib import Path
from typing import Any

from jaxcomp import storage

MANIFEST = "manifest.json"

FORMAT_VERSION = 6
"""Of everything in a run directory; goes up when a file, a column or a setting changes its name."""


def read_manifest(folder: Path, noun: str, *, finished: bool = False) -> dict[str, Any]:
    """Read settings, times and status of a run.

    Args:
        folder: of the run.
        noun: what it is called in messages.
        finished: whether an unfinished run is refused.

    Raises:
        ValueError: if the folder holds something else or a run of another version of the format,
            or the run is not finished.
    """
    if not (folder / MANIFEST).exists():
        raise ValueError(f"{folder} holds no {noun}: there is no {MANIFEST} in it.")
    try:
        manifest = storage.read_json(folder / MANIFEST)
    except ValueError as error:
        raise ValueError(
            f"{folder} can no longer be used: its {MANIFEST} could not be read as JSON; delete the "
            "directory or name another."
        ) from error
    kinds = {"settings": dict, "times": dict, "status": str}
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(name), kind) for name, kind in kinds.items()
    ):
        raise ValueError(
            f"{folder} holds no {noun}: its {MANIFEST} was written by something else; name "
            "another directory."
        )
    written = manifest.get("format_version", 1)
    if written != FORMAT_VERSION:
        raise ValueError(
            f"{folder} holds a {manifest.get('kind', noun)} in version {written} of the format, "
            f"this jaxcomp reads version {FORMAT_VERSION}: read it with the jaxcomp that wrote it, "
            "or run again into another directory."
        )
    if finished and manifest["status"] != "finished":
        raise ValueError(f"the {noun} in {folder} is not finished: run the same command again.")
    return manifest
