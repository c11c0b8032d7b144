"""Networks as indices of random candidates: the generator, and files of them, by NumPy alone.

Section 5 of `docs/format.md`. Candidates come from a counter by whole numbers, and from a table of
normal deviates that is made by additions, products and quotients of float64, which are the same on
every platform; so are the networks.

Axes: `B` blocks, `W` places of a block, `N` weights of all arrays in order, `D` distinct values.

Sources: Salmon, Moraes, Dror, Shaw, SC 2011, doi:10.1145/2063384.2063405 (Threefry-2x32);
Havasi, Peharz, Hernandez-Lobato, arXiv:1810.00440 (indices of random candidates); Chen, Wilson,
Tyree, Weinberger, Chen, arXiv:1504.04788 (weights that share values at random).
"""

import hashlib
import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxcomp.decoder.arrays import bytes_of, check_size
from jaxcomp.decoder.files import ERRORS, walk
from jaxcomp.decoder.streams import FormatError, require

MAGIC = b"JXR\x01"
MOST_BLOCK_BITS = 16
_MOST_WEIGHTS, _MOST_AXES = 1 << 28, 32
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_TABLE_BITS = 16
# Second words of keys; the first is the seed. Those of candidates are numbers of blocks.
_ORDER, _SHARING, _CHECK = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD

_Words = TypeVar("_Words")


class CodeLayout(NamedTuple):
    """What encoder and decoder agree on; hashable.

    Attributes:
        shapes: of the arrays, in order.
        num_blocks: B.
        block_bits: of an index, 1 to 16.
        seed: of the generator, below 2^32.
        sharing: weights of an array that have one value in common, up to a sign.
    """

    shapes: tuple[tuple[int, ...], ...]
    num_blocks: int
    block_bits: int
    seed: int
    sharing: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Weights of each array."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def num_values(self) -> int:
        """D: values that differ."""
        return sum(-(-size // self.sharing) for size in self.sizes)

    @property
    def width(self) -> int:
        """W: places of a block; some blocks have one value less."""
        return max(-(-self.num_values // self.num_blocks), 1)

    @property
    def index_bytes(self) -> int:
        """Bytes of all indices."""
        return -(-self.num_blocks * self.block_bits // 8)

    @property
    def check_word(self) -> int:
        """A word of 32 bits, which another seed or other counts hardly share."""
        first = (self.num_blocks << 5 | self.block_bits) & 0xFFFFFFFF
        counter = np.asarray([first], np.uint32), np.asarray([self.sharing], np.uint32)
        words = threefry((self.seed, _CHECK), counter)
        return int(words[0][0])


def threefry(key: tuple[Any, Any], counter: tuple[_Words, _Words]) -> tuple[_Words, _Words]:
    """Return two words for each place of a counter, the same on every machine.

    Args:
        key: two words, numbers or uint32.
        counter: two arrays of uint32 that broadcast, of NumPy or of JAX.

    Returns:
        Arrays of uint32 of the kind of the counter: Threefry-2x32 of 20 rounds.
    """
    words: Any = tuple(counter)
    first, second = (np.uint32(own) if isinstance(own, int) else own for own in key)
    keys = first, second, first ^ second ^ np.uint32(_PARITY)
    low, high = words[0] + keys[0], words[1] + keys[1]
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            low = low + high
            high = (high << np.uint32(turn)) | (high >> np.uint32(32 - turn))
            high = high ^ low
        low = low + keys[(group + 1) % 3]
        high = high + _plus(keys[(group + 2) % 3], group + 1)
    return low, high


def _plus(word: Any, number: int) -> Any:
    """Add a number modulo 2^32, where NumPy would warn of a scalar too."""
    if type(word) is np.uint32:
        return np.uint32((int(word) + number) & 0xFFFFFFFF)
    return word + np.uint32(number)


@lru_cache(1)
def normal_table() -> np.ndarray:
    """Return quantiles of the normal distribution at (i + 1/2)/2^16, (2^16,) float32.

    By Newton's method on `Phi(x) = 1/2 + phi(x) (x + x^3/3 + x^5/15 + ...)`: four operations of
    float64 alone, whose results IEEE 754 fixes, and one rounding. The lower half is the upper one
    with the other sign.
    """
    half = 1 << (_TABLE_BITS - 1)
    share = (np.arange(half) + 0.5) / (2 * half)  # Phi - 1/2
    # Where the function is flat steps go far out: half a standard deviation at most.
    found = share * math.sqrt(2 * math.pi)
    for _ in range(24):
        density = _density(found)
        step = (_central(found, density) - share) / density
        found = found - np.maximum(step, -0.5)
    upper = found.astype(np.float32)
    return np.concatenate([-upper[::-1], upper])


def _density(x: np.ndarray) -> np.ndarray:
    """Return that of the normal distribution, by the series of `exp(x^2/2 / 64)`."""
    y = x * x / 128
    term, total = np.ones_like(x), np.ones_like(x)
    for number in range(1, 20):
        term = term * y / number
        total = total + term
    for _ in range(6):
        total = total * total
    return 0.3989422804014327 / total


def _central(x: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Return `Phi(x) - 1/2`."""
    term, total = x, x
    for number in range(3, 161, 2):
        term = term * (x * x) / number
        total = total + term
    return density * total


@lru_cache(8)
def slots(layout: CodeLayout) -> tuple[np.ndarray, np.ndarray | None]:
    """Return where the value of every weight is, and its sign.

    Returns:
        (N,) int32 places in (B, W), rows first; and (N,) int8 signs, None if nothing is shared.
    """
    order = _ranked(layout.num_values, (layout.seed, _ORDER))[0]
    rank = np.empty(layout.num_values, np.int64)
    rank[order] = np.arange(layout.num_values)
    place = rank % layout.num_blocks * layout.width + rank // layout.num_blocks
    if layout.sharing == 1:
        return place.astype(np.int32), None
    _, words = _ranked(sum(layout.sizes), (layout.seed, _SHARING))
    value, begin, before = np.empty(len(words), np.int64), 0, 0
    for size in layout.sizes:
        own = np.argsort(words[begin : begin + size], kind="stable")
        value[begin + own] = before + np.arange(size) // layout.sharing
        begin, before = begin + size, before + -(-size // layout.sharing)
    return place[value].astype(np.int32), (1 - 2 * (words & 1).astype(np.int8)).astype(np.int8)


def _ranked(count: int, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers below a count in the order of their words, and the words."""
    counter = np.arange(count, dtype=np.uint32), np.zeros(1, np.uint32)
    words = threefry(key, counter)[0]
    return np.argsort(words, kind="stable"), words


@lru_cache(8)
def is_used(layout: CodeLayout) -> np.ndarray:
    """Return which places of (B, W) hold a value."""
    ranks = np.arange(layout.width)[None, :] * layout.num_blocks
    return ranks + np.arange(layout.num_blocks)[:, None] < layout.num_values


def counters(width: int) -> int:
    """Return how many counters a candidate has: each gives two words, four deviates."""
    return -(-width // 4)


def deviates(layout: CodeLayout, indices: np.ndarray) -> np.ndarray:
    """Return the candidates that indices name, (B, W) float32.

    Args:
        layout: of the code.
        indices: (B,) whole numbers below 2^block_bits.
    """
    blocks = np.arange(layout.num_blocks, dtype=np.uint32)[:, None]
    columns = np.arange(counters(layout.width), dtype=np.uint32)[None, :]
    words = threefry((layout.seed, blocks), (indices.astype(np.uint32)[:, None], columns))
    halves = [part for word in words for part in (word & 0xFFFF, word >> 16)]
    return normal_table()[np.concatenate(halves, axis=1)[:, : layout.width]]


def values_of(layout: CodeLayout, indices: np.ndarray, scales: np.ndarray) -> list[np.ndarray]:
    """Return the arrays, float32: deviates times the scale of their array.

    Args:
        layout: of the code.
        indices: (B,) whole numbers below 2^block_bits.
        scales: float32, one for each array.
    """
    place, signs = slots(layout)
    flat = deviates(layout, indices).reshape(-1)[place]
    if signs is not None:
        flat = flat * signs
    ends = np.cumsum(layout.sizes)[:-1]
    parts = zip(np.split(flat, ends), scales.astype(np.float32), layout.shapes, strict=True)
    return [(own * scale).reshape(shape) for own, scale, shape in parts]


def packed(layout: CodeLayout, indices: np.ndarray) -> bytes:
    """Return indices as bytes: digits of each, the highest first, without gaps."""
    shifts = np.arange(layout.block_bits - 1, -1, -1)
    digits = np.asarray(indices, np.int64)[:, None] >> shifts & 1
    return np.packbits(digits.reshape(-1).astype(np.uint8)).tobytes()


def unpacked(layout: CodeLayout, data: bytes) -> np.ndarray:
    """Return the indices in bytes, (B,) int32.

    Raises:
        FormatError: if the bytes are of another length, or their last digits are not zero.
    """
    require(len(data) == layout.index_bytes, "its indices are not all there")
    digits = np.unpackbits(np.frombuffer(data, np.uint8))
    count = layout.num_blocks * layout.block_bits
    require(not digits[count:].any(), "something follows its last index")
    shifts = np.arange(layout.block_bits - 1, -1, -1)
    rows = digits[:count].reshape(layout.num_blocks, layout.block_bits).astype(np.int32)
    return (rows << shifts).sum(axis=1).astype(np.int32)


@dataclass(frozen=True, eq=False)
class StoredCodes:
    """What a file of random codes says, before its network is made.

    Attributes:
        description: of the tree; see section 4 of `docs/format.md`.
        paths: of its arrays, in order.
        layout: of the code.
        indices: (B,) int32.
        scales: float32, one for each array.
        digest: SHA-256 of the arrays.
        size: of the file, bytes.
    """

    description: Any
    paths: tuple[str, ...]
    layout: CodeLayout
    indices: np.ndarray
    scales: np.ndarray
    digest: bytes
    size: int

    def decoded(self) -> dict[str, np.ndarray]:
        """Return the arrays by path, float32, without a look at their SHA-256."""
        found = values_of(self.layout, self.indices, self.scales)
        return dict(zip(self.paths, found, strict=True))


@dataclass(frozen=True, eq=False)
class RandomCodesFile(StoredCodes):
    """What is in a file of random codes, with the arrays of its network.

    Attributes:
        arrays: float32, by path.
    """

    arrays: Mapping[str, np.ndarray]

    def tree(self) -> Any:
        """Return the network."""
        return walk(self.description, lambda path: self.arrays[path])


def is_random_codes(source: str | os.PathLike[str] | bytes) -> bool:
    """Return whether a file, or bytes, begin as random codes of any version."""
    if isinstance(source, bytes):
        return source.startswith(MAGIC[:3])
    if not Path(source).is_file():
        return False
    with open(source, "rb") as file:
        return file.read(3) == MAGIC[:3]


def read_random_codes(
    source: str | os.PathLike[str] | bytes,
    *,
    seed: int | None = None,
    max_bytes: int | None = None,
) -> RandomCodesFile:
    """Read a file of random codes, and make its network.

    Args:
        source: path, or the bytes themselves.
        seed: of the generator as the reader has agreed on it; None for that of the file.
        max_bytes: most bytes that all arrays may have; None for 256 MiB, or 1,024 times the file
            if that is more.

    Raises:
        FormatError: as `stored_codes`; or if the network is not the one that was encoded.
        OSError: if it cannot be read.
    """
    stored = stored_codes(source, seed=seed, max_bytes=max_bytes)
    arrays = stored.decoded()
    is_same = digest_of(list(arrays.values())) == stored.digest
    require(is_same, "its arrays are not those that were encoded")
    return RandomCodesFile(**vars(stored), arrays=arrays)


def stored_codes(
    source: str | os.PathLike[str] | bytes,
    *,
    seed: int | None = None,
    max_bytes: int | None = None,
) -> StoredCodes:
    """Read a file of random codes without making its network.

    Args:
        source: see `read_random_codes`.
        seed: see `read_random_codes`.
        max_bytes: see `read_random_codes`.

    Raises:
        FormatError: if the file is damaged or none of random codes, or was made with another seed
            or another generator.
        OSError: if it cannot be read.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    require(data.startswith(MAGIC), "it does not begin as random codes of version 1")
    require(len(data) >= 12, "it is cut")
    require(zlib.crc32(data[8:]) == int.from_bytes(data[4:8], "little"), "its checksum is wrong")
    end = 10 + int.from_bytes(data[8:10], "little")
    description, paths, layout = _parsed(data[10:end])
    limit = max(1 << 28, 1024 * len(data)) if max_bytes is None else max_bytes
    check_size([("float32", shape) for shape in layout.shapes], limit)
    digest, word, rest = data[end : end + 32], data[end + 32 : end + 36], data[end + 36 :]
    if seed is not None:
        layout = layout._replace(seed=seed)
    require(
        int.from_bytes(word, "little") == layout.check_word,
        f"its indices are not those of the seed {layout.seed}; decode with the seed that it was "
        "encoded with",
    )
    start = 4 * len(paths)
    require(len(rest) == start + layout.index_bytes, "it is cut, or something follows its indices")
    scales = np.frombuffer(rest[:start], "<f4").astype(np.float32)
    require(np.isfinite(scales).all() and (scales > 0).all(), "a scale is not positive")
    indices = unpacked(layout, rest[start:])
    return StoredCodes(description, paths, layout, indices, scales, digest, len(data))


def digest_of(arrays: list[np.ndarray]) -> bytes:
    """Return the SHA-256 of the bytes of arrays, one after the other."""
    hashed = hashlib.sha256()
    for own in arrays:
        hashed.update(bytes_of(own).data)
    return hashed.digest()


def _parsed(block: bytes) -> tuple[Any, tuple[str, ...], CodeLayout]:
    """Return the description of a tree, the paths of its arrays, and the layout of its code."""
    try:
        inflater = zlib.decompressobj(-15)
        text = inflater.decompress(block, 1 << 24)
        require(inflater.eof and not inflater.unused_data, "its header does not end")
        description, shapes, *counts = json.loads(text)
        shapes = tuple(tuple(shape) for shape in shapes)
        require(all(len(shape) <= _MOST_AXES for shape in shapes), "an array has too many axes")
        axes = [axis for shape in shapes for axis in shape]
        are_counts = all(type(own) is int and 0 <= own < 1 << 32 for own in (*axes, *counts))
        require(are_counts and len(counts) == 4, "its header is wrong")
        layout = CodeLayout(shapes, *counts)
        is_possible = 1 <= layout.block_bits <= MOST_BLOCK_BITS and layout.sharing >= 1
        is_possible = is_possible and 1 <= layout.num_blocks < 1 << 27
        is_possible = is_possible and shapes and sum(layout.sizes) <= _MOST_WEIGHTS
        require(is_possible, "it has no code that there is")
        require(layout.num_blocks <= layout.num_values, "it has more blocks than values")
        paths: list[str] = []
        walk(description, paths.append)
        is_whole = len(set(paths)) == len(paths) == len(layout.shapes)
        require(is_whole, "its tree has other arrays")
    except FormatError:
        raise
    except ERRORS as error:
        raise FormatError("its header is wrong") from error
    return description, tuple(paths), layout
