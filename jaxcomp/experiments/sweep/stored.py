"""A network and its codebooks in files: a part of a sweep, and the network without the process.

Two files hold them, `networks/NAME.npz` and `codebooks/NAME.npz`; beside them lie the compressed
networks, `compressed/NAME-VARIANT.jxc`.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxcomp import storage
from jaxcomp.experiments.reproducibility import key_from_plain, key_to_plain
from jaxcomp.experiments.sweep.codebooks import Codebooks
from jaxcomp.experiments.sweep.engine import Network
from jaxcomp.experiments.sweep.subject import Subject
from jaxcomp.experiments.sweep.variants import Variant
from jaxcomp.quantizers import Method
from jaxcomp.quantizers.methods import method_named
from jaxcomp.trees.description import (
    array_of_dtype,
    describe_tree,
    dtype_name,
    plain_array,
    rebuild_tree,
)
from jaxcomp.trees.paths import leaves_by_path
from jaxcomp.types import Params

FOLDERS = ("variants", "networks", "codebooks", "compressed")
"""Of a sweep's run: rows, and what this module writes."""


@dataclass(frozen=True)
class StoredNetwork:
    """How a network and its codebooks are kept; another network of its name is not the right one.

    With other versions or on another machine training may end elsewhere.

    Attributes:
        setting: whose network it is.
        subject: the network at hand.
        key: of its noise.
    """

    setting: str
    subject: Subject
    key: jax.Array

    def read(self, folder: Path, name: str) -> Network | None:
        """The network with its codebooks, if both were stored, are intact and it is the same."""
        try:
            stored, _ = storage.load_arrays(folder / "networks" / f"{name}.npz")
            codebooks = read_codebooks(folder / "codebooks" / f"{name}.npz")
        except ValueError:
            return None
        now = {place: plain_array(leaf) for place, leaf in _network_leaves(self.subject).items()}
        if stored.keys() != now.keys() or any(
            array.dtype != now[place].dtype or array.tobytes() != now[place].tobytes()
            for place, array in stored.items()
        ):
            return None
        return Network(self.subject, codebooks, self.key)

    def write(self, folder: Path, name: str, value: Network) -> None:
        """Write a network and its codebooks."""
        subject = value.subject
        leaves = _network_leaves(subject)
        storage.save_arrays(
            folder / "networks" / f"{name}.npz",
            {place: plain_array(leaf) for place, leaf in leaves.items()},
            {
                "setting": self.setting,
                "model_seed": subject.model_seed,
                "layers": list(subject.layers),
                "stacks": [list(stack) for stack in subject.stacks],
                "structure": describe_tree(subject.as_given(subject.params)),
                "last_layer": subject.last_layer,
                "refreshed": subject.refresh_fn is not None,
                "key": key_to_plain(value.key),
                "dtypes": {place: dtype_name(leaf) for place, leaf in leaves.items()},
                "methods": {label: plain_method(own) for label, own in subject.methods.items()},
            },
        )
        storage.save_arrays(folder / "codebooks" / f"{name}.npz", *value.codebooks.to_arrays())


def read_network(file: Path, codebooks: Path) -> tuple[Network, str]:
    """A network of a finished sweep, and its setting; a damaged file is a `ValueError`."""
    arrays, metadata = storage.load_arrays(file)
    # Leaves by path are a tree of these paths; `as_given` makes it the one that was stored.
    trees: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        root, _, path = name.partition("/")
        trees.setdefault(root, {})[path] = array_of_dtype(array, metadata["dtypes"][name])
    subject = Subject(
        predict_fn=_no_predict_fn,
        params=trees.pop("params"),
        layers=tuple(metadata["layers"]),
        stacks=tuple((path, axis) for path, axis in metadata["stacks"]),
        as_given=partial(rebuild_tree, metadata["structure"]),
        otherwise=trees,
        last_layer=metadata["last_layer"],
        refresh_fn=_no_refresh_fn if metadata["refreshed"] else None,
        model_seed=metadata["model_seed"],
        methods=_methods_of(metadata["methods"]),
    )
    key = key_from_plain(metadata["key"])
    return Network(subject, read_codebooks(codebooks), key), metadata["setting"]


def plain_method(method: Method) -> dict[str, Any]:
    """Return a method as its name and its fields; those that no file holds as what they print."""

    def plain(value: Any) -> Any:
        return value if isinstance(value, bool | int | float | str | None) else repr(value)

    values = {f.name: plain(getattr(method, f.name)) for f in fields(method)}
    return {"name": method.name, "fields": values}


def _methods_of(stored: Mapping[str, Any]) -> dict[str, Method]:
    """Return the methods whose classes are defined here, and take what was stored."""
    found = {}
    for label, own in stored.items():
        kind = method_named(own["name"])
        with contextlib.suppress(TypeError, ValueError):
            if kind is not None:
                found[label] = kind(**own["fields"])
    return found


def write_file(folder: Path, name: str, variant: Variant, data: bytes) -> None:
    """Write the file of a compressed network.

    Args:
        folder: of the run.
        name: of the network.
        variant: how it was compressed.
        data: the file.
    """
    file = f"{name}-{variant.id.replace('/', '_')}.jxc"
    storage.write_bytes_atomic(folder / "compressed" / file, data)


def read_codebooks(file: Path) -> Codebooks:
    """Codebooks from a file; a damaged one is a `ValueError`."""
    return Codebooks.from_arrays(*storage.load_arrays(file))


def _network_leaves(subject: Subject) -> dict[str, Any]:
    """All arrays of a network by the names they are stored under."""
    trees = {"params": subject.params, **subject.otherwise}
    return {
        f"{root}/{path}": leaf
        for root, tree in trees.items()
        for path, leaf in leaves_by_path(tree).items()
    }


def _no_predict_fn(params: Params, inputs: Any) -> Any:
    raise ValueError("a stored network has no predict_fn: use its parameters with your own.")


def _no_refresh_fn(params: Params, inputs: Any) -> Any:
    raise ValueError("a stored network has no refresh_fn: use its parameters with your own.")
