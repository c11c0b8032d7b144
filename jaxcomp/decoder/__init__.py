"""Decode files of compressed models: NumPy and `constriction` only, without JAX.

`docs/format.md` specifies the format. Whatever is wrong with a file is a `FormatError` of one
sentence, and sizes are checked before anything of that size is allocated.
"""

from jaxcomp.decoder.arrays import decode_bare
from jaxcomp.decoder.contents import Contents, FileEntry, inspect
from jaxcomp.decoder.files import KEPT, File
from jaxcomp.decoder.streams import FormatError

__all__ = ["KEPT", "Contents", "File", "FileEntry", "FormatError", "decode_bare", "inspect"]
