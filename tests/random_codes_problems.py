"""A file of random codes by the letter of `docs/format.md`, without an encoder."""

import json
import zlib
from typing import Any

import numpy as np

from jaxcomp.decoder import random_codes
from jaxcomp.decoder.random_codes import CodeLayout

LAYOUT = CodeLayout(((3, 4), (5,)), num_blocks=4, block_bits=7, seed=2**32 - 3, sharing=3)
PATHS = ("first/kernel", "list/0")
TREE = ["dict", [["first", ["dict", [["kernel", ["array", PATHS[0]]]]]],
                 ["list", ["list", [["array", PATHS[1]]]]]]]  # fmt: skip
INDICES = np.asarray([0, 127, 5, 64], np.int32)
SCALES = np.asarray([0.5, 1.25], np.float32)


def arrays() -> dict[str, np.ndarray]:
    """What the file decodes to, by path."""
    found = random_codes.values_of(LAYOUT, INDICES, SCALES)
    return dict(zip(PATHS, found, strict=True))


def file_bytes(tree: Any = TREE, layout: Any = LAYOUT, digest: bytes | None = None) -> bytes:
    """The file; of another header or SHA-256 it has the right checksum too."""
    deflate = zlib.compressobj(9, wbits=-15)
    block = deflate.compress(json.dumps([tree, *layout]).encode()) + deflate.flush()
    rest = b"".join(
        [
            len(block).to_bytes(2, "little"),
            block,
            digest or random_codes.digest_of(list(arrays().values())),
            LAYOUT.check_word.to_bytes(4, "little"),
            SCALES.astype("<f4").tobytes(),
            random_codes.packed(LAYOUT, INDICES),
        ]
    )
    return b"JXR\1" + zlib.crc32(rest).to_bytes(4, "little") + rest
