"""What a user states to have fixed before the data: names, shapes and dtypes of the arrays.

Then a file need not hold them, and is charged as a bare stream (`docs/format.md`). A description is
JSON: `arrays`, a list of `[path, dtype, [axis, ...]]` in the order of the stream; `differences`,
the paths of those that are differences to the prior; `choices`, name -> number of candidates, of
what was chosen by looking at the data and the decoder must know, which is charged. Whatever else
stands in it (the function in words) is fixed with it: it goes by the SHA-256 of its bytes.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from jaxcomp.decoder import File, open_model
from jaxcomp.decoder.arrays import DTYPES
from jaxcomp.storage import PathLike
from jaxcomp.storage.files import to_plain

_FORM = (
    '{"arrays": [[path, dtype, [axis, ...]], ...]}, and if there are any "differences": [path, '
    '...] and "choices": {name: number of candidates}'
)


class Architecture(NamedTuple):
    """What was fixed before the data.

    Attributes:
        arrays: path, dtype and shape of each array, in the order of the stream.
        differences: paths of those that are differences to the prior.
        choices: number of candidates of each choice that is charged.
        digest: SHA-256 of the description, in hexadecimal.
    """

    arrays: tuple[tuple[str, str, tuple[int, ...]], ...]
    differences: frozenset[str]
    choices: dict[str, int]
    digest: str

    @property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """What `jaxcomp.decoder.decode_bare` is told."""
        return [(dtype, shape) for _, dtype, shape in self.arrays]


def architecture_of(source: PathLike | bytes) -> str:
    """Return the description of the arrays of a compressed model, to be fixed *before* the data.

    By the header alone: that of any model of the same architecture is the same.

    Args:
        source: path of a compressed model, or its bytes.

    Raises:
        FormatError, OSError: if it cannot be read.
    """
    with open_model(source, max_bytes=1 << 62) as file:
        told: dict[str, Any] = {"arrays": [list(one) for one in described(file)]}
        if file.reference is not None:
            told["differences"] = [file.entries[n].path for n in sorted(file.reference[1])]
    return json.dumps(to_plain(told, "architecture"))


def described(file: File) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return path, dtype and shape of each stored array of a file."""
    return [(entry.path, entry.dtype, entry.shape) for entry in file.entries]


def read_architecture(source: PathLike) -> Architecture:
    """Read the file of a description.

    Raises:
        ValueError: if there is none, or it is another text.
    """
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; write a description: {_FORM}.")
    text = path.read_bytes()
    try:
        told = json.loads(text)
        arrays = tuple((name, dtype, tuple(shape)) for name, dtype, shape in told["arrays"])
        differences, choices = frozenset(told.get("differences", [])), told.get("choices", {})
        is_right = (
            all(type(name) is str and dtype in DTYPES for name, dtype, _ in arrays)
            and all(type(axis) is int and axis >= 0 for _, _, shape in arrays for axis in shape)
            and len({name for name, _, _ in arrays}) == len(arrays) > 0
            and differences <= {name for name, _, _ in arrays}
            and all(type(number) is int and number >= 1 for number in choices.values())
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} describes no architecture; write {_FORM}.") from error
    if not is_right:
        raise ValueError(f"{path} describes no architecture; write {_FORM}.")
    return Architecture(arrays, differences, choices, hashlib.sha256(text).hexdigest())
