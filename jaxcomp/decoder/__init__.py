"""Decode files of compressed models: NumPy and `constriction` only, without JAX.

`docs/format.md` specifies the format. Whatever is wrong with a file is a `FormatError` of one
sentence, and sizes are checked before anything of that size is allocated.
"""

from jaxcomp.decoder.arrays import decode_bare
from jaxcomp.decoder.contents import Contents, FileEntry, inspect
from jaxcomp.decoder.files import KEPT, File
from jaxcomp.decoder.opening import is_compressed, open_model
from jaxcomp.decoder.random_codes import RandomCodesFile, is_random_codes, read_random_codes
from jaxcomp.decoder.streams import FormatError

__all__ = [
    "KEPT",
    "Contents",
    "File",
    "FileEntry",
    "FormatError",
    "RandomCodesFile",
    "decode_bare",
    "inspect",
    "is_compressed",
    "is_random_codes",
    "open_model",
    "read_random_codes",
]
