"""Files that are wrong in one place and right in all their checksums, and random damage."""

import json
import random
import zlib
from collections.abc import Callable
from typing import Any

MAGIC = b"JXC\x01"


class Forgery:
    """A file taken apart into header and sections; put together with new checksums."""

    def __init__(self, data: bytes) -> None:
        length = int.from_bytes(data[4:8], "little")
        inflater = zlib.decompressobj(-15)
        first, second = inflater.decompress(data[12 : 12 + length]).split(b"\n")
        self.first, self.second = json.loads(first), json.loads(second)
        self.digest = inflater.unused_data[:32]
        self.sections, start = [], 12 + length
        for size in self.second["lengths"]:
            self.sections.append(data[start : start + size])
            start += size

    def text(self) -> bytes:
        """Both lines of the header."""
        return b"\n".join(
            json.dumps(part, separators=(",", ":")).encode() for part in (self.first, self.second)
        )

    def to_bytes(self, text: bytes | None = None) -> bytes:
        """Return the file; `text` in place of its header."""
        deflate = zlib.compressobj(1, wbits=-15)
        block = deflate.compress(self.text() if text is None else text) + deflate.flush()
        block += self.digest
        block += b"".join(zlib.crc32(section).to_bytes(4, "little") for section in self.sections)
        return framed(block) + b"".join(self.sections)


def framed(block: bytes) -> bytes:
    """A block of a header with its length and checksum."""
    return (
        MAGIC + b"".join(n.to_bytes(4, "little") for n in (len(block), zlib.crc32(block))) + block
    )


def forged(data: bytes, change: Callable[[Any], Any]) -> bytes:
    """A file with something changed in it, and checksums that match."""
    forgery = Forgery(data)
    change(forgery)
    return forgery.to_bytes()


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a few random changes: bits, bytes, cuts, repetitions, moves."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(len(found) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 64))
        kind = rng.randrange(6)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(found):
            found[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            del found[place : place + size]
        elif kind == 3:
            found[place:place] = rng.randbytes(size)
        elif kind == 4:
            found[place:place] = found[place : place + size]
        else:
            other = rng.randrange(len(found) + 1)
            found[place : place + size], found[other : other + size] = (
                found[other : other + size],
                found[place : place + size],
            )
    return bytes(found)


def random_file(data: bytes, rng: random.Random) -> bytes:
    """A damaged file: anywhere, or in its header or a section under checksums that match."""
    kind = rng.randrange(3)
    if kind == 0:
        return mutated(data, rng)
    forgery = Forgery(data)
    if kind == 1:
        return forgery.to_bytes(mutated(forgery.text(), rng))
    place = rng.randrange(len(forgery.sections))
    forgery.sections[place] = mutated(forgery.sections[place], rng)
    forgery.second["lengths"][place] = len(forgery.sections[place])
    return forgery.to_bytes()
