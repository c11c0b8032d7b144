"""A checkpoint compressed to a file, by a budget that is counted in bytes of that file.

`compress` counts what its codes take; what else stands in a file (how it was made, the model that
it holds differences to) is allowed for here.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxcomp import __version__
from jaxcomp.checkpoints import Checkpoint, open_checkpoint, refuse_same
from jaxcomp.checkpoints.sharded import files_named
from jaxcomp.checkpoints.tensors import dtype_of
from jaxcomp.coding.streams import Effort
from jaxcomp.compressed.compress import DEFAULT, compress, compress_streamed, select_streamed
from jaxcomp.compressed.file_report import (
    FileReport,
    file_report,
    mean_squared_errors,
)
from jaxcomp.compressed.files import Encoded, Reference
from jaxcomp.compressed.loss_budget import (
    CalibrationData,
    importance_of,
    layers_of,
    smallest_within_loss,
)
from jaxcomp.compressed.selected import Selected
from jaxcomp.compressed.spending import MOST_WEIGHTS_OF_BEST
from jaxcomp.compressed.spool import Spool, spool_beside
from jaxcomp.compressed.tree import CompressedTree
from jaxcomp.compressed.workers import ALONE, Workers, usual_number
from jaxcomp.curvature import DiagonalEstimate, Layers
from jaxcomp.decoder import inspect
from jaxcomp.decoder.arrays import DTYPES
from jaxcomp.decoder.contents import ERRORS
from jaxcomp.numerics.checks import check_count, check_positive
from jaxcomp.quantizers.methods import Method, TrellisCoded
from jaxcomp.storage import PathLike
from jaxcomp.trees.paths import leaves_by_path, matching_paths, replace_leaves, shorten
from jaxcomp.trees.selection import decide
from jaxcomp.trees.tied import Group, group_tied
from jaxcomp.types import Params

# Dtypes of weights in 8 bits; of the others of 8 bits some are scales.
_FLOATS_OF_8 = tuple(name for name in DTYPES if name.startswith(("float8_e4m3", "float8_e5m2")))

# A file that uses this share of its budget is taken; what others aim at, and how many there are.
_SPENT, _AIM, _MOST_TRIALS = 0.985, 0.995, 4
# How many times the largest tensor is worked on at a time: each takes as much memory as two of it,
# on a trellis as six.
_HELD, _HELD_ON_TRELLIS = 2, 1
# Bytes of tensors from which on they are compressed one by one.
_STREAMED = 1 << 28


def compress_file(
    source: PathLike,
    target: PathLike,
    method: Method = DEFAULT,
    *,
    bits_per_weight: float | None = None,
    size_bytes: float | None = None,
    ratio: float | None = None,
    max_mean_squared_error: float | None = None,
    max_loss_increase: float | None = None,
    data: CalibrationData | None = None,
    keep: Sequence[str] = (),
    lossless: bool = False,
    convert_float8: bool = False,
    effort: Effort | None = None,
    record: bool = False,
    reference: PathLike | None = None,
    shard_size: float | None = None,
    importance: PathLike | None = None,
    stream: bool | None = None,
    jobs: int | None = None,
) -> FileReport:
    """Compress a checkpoint to a file, written whole or not at all.

    Which arrays are compressed is decided by their names and shapes, as in `compress`. float16 and
    bfloat16 come back as such.

    Large safetensors, in one file or several, are streamed: a tensor at a time is in memory, and
    what is finished lies in a folder beside the target, `small.jxc.parts`, until the file is there
    (one or two bytes a weight for each point that was tried). The same call goes on where one was
    stopped; one with another budget finds the same curves. The file is the same, byte for byte.

    Args:
        source: what `jaxcomp.checkpoints.open_checkpoint` opens.
        target: the file; a container of safetensors if its name ends so, else jxc.
        method: one of `jaxcomp.quantizers`. Its channels are the first axis of weights of PyTorch
            (whose names end with `.weight`), unless it names an axis itself.
        bits_per_weight: budget: bytes of the compressed arrays in the file over their weights.
        size_bytes: budget: of the whole file.
        ratio: budget: bytes of all arrays before, over those of the file.
        max_mean_squared_error: budget: `sum (w - c)^2` of the compressed weights over their number;
            the bits are least.
        max_loss_increase: budget: in the loss of `data`; the bits are least.
        data: a function of the weights and what it is to do; importance is taken from it.
        keep: glob patterns of paths of arrays that are not compressed.
        lossless: whether all are kept bit for bit.
        convert_float8: whether weights in float8 are compressed as bfloat16, which has all of their
            values; else they are kept as they are.
        effort: see `jaxcomp.compressed.to_bytes`.
        record: whether the file says how it was made and what each array lost.
        reference: another checkpoint: compressed arrays that it has too, of the same dtype and
            shape, are coded as their differences to it. It is needed to decompress the file.
        shard_size: most bytes of the tensors of a file, for safetensors in several files and their
            index (Hugging Face's layout), which are read by the name of the index; None for one.
            Budgets and the report count one file: each of several has a header of its own.
        importance: another checkpoint, with the importance of every weight by the name of its
            tensor, as in `compress`; of safetensors, tensors are read one by one.
        stream: whether tensors are compressed one by one; None for safetensors of 256 MiB or more.
            What needs the whole model in memory is not: `data`, `reference`, `convert_float8`.
        jobs: how many tensors are compressed at a time where they are streamed, if together they
            are no larger than two of the largest (than the largest, by `TrellisCoded`). The file is
            that of one job, byte for byte. None for the number of processors, at most 8.

    Raises:
        FormatError, ImportError, TypeError, ValueError, OSError: as `open_checkpoint`, `compress`
            and `to_bytes`; or if the target is the source, two budgets were given, a budget cannot
            be met, one of a loss has no data, the model cannot be streamed but should, or another
            process writes the same file.
    """
    wanted = {
        "bits_per_weight": bits_per_weight,
        "size_bytes": size_bytes,
        "ratio": ratio,
        "mean_squared_error": max_mean_squared_error,
        "loss_increase": max_loss_increase,
    }
    goal = _goal(wanted, lossless=lossless, has_data=data is not None)
    container = "safetensors" if Path(target).suffix == ".safetensors" else "jxc"
    if jobs is not None:
        check_count("jobs", jobs)
    held = _HELD_ON_TRELLIS if isinstance(method, TrellisCoded) else _HELD
    workers = Workers(usual_number() if jobs is None else int(jobs), held)
    if shard_size is not None:
        check_positive("shard_size", shard_size)
        if container != "safetensors":
            raise ValueError(
                f"only safetensors come in several files; end {Path(target).name} with "
                ".safetensors, or leave shard_size out."
            )
    with contextlib.ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(source))
        other = None if reference is None else stack.enter_context(open_checkpoint(reference))
        weighing = None if importance is None else stack.enter_context(open_checkpoint(importance))
        read = [one for one in (checkpoint, other, weighing) if one is not None]
        for written in files_named(Path(target), shard_size):
            refuse_same(written, (file for one in read for file in one.files))
        if weighing is not None and data is not None:
            raise ValueError("importance is taken from the data; leave out one of both.")
        in_memory = {
            "data": data is not None,
            "reference": reference is not None,
            "convert_float8": convert_float8,
        }
        is_streamed = _is_streamed(
            checkpoint, stream, [name for name, is_so in in_memory.items() if is_so]
        )
        params = checkpoint.tree()
        if convert_float8:
            params = jax.tree.map(_widened, params)
        reasons = _reasons(params, keep, lossless)
        if data is not None:
            data.check(params)
        own_importance, layers = _weighing(method, params, data)
        if weighing is not None:
            own_importance = weighing.tree()
        spool = None
        if is_streamed:
            spool = stack.enter_context(_spool(Path(target), checkpoint, weighing, workers))
        told = None if other is None else _reference(params, other, reasons)
        job = _Job(
            params=params if told is None else _differences(params, told),
            method=_with_channels(method, checkpoint),
            select=lambda path, _: path not in reasons,
            importance=own_importance,
            layers=layers,
            goal=goal,
            container=container,
            effort=effort,
            record=record,
            reference=told,
            spool=spool,
        )
        loss_before = math.nan if data is None else data.loss_of(params)
        tree, encoded = job.within_budget(data, loss_before)
        losses = None if data is None else (loss_before, data.loss_of(job.weights(tree)))
        written = encoded.write(Path(target), shard_size)
        return file_report(
            checkpoint,
            written,
            tree,
            inspect(written).of_size(encoded.size_bytes),
            reasons=reasons,
            goal=goal,
            losses=losses,
        )


@dataclass(frozen=True)
class _Job:
    """What is compressed, and how it is written."""

    params: Any
    method: Method
    select: Callable[[str, Any], bool]
    importance: DiagonalEstimate | Mapping[str, Any] | None
    layers: Layers | None
    goal: tuple[str, float] | None
    container: Literal["jxc", "safetensors"]
    effort: Effort | None
    record: bool
    reference: Reference | None
    spool: Spool | None

    def weights(self, tree: CompressedTree) -> Params:
        """Return what a tree stands for, with the reference."""
        params = tree.params()
        if self.reference is None:
            return params
        leaves = leaves_by_path(params)
        tensors = self.reference.tensors
        sums = {path: leaves[path] + tensors[path].read() for path in self.reference.paths}
        return replace_leaves(params, sums)

    def compress(self, **budget: Any) -> CompressedTree:
        # What the best codes save is found out once the file is there: they take long.
        is_of_loss = self.goal is not None and self.goal[0] == "loss_increase"
        is_quick = is_of_loss or self.num_weights > MOST_WEIGHTS_OF_BEST
        effort = "fast" if is_quick else self.effort
        if self.spool is not None:
            return compress_streamed(
                self._selected, self.spool, budget, effort, is_shared=self.importance is None
            )
        return compress(
            self.params,
            self.method,
            select=self.select,
            importance=self.importance,
            layers=self.layers,
            effort=effort,
            **budget,
        )

    @cached_property
    def _selected(self) -> Selected:
        """The tree taken apart, once for all trials."""
        assert self.spool is not None
        return select_streamed(
            self.params,
            self.method,
            self.spool,
            importance=self.importance,
            select=self.select,
        )

    @cached_property
    def num_weights(self) -> int:
        """Of what is compressed, tied arrays once."""
        return sum(
            group.value.size
            for group in self._groups
            if any(self.select(path, group.value) for path in group.paths)
        )

    @cached_property
    def _groups(self) -> list[Group]:
        groups, _ = group_tied(leaves_by_path(self.params))
        return [group for group in groups if hasattr(group.value, "nbytes")]

    def within_budget(
        self, data: CalibrationData | None, loss_before: float
    ) -> tuple[CompressedTree, Encoded]:
        """Return the tree that keeps to the budget, and its file."""
        if self.goal is None:
            return self._encoded(self.compress())
        name, value = self.goal
        if not self.num_weights:
            raise ValueError(
                f"{name} = {value:g} is a budget of compressed tensors, but all are kept as they "
                "are; leave the budget out, or keep fewer."
            )
        if name == "mean_squared_error":
            return self._encoded(self.compress(max_distortion=value * self.num_weights))
        if name == "loss_increase":
            assert data is not None
            tree = smallest_within_loss(
                lambda bits: self.compress(bits_per_weight=bits),
                lambda tree: data.loss_of(self.weights(tree)),
                loss_before,
                value,
            )
            return self._encoded(tree)
        if name == "bits_per_weight":
            return self._of_size(value, lambda bits: self.compress(bits_per_weight=bits))
        limit = value if name == "size_bytes" else math.floor(self._original_bytes() / value)
        return self._of_size(limit, lambda size: self.compress(size_bytes=size))

    def _of_size(
        self, limit: float, compress_to: Callable[[float], CompressedTree]
    ) -> tuple[CompressedTree, Encoded]:
        """Return the tree whose file uses a limit up, with all that stands in it."""
        assert self.goal is not None
        name, value = self.goal
        aim, best = limit, None
        for _ in range(_MOST_TRIALS):
            try:
                tree = compress_to(aim)
            except ValueError:
                if aim >= limit:
                    raise
                break  # less than the method needs
            file = self.encode(tree)
            size = file.bits_per_weight if name == "bits_per_weight" else file.size_bytes
            if size <= limit and (best is None or size > best[0]):
                best = size, tree, file
            if best is not None and best[0] >= _SPENT * limit:
                break
            # What `compress` does not count: how the file was made, other codes, another container.
            aim *= _AIM * limit / size
        if best is None:
            raise ValueError(
                f"no file of this method keeps to {name} = {value:g}; allow more, or keep fewer "
                "arrays as they are."
            )
        return best[1:]

    def _original_bytes(self) -> int:
        return sum(group.value.nbytes for group in self._groups)

    def _encoded(self, tree: CompressedTree) -> tuple[CompressedTree, Encoded]:
        return tree, self.encode(tree)

    def encode(self, tree: CompressedTree) -> Encoded:
        """Return the file of a tree."""
        made = None
        if self.record:
            made = {
                "jaxcomp": __version__,
                "method": self.method.name,
                "budget": None if self.goal is None else list(self.goal),
                ERRORS: {
                    path: float(f"{error:.3g}") for path, error in mean_squared_errors(tree).items()
                },
            }
        return Encoded(
            tree,
            container=self.container,
            effort=self.effort,
            made=made,
            reference=self.reference,
            sections=self.spool,
            workers=ALONE if self.spool is None else self.spool.workers,
        )


def _is_streamed(checkpoint: Checkpoint, stream: bool | None, in_memory: Sequence[str]) -> bool:
    """Tell whether tensors are compressed one by one; `in_memory` was asked for and forbids it."""
    tensors = checkpoint.tensors.values()
    is_mapped = bool(tensors) and all(tensor.mapped is not None for tensor in tensors)
    if stream and (in_memory or not is_mapped):
        why = f"{in_memory[0]} needs all of the model" if in_memory else "it is no safetensors"
        raise ValueError(f"{checkpoint.path} cannot be streamed, since {why}; leave stream out.")
    if stream is not None or in_memory or not is_mapped:
        return bool(stream)
    sizes = (
        math.prod(tensor.shape) * dtype_of(tensor.dtype).itemsize
        for tensor in checkpoint.tensors.values()
    )
    return sum(sizes) >= _STREAMED


def _spool(
    target: Path, checkpoint: Checkpoint, weighing: Checkpoint | None, workers: Workers
) -> AbstractContextManager[Spool]:
    """Return what is finished of the file of a checkpoint, for the time of a `with` block."""

    def place(one: Checkpoint | None, path: str) -> Any:
        if one is None or path not in one.tensors:
            return None
        mapped = one.tensors[path].mapped
        if mapped is not None:
            return [mapped.identity, path]
        found = [(str(file.resolve()), file.stat()) for file in one.files]
        return [[[name, stat.st_size, stat.st_mtime_ns] for name, stat in found], path]

    def release() -> None:
        checkpoint.release()
        if weighing is not None:
            weighing.release()

    origins = {
        path: [place(checkpoint, path), place(weighing, path)] for path in checkpoint.tensors
    }
    return spool_beside(target, origins, release, workers)


def _goal(
    wanted: Mapping[str, float | None], *, lossless: bool, has_data: bool
) -> tuple[str, float] | None:
    given = {name: value for name, value in wanted.items() if value is not None}
    if lossless and given:
        raise ValueError(f"lossless has no budget, got {', '.join(given)}; leave one of them out.")
    if len(given) > 1:
        raise ValueError(f"one budget at a time, got {' and '.join(given)}; leave out all but one.")
    if not given:
        return None
    ((name, value),) = given.items()
    check_positive(name, value)
    if name == "loss_increase" and not has_data:
        raise ValueError("a budget of the loss needs data; give a hook, or another budget.")
    return name, float(value)


def _weighing(
    method: Method, params: Params, data: CalibrationData | None
) -> tuple[DiagonalEstimate | None, Layers | None]:
    """Return what a method takes from the data: importances, or the layers of the network."""
    if method.needs == "nothing":
        return (None if data is None else importance_of(params, data)), None
    if data is None:
        raise ValueError(f"{method.name} needs data; give a hook, or choose another method.")
    return None, layers_of(params, data)


def _reasons(params: Any, keep: Sequence[str], lossless: bool) -> dict[str, str]:
    """Return why arrays are kept, by path; those that are not there are compressed."""
    decisions = decide(params)
    reasons = {path: own.reason for path, own in decisions.items() if not own.is_compressed}
    for pattern in keep:
        matching = matching_paths(decisions, pattern)
        if not matching:
            raise ValueError(
                f"the pattern {pattern!r} in keep matches no tensor: they are {shorten(decisions)}."
            )
        reasons |= dict.fromkeys(matching, "as asked for")
    return reasons | (dict.fromkeys(decisions, "lossless") if lossless else {})


def _reference(params: Params, other: Checkpoint, reasons: Mapping[str, str]) -> Reference:
    """Return another model, with the paths of compressed arrays that it has too."""
    # Tied arrays need not be tied in the other model: they are stored whole.
    alone = [group for group in group_tied(leaves_by_path(params))[0] if len(group.paths) == 1]
    shared = [
        group.paths[0]
        for group in alone
        if group.paths[0] not in reasons
        and group.paths[0] in other.tensors
        and other.tensors[group.paths[0]][:2] == (group.value.dtype.name, group.value.shape)
    ]
    if not shared:
        raise ValueError(
            f"the reference {other.path} has no compressed tensor of the same name, dtype and "
            f"shape; its tensors are {shorten(other.tensors)}."
        )
    return Reference(other.tensors, frozenset(shared))


def _differences(params: Params, reference: Reference) -> Params:
    """Return a tree with differences in place of weights."""
    leaves, changed = leaves_by_path(params), {}
    for path in reference.paths:
        weights = np.asarray(leaves[path])
        wide = np.float64 if weights.dtype == np.float64 else np.float32
        apart = weights.astype(wide) - reference.tensors[path].read().astype(wide)
        changed[path] = apart.astype(weights.dtype)
    return replace_leaves(params, changed)


def _with_channels(method: Method, checkpoint: Checkpoint) -> Method:
    """Return the method with the axis of outputs of where the weights come from."""
    is_pytorch = any(path.endswith(".weight") for path in checkpoint.tensors)
    if is_pytorch and method.channel_axis == -1:
        return replace(method, channel_axis=0)
    return method


def _widened(leaf: Any) -> Any:
    """Return weights in float8 in bfloat16, which has all of their values."""
    name = getattr(getattr(leaf, "dtype", None), "name", "")
    return leaf.astype(jax.numpy.bfloat16) if name in _FLOATS_OF_8 else leaf
