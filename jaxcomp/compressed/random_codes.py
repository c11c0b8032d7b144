"""Files of random codes: their length is known before anything is trained.

Section 5 of `docs/format.md`; `jaxcomp.decoder.read_random_codes` reads them without JAX.
"""

import json
import zlib
from typing import Any

import numpy as np

from jaxcomp.decoder import random_codes
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.storage import PathLike, write_bytes_atomic
from jaxcomp.training import Coded, RandomCode, random_code
from jaxcomp.trees.description import describe_tree
from jaxcomp.types import Params


@all_transfers
def random_codes_to_bytes(code: RandomCode, coded: Coded) -> bytes:
    """Return the file of a network.

    Args:
        code: what it was encoded with.
        coded: all of its blocks.

    Raises:
        ValueError: if a block is not coded, or all were by another code.
    """
    layout, indices = code.layout, np.asarray(coded.indices)
    word = int(np.asarray(coded.check_word))
    if indices.shape != (layout.num_blocks,) or word != layout.check_word:
        raise ValueError("the indices are those of another code; give the one they were made with.")
    if np.any(indices < 0):
        raise ValueError("some blocks have no index yet; encode them all before writing.")
    scales = np.asarray(coded.scales, np.float32)
    found = random_codes.values_of(layout, indices, scales)
    block = _header(code)
    rest = b"".join(
        [
            len(block).to_bytes(2, "little"),
            block,
            random_codes.digest_of(found),
            word.to_bytes(4, "little"),
            scales.astype("<f4").tobytes(),
            random_codes.packed(layout, indices),
        ]
    )
    return random_codes.MAGIC + zlib.crc32(rest).to_bytes(4, "little") + rest


def save_random_codes(code: RandomCode, coded: Coded, path: PathLike) -> int:
    """Write the file of a network, whole or not at all, and return its size in bytes.

    Args:
        code: what it was encoded with.
        coded: all of its blocks.
        path: of the file; by custom it ends in `.jxr`.

    Raises:
        OSError: if it cannot be written.
        ValueError: as `random_codes_to_bytes`.
    """
    data = random_codes_to_bytes(code, coded)
    write_bytes_atomic(path, data)
    return len(data)


def random_codes_size(code: RandomCode) -> int:
    """Return the bytes of any file of a code."""
    fixed = len(random_codes.MAGIC) + 4 + 2 + 32 + 4
    return fixed + len(_header(code)) + 4 * len(code.layout.shapes) + code.layout.index_bytes


def random_code_of_size(params: Params, size_bytes: int, **options: Any) -> RandomCode:
    """Return the code whose files have at most so many bytes, names and checks included.

    Args:
        params: a network; see `jaxcomp.training.random_code`.
        size_bytes: of the whole file.
        **options: block_bits, seed and sharing of `random_code`.

    Raises:
        TypeError, ValueError: as `random_code`; or if not even one index fits.
    """
    block_bits = options.get("block_bits", 12)
    least = random_code(params, **{"index_bytes": -(-block_bits // 8), **options})
    room = size_bytes - (random_codes_size(least) - least.layout.index_bytes)
    # Numbers of more digits make the header a few bytes longer.
    for index_bytes in range(room, max(room - 32, 0), -1):
        code = random_code(params, **{"index_bytes": index_bytes, **options})
        if random_codes_size(code) <= size_bytes:
            return code
    raise ValueError(
        f"a file of this network has {random_codes_size(least):,} bytes with a single index; "
        f"choose more than the {size_bytes:,} bytes given."
    )


def _header(code: RandomCode) -> bytes:
    """Return the description of the tree, shapes and counts, compressed."""
    layout = code.layout
    skeleton = code.structure.unflatten([np.zeros(0, np.int8)] * len(layout.shapes))
    counts = layout.num_blocks, layout.block_bits, layout.seed, layout.sharing
    told = [describe_tree(skeleton), layout.shapes, *counts]
    deflate = zlib.compressobj(9, wbits=-15)
    return deflate.compress(json.dumps(told, separators=(",", ":")).encode()) + deflate.flush()
