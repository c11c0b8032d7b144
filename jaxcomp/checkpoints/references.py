"""Models that others are told by their differences to."""

import hashlib
from collections.abc import Iterable

import numpy as np

from jaxcomp.checkpoints.tensors import Checkpoint, Tensor
from jaxcomp.decoder import File
from jaxcomp.decoder.arrays import bytes_of


def give_reference(file: File, reference: Checkpoint | None) -> None:
    """Give a compressed model the arrays that it holds differences to.

    Raises:
        FormatError: if the reference is another than the file was made with.
        ValueError: if it lacks an array, or the file needs one and there is none, or the reverse.
    """
    if file.reference is None:
        if reference is not None:
            raise ValueError("the compressed model holds no differences; leave the reference out.")
        return
    if reference is None:
        raise ValueError(
            "the compressed model holds differences to another one, with the SHA-256 "
            f"{file.reference[0]}; name that as its reference."
        )
    for number in file.reference[1]:
        entry = file.entries[number]
        found = reference.tensors.get(entry.path)
        if found is None or found[:2] != (entry.dtype, entry.shape):
            raise ValueError(
                f"the reference {reference.path} has no {entry.path!r} of {entry.dtype} and the "
                f"shape {entry.shape}; name the model that the file was made with."
            )
    file.give_reference(lambda path: plain_bits(reference.tensors[path]))


def digest_of(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of arrays, one after the other, in hexadecimal."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(bytes_of(plain_bits(tensor)).data)
    return hashed.hexdigest()


def plain_bits(tensor: Tensor) -> np.ndarray:
    """Return an array of weights as the decoder has it: bfloat16 as bits."""
    values = np.ascontiguousarray(tensor.read())
    return values.view(np.uint16) if tensor.dtype == "bfloat16" else values
