"""What is finished of a model larger than memory, in a folder beside the file that it becomes.

Curves, codes and sections of tensors lie here until the file is put together, each under the
SHA-256 of what it was made from (the place, size and time of the file of the weights, the method,
the point, versions). So whoever asks again finds them: the next trial of a budget, and the same
command after it was stopped. A command with other settings finds what is the same for it.
"""

import contextlib
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcomp import __version__
from jaxcomp.checkpoints.tensors import dtype_of
from jaxcomp.coding.streams import Effort
from jaxcomp.compressed.report import Measures
from jaxcomp.compressed.sections import Section
from jaxcomp.compressed.selected import Tensor
from jaxcomp.compressed.tensors import CompressedTensor, KeptLayout, KeptLeaf, TensorLayout
from jaxcomp.compressed.workers import ALONE, Workers
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.storage import (
    FolderLock,
    MappedFile,
    PathLike,
    atomic_writer,
    fingerprint,
    load_arrays,
    remove_temporary_files,
    save_arrays,
)

# What is kept of a value whose parts are arrays and numbers, by its name.
_KINDS = {kind.__name__: kind for kind in (Curve, Point, CompressedTensor, Measures)}
_OURS = re.compile(r"[0-9a-f]{64}\.(found|codes|section)|\..*\.tmp|\.jaxcomp\.lock")
_CODES_KEPT_APART = np.zeros(0, np.uint8)


class Spool:
    """Results about the tensors of one model, in a folder.

    Args:
        folder: of the results; made when there is one.
        origins: what the array at each path is read from, as `jaxcomp.storage.fingerprint` takes
            it: it changes when the numbers may.
        release: gives the memory of the weights back.
        workers: who visits the tensors; several may ask at a time, for different tensors.
    """

    def __init__(
        self,
        folder: PathLike,
        origins: Mapping[str, Any],
        release: Callable[[], None],
        workers: Workers = ALONE,
    ) -> None:
        self._folder, self._origins, self._release = Path(folder), origins, release
        self.workers = workers
        # What arrays of numbers depend on beside their inputs.
        self._versions = [
            __version__,
            jax.__version__,
            jax.default_backend(),
            jax.dtypes.canonicalize_dtype(np.float64).name,
        ]
        # Leaves by their objects, which are held so that no other has the number of one.
        self._keys: dict[int, tuple[Any, str]] = {}
        self._leaves: dict[str, tuple[CompressedTensor, MappedFile]] = {}

    def release(self) -> None:
        """Give back the memory of what was read of weights and codes."""
        self._release()
        for _, file in list(self._leaves.values()):
            file.release()

    def tensor(self, tensor: Tensor) -> Tensor:
        """Return a tensor whose curves and codes are looked for here first."""
        return SpooledTensor.of(tensor, self)

    def key(self, paths: Sequence[str], *told: Any) -> str:
        """Return the name of what is made of the array at these paths."""
        return fingerprint([self._versions, [self._origins[path] for path in paths], *told])

    def found(self, key: str, make: Callable[[], Any]) -> Any:
        """Return what lies under a key: arrays and numbers in tuples and lists; made if need be."""
        path = self._folder / f"{key}.found"
        with contextlib.suppress(ValueError):  # what is not there, or damaged, is made again
            arrays, told = load_arrays(path)
            return _unpacked(told["value"], arrays)
        value = make()
        arrays: dict[str, np.ndarray] = {}
        save_arrays(path, arrays, {"value": _packed(value, arrays)})
        self.release()
        return value

    def leaf(self, key: str, make: Callable[[], CompressedTensor]) -> CompressedTensor:
        """Return a compressed tensor with codes that lie in a file."""
        if key not in self._leaves:
            path = self._folder / f"{key}.codes"

            def apart() -> list[Any]:
                made = make()
                codes = np.asarray(made.codes)
                with atomic_writer(path) as file:
                    file.write(np.ascontiguousarray(codes).reshape(-1).view(np.uint8).data)
                return [made._replace(codes=_CODES_KEPT_APART), codes.dtype.name, *codes.shape]

            if not path.exists():
                (self._folder / f"{key}.found").unlink(missing_ok=True)
            leaf, dtype, *shape = self.found(key, apart)
            file = MappedFile(path)
            codes = np.frombuffer(file.data, dtype_of(dtype)).reshape(shape)
            leaf = leaf._replace(codes=codes)
            self._leaves[key], self._keys[id(leaf)] = (leaf, file), (leaf, key)
        return self._leaves[key][0]

    def section(
        self,
        leaf: CompressedTensor | KeptLeaf,
        layout: TensorLayout | KeptLayout,
        effort: Effort,
        make: Callable[[], tuple[str, bytes]],
    ) -> Section:
        """Return the section of a leaf; see `jaxcomp.compressed.sections.Sections`."""
        own = self._keys[id(leaf)][1] if id(leaf) in self._keys else self.key(layout.paths, "kept")
        path = self._folder / f"{fingerprint([own, effort])}.section"
        with contextlib.suppress(OSError):
            if section := _section_at(path):
                return section
        code, data = make()
        with atomic_writer(path) as file:
            file.write(data)
            file.write(zlib.crc32(data).to_bytes(4, "little") + code.encode())
        del data
        self.release()
        section = _section_at(path)
        assert section is not None
        return section


class SpooledTensor(Tensor):
    """A tensor whose results lie in a spool."""

    _spool: Spool
    _key: str

    @classmethod
    def of(cls, tensor: Tensor, spool: Spool) -> "SpooledTensor":
        """Return a tensor with the same results."""
        own = cls(*tensor)
        own._spool = spool
        # The method has its parameter here, and what suits the leaf.
        own._key = spool.key(tensor.paths, tensor.method, tensor.layout.is_stack)
        return own

    def points(self, parameter: Any) -> list[Point]:
        """The operating point of every layer."""
        return self._found(
            ["points", parameter], lambda: super(SpooledTensor, self).points(parameter)
        )

    def curves(self, parameters: np.ndarray | None = None) -> list[Curve]:
        """The points of every layer that a budget may choose, distortions in original units."""
        return self._found(
            ["curves", parameters], lambda: super(SpooledTensor, self).curves(parameters)
        )

    def energies(self) -> list[float]:
        """The sum of the squared weights of every layer, in original units; 1 for zeros."""
        return self._found(["energies"], super().energies)

    def apply(self, points: Sequence[Point]) -> CompressedTensor:
        """Give the weights of every layer their codes, which lie in a file."""
        key = fingerprint([self._key, "leaf", [list(point) for point in points]])
        return self._spool.leaf(key, lambda: super(SpooledTensor, self).apply(points))

    def _found(self, told: list[Any], make: Callable[[], Any]) -> Any:
        return self._spool.found(fingerprint([self._key, *told]), make)


@contextlib.contextmanager
def spool_beside(
    target: Path,
    origins: Mapping[str, Any],
    release: Callable[[], None],
    workers: Workers = ALONE,
) -> Iterator[Spool]:
    """Keep what is finished of a file beside it, until this block ends without an error.

    Args:
        target: the file.
        origins: see `Spool`.
        release: see `Spool`.
        workers: see `Spool`.

    Raises:
        ValueError: if someone else writes the same file, or the folder of the parts holds other
            things.
        OSError: if the folder cannot be made.
    """
    folder = target.with_name(f"{target.name}.parts")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}, where parts of {target.name} would go, is a file; rename it.")
    folder.mkdir(parents=True, exist_ok=True)
    others = [entry.name for entry in folder.iterdir() if not _OURS.fullmatch(entry.name)]
    if others:
        raise ValueError(
            f"{folder}, where parts of {target.name} would go, holds {others[0]}; rename it."
        )
    lock = FolderLock(folder)
    if not lock.acquire():
        raise ValueError(
            f"another process writes {target} (its parts are in {folder}); wait until it is done, "
            "or name another file."
        )
    try:
        remove_temporary_files(folder)  # of a process that was killed
        yield Spool(folder, origins, release, workers)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # it holds what is finished
            folder.rmdir()


def _section_at(path: Path) -> Section | None:
    """Return the section that lies in a file; None if there is none that is whole."""
    if not path.exists():
        return None
    data = path.read_bytes()
    checksum, code = int.from_bytes(data[-5:-1], "little"), data[-1:].decode("latin-1")
    if len(data) < 5 or zlib.crc32(data[:-5]) != checksum:
        return None
    return Section(code, len(data) - 5, checksum, lambda: path.read_bytes()[:-5])


def _packed(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return a value as JSON says it; its arrays go among the others."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        kind = type(value).__name__
        return [kind, *(_packed(part, arrays) for part in value)]
    name, own = str(len(arrays)), np.asarray(value)
    is_plain = own.dtype.kind in "biufc"
    # Short dtypes are none of NumPy's: their bits are kept.
    arrays[name] = own if is_plain else own.view(f"uint{8 * own.dtype.itemsize}")
    where = "device" if isinstance(value, jax.Array) else "host"
    return ["array", name, own.dtype.name, where]


def _unpacked(told: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if not isinstance(told, list):
        return told
    kind, *parts = told
    if kind == "array":
        name, dtype, where = parts
        own = arrays[name].view(dtype_of(dtype))
        return jax.device_put(own) if where == "device" else own
    values = [_unpacked(part, arrays) for part in parts]
    if kind in _KINDS:
        return _KINDS[kind](*values)
    return tuple(values) if kind == "tuple" else values
