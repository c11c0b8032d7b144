"""What a file decodes to, and what of it a certificate charges."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcomp import bounds
from jaxcomp.certificates.architecture import Architecture, described
from jaxcomp.checkpoints import Checkpoint, Tensor, is_compressed, open_checkpoint
from jaxcomp.checkpoints.decompression import arrays_of, constants
from jaxcomp.checkpoints.references import give_reference, plain_bits
from jaxcomp.checkpoints.tensors import with_own_dtype
from jaxcomp.coding.arrays import write_parts
from jaxcomp.coding.streams import StackWriter
from jaxcomp.compressed.files import load
from jaxcomp.decoder import (
    File,
    FormatError,
    decode_bare,
    is_random_codes,
    read_random_codes,
)
from jaxcomp.decoder.arrays import added, bytes_of
from jaxcomp.storage import PathLike
from jaxcomp.trees.description import rebuild_tree
from jaxcomp.trees.paths import leaves_by_path, replace_leaves
from jaxcomp.types import Params


class Decoded(NamedTuple):
    """A network, and the bits that describe it.

    Attributes:
        params: its weights, bit for bit those of the file.
        size_bytes: that are charged: of the file, or of its bare stream.
        size_bits: those, what makes them self-delimiting, and choices.
        holds_differences: whether it needs the prior.
        note: what is charged, in words.
    """

    params: Params
    size_bytes: int
    size_bits: float
    holds_differences: bool
    note: str


def decode(
    source: PathLike | bytes,
    *,
    prior: Checkpoint | None = None,
    architecture: Architecture | None = None,
    like: Params | None = None,
) -> Decoded:
    """Decode a file, and count what describes it.

    Args:
        source: a compressed model, also one of random codes, or with an architecture also a bare
            stream; empty for the prior itself, of which nothing is charged.
        prior: the model that it holds differences to; not looked at if it holds none.
        architecture: what was fixed before the data; None charges every byte of the file.
        like: see `jaxcomp.load`.

    Raises:
        FormatError, OSError, ValueError: if the file cannot be read, is none of jaxcomp's, is not
            of this architecture, or holds differences to another model.
    """
    if not isinstance(source, bytes):
        source = Path(source)
        if not source.is_file():
            raise ValueError(f"there is no file {source}; name a compressed model.")
        if not source.stat().st_size:
            source = b""
    if source == b"":
        if prior is None:
            raise ValueError("the file is empty; that stands for the prior itself: give a prior.")
        params = _placed(prior.tree(), like)
        return Decoded(params, 0, 0.0, True, "no byte: it is the prior itself")
    if is_random_codes(source):
        return _of_random_codes(source, architecture, like)
    if not _is_compressed(source):
        if architecture is None:
            raise ValueError(
                f"{'the file' if isinstance(source, bytes) else source} is no compressed model; "
                "make one by `jaxcomp compress`, or give the architecture of a bare stream."
            )
        return _bare(source, architecture, prior, like)
    with ExitStack() as stack:
        file = stack.enter_context(File(source))
        give_reference(file, None if file.reference is None else prior)
        params = _params_of(source, file, like)
        holds_differences = file.reference is not None
        if architecture is not None:
            stream = _transcoded(file, architecture)
            return Decoded(params, *_charged(stream, architecture), holds_differences, _FIXED)
        sizes = [path.stat().st_size for path in file.sources] or [file.size]
    bits = sum(8 * size + float(bounds.self_delimiting_bits(size)) for size in sizes)
    return Decoded(params, sum(sizes), bits, holds_differences, "every byte of the file")


def _of_random_codes(
    source: Path | bytes, architecture: Architecture | None, like: Params | None
) -> Decoded:
    """Decode a file of random codes, of which every byte is charged."""
    if architecture is not None:
        raise ValueError(
            "a file of random codes has no bare stream; certify it by all of its bytes, without an "
            "architecture."
        )
    file = read_random_codes(source)
    bits = 8 * file.size + float(bounds.self_delimiting_bits(file.size))
    return Decoded(_placed(file.tree(), like), file.size, bits, False, "every byte of the file")


_FIXED = "the bare stream of its arrays, without names and shapes"


def checkpoint_of(stack: ExitStack, model: PathLike | Params) -> Checkpoint:
    """Open a model for the time of a stack: a file, or a tree of weights."""
    if isinstance(model, str | Path):
        return stack.enter_context(open_checkpoint(model))
    leaves = {path: np.asarray(leaf) for path, leaf in leaves_by_path(model).items()}
    tensors = {
        path: Tensor(leaf.dtype.name, leaf.shape, lambda leaf=leaf: leaf)
        for path, leaf in leaves.items()
    }
    return Checkpoint(Path("the tree given"), "npz", (), tensors, nested=model)


def weights_of(stack: ExitStack, model: PathLike | Params, like: Params | None) -> Params:
    """Return the weights of a model: a file, or a tree of them."""
    if isinstance(model, str | Path) and is_random_codes(model):
        return _placed(read_random_codes(model).tree(), like)
    if isinstance(model, str | Path) and is_compressed(model):
        return load(model, like=like).params()
    return _placed(checkpoint_of(stack, model).tree(), like)


def _placed(tree: Params, like: Params | None) -> Params:
    return tree if like is None else replace_leaves(like, leaves_by_path(tree))


def _is_compressed(source: Path | bytes) -> bool:
    if not isinstance(source, bytes):
        return is_compressed(source)
    try:
        File(source, max_bytes=1 << 62).close()
    except FormatError:
        return False
    return True


def _params_of(source: Path | bytes, file: File, like: Params | None) -> Params:
    if file.reference is None:
        return load(source, like=like).params()
    leaves = dict(zip(file.paths, arrays_of(file), strict=True))
    return rebuild_tree(file.header["tree"], leaves, like=like)


def _charged(stream: bytes, architecture: Architecture) -> tuple[int, float]:
    size = len(stream)
    choices = float(bounds.choice_bits(*architecture.choices.values()))
    return size, 8 * size + float(bounds.self_delimiting_bits(size)) + choices


def _transcoded(file: File, architecture: Architecture) -> bytes:
    """Return the bare stream that decodes to the arrays of a file, and see that it does."""
    found = described(file)
    numbers = frozenset() if file.reference is None else file.reference[1]
    differences = {file.entries[number].path for number in numbers}
    if found != list(architecture.arrays) or differences != architecture.differences:
        raise ValueError(
            f"the file holds the arrays {found[:4]}{'...' if len(found) > 4 else ''} and "
            f"{len(differences)} differences, which are not those of the architecture, "
            f"{list(architecture.arrays[:4])} and {len(architecture.differences)}; fix the "
            "architecture before the data, and compress a model of it."
        )
    unsaid = [*constants(file.header["tree"])]
    is_plain = len(file.paths) == len(file.entries) and not any(e.key for e in file.entries)
    if unsaid or not is_plain:
        raise ValueError(
            "the file holds tied arrays, random keys, numbers or text, which a bare stream cannot; "
            "leave the architecture out."
        )
    writer, stored = StackWriter(), []
    for entry in file.entries:
        write_parts(writer, file.parts(entry), entry.dtype, entry.shape, "best")
        stored.append(file.array(entry))
    stream = writer.to_bytes()
    again = decode_bare(stream, architecture.shapes)
    assert all(
        np.array_equal(bytes_of(one), bytes_of(other))
        for one, other in zip(stored, again, strict=True)
    )
    return stream


def _bare(
    source: Path | bytes, architecture: Architecture, prior: Checkpoint | None, like: Params | None
) -> Decoded:
    stream = source if isinstance(source, bytes) else source.read_bytes()
    if architecture.differences and prior is None:
        raise ValueError("the architecture has differences to a prior; give the prior.")
    leaves: dict[str, Any] = {}
    for (path, dtype, shape), values in zip(
        architecture.arrays, decode_bare(stream, architecture.shapes), strict=True
    ):
        if path in architecture.differences:
            assert prior is not None
            tensor = prior.tensors.get(path)
            if tensor is None or tensor[:2] != (dtype, shape):
                raise ValueError(
                    f"the prior {prior.path} has no {path!r} of {dtype} and the shape {shape}; "
                    "name the one that the stream was made with."
                )
            values = added(values, plain_bits(tensor), dtype)
        leaves[path] = with_own_dtype(values, dtype)
    params = leaves if like is None else replace_leaves(like, leaves)
    return Decoded(params, *_charged(stream, architecture), bool(architecture.differences), _FIXED)
