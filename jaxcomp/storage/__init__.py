"""Files that survive: atomic writes, checked arrays, JSON, locks, and fingerprints of settings.

A file written here is either whole or absent, so that a run that is killed leaves at most a hidden
temporary file, which `remove_temporary_files` clears.
"""

from jaxcomp.storage.arrays import flatten_tree, load_arrays, save_arrays, unflatten_tree
from jaxcomp.storage.files import (
    PathLike,
    atomic_writer,
    digest_of_file,
    ensure_writable_directory,
    json_line,
    read_json,
    remove_temporary_files,
    write_bytes_atomic,
    write_json,
)
from jaxcomp.storage.fingerprints import fingerprint
from jaxcomp.storage.locks import FileLock, FolderLock
from jaxcomp.storage.mapped import MappedFile

__all__ = [
    "FileLock",
    "FolderLock",
    "MappedFile",
    "PathLike",
    "atomic_writer",
    "digest_of_file",
    "ensure_writable_directory",
    "fingerprint",
    "flatten_tree",
    "json_line",
    "load_arrays",
    "read_json",
    "remove_temporary_files",
    "save_arrays",
    "unflatten_tree",
    "write_bytes_atomic",
    "write_json",
]
