"""A compressed model: a pytree of codes, codebooks and kept leaves, and its weights again.

Sizes are estimates (`jaxcomp.coding.sizes`): what an ideal order-0 entropy coder would need for the
codes, plus codebooks and scales, plus the kept leaves at full precision. `save` writes the file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxcomp.compressed.report import Report, brief_totals
from jaxcomp.compressed.tensors import (
    CompressedTensor,
    KeptLayout,
    KeptLeaf,
    TensorLayout,
    decode,
    kept_value,
    report_of,
)
from jaxcomp.numerics.checks import is_concrete
from jaxcomp.numerics.transformations import all_transfers, always_compiled
from jaxcomp.quantizers.methods import Method
from jaxcomp.storage import PathLike
from jaxcomp.trees.paths import shorten
from jaxcomp.trees.tied import Slot
from jaxcomp.types import AnyArray, Params

if TYPE_CHECKING:
    from jaxcomp.coding.streams import Effort
    from jaxcomp.compressed.files import Container


class TreeLayout(NamedTuple):
    """Static part of a compressed tree; `slots` maps the leaves of `structure` to stored leaves."""

    structure: Any  # a PyTreeDef
    slots: tuple[Slot, ...]
    leaves: tuple[TensorLayout | KeptLayout, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class CompressedTree:
    """Weights after `compress`: codes and codebooks of some leaves, the others as they were.

    A pytree of its arrays: pass it through `jax.jit` and call `params` inside; two trees of the
    same model and methods, and of codebooks of the same sizes, share one compilation.

    Attributes:
        leaves: one `CompressedTensor` or `KeptLeaf` for each distinct leaf of the original tree.
        layout: structure, paths, methods, shapes and dtypes; static.
    """

    leaves: tuple[CompressedTensor | KeptLeaf, ...]
    layout: TreeLayout = field(metadata={"static": True})

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all compressed leaves, every place of a tied one."""
        return tuple(path for _, layout in self._tensors() for path in layout.paths)

    @always_compiled
    @all_transfers
    def params(self) -> Params:
        """Return weights in the structure, shapes and dtypes of the original; works in `jit`.

        Leaves that were one array are one array again, on the devices and with the sharding of
        the original. NumPy's float64 while JAX has 32 bits comes back as such outside `jit`.
        Tensors of PyTorch come back as arrays.
        """
        tensors = self._tensors()
        values = [
            kept_value(leaf) if isinstance(leaf, KeptLeaf) else decode(*next(tensors))
            for leaf in self.leaves
        ]
        return self.layout.structure.unflatten(
            [
                values[slot.number] if slot.view is None else slot.view.apply(values[slot.number])
                for slot in self.layout.slots
            ]
        )

    def tensor(self, path: str) -> CompressedTensor:
        """Return what is stored for the compressed leaf at `path`.

        Raises:
            ValueError: if there is no leaf at `path`, or it was kept as it was.
        """
        return self._at(path)[0]

    def codes(self, path: str) -> Int[AnyArray, "..."]:
        """Return the cluster or integer of every weight of a leaf, shaped like it.

        Raises:
            ValueError: if the leaf has no codes, as after pruning.
        """
        leaf, method = self._at(path)
        if method.keeps_weights:
            raise ValueError(
                f"the leaf {path!r} has no codes after {method.name}; tensor(path) returns what "
                "is stored for it."
            )
        return leaf.codes

    def codebook(self, path: str) -> Float[AnyArray, "*layers clusters"]:
        """Return the codebook of a leaf, ascending; of a stack of layers (layers, clusters).

        Raises:
            ValueError: if the leaf has none: after rounding or pruning.
        """
        leaf, method = self._at(path)
        if leaf.codebook is None:
            raise ValueError(
                f"the leaf {path!r} has no codebook after {method.name}; tensor(path) returns "
                "what is stored for it."
            )
        return leaf.codebook

    def _tensors(self) -> Iterator[tuple[CompressedTensor, TensorLayout]]:
        """The compressed leaves, with what they were."""
        for leaf, layout in zip(self.leaves, self.layout.leaves, strict=True):
            if isinstance(leaf, CompressedTensor) and isinstance(layout, TensorLayout):
                yield leaf, layout

    def _at(self, path: str) -> tuple[CompressedTensor, Method]:
        """The compressed leaf at a path, and its method."""
        for leaf, layout in self._tensors():
            if path in layout.paths:
                return leaf, layout.method
        if any(path in layout.paths for layout in self.layout.leaves):
            raise ValueError(
                f"the leaf {path!r} was not compressed; it is kept as it was, see params()."
            )
        raise ValueError(f"there is no leaf {path!r}; compressed leaves are {shorten(self.paths)}.")

    @always_compiled
    @all_transfers
    def report(self) -> Report:
        """Return size, error and diagnostics by layer, and in total.

        Raises:
            ValueError: inside `jit`, where the numbers are not known.
        """
        if not self._is_concrete():
            raise ValueError(
                "report and sizes need arrays with known values; ask for them outside jit and vmap."
            )
        kept = [leaf for leaf in self.leaves if isinstance(leaf, KeptLeaf)]
        reasons: dict[str, list[str]] = {}
        for layout in self.layout.leaves:
            if isinstance(layout, KeptLayout):
                reasons.setdefault(layout.reason, []).append(layout.paths[0])
        return Report(
            tuple(report_of(leaf, layout) for leaf, layout in self._tensors()),
            num_kept=len(kept),
            kept_bits=sum(kept_bits(leaf) for leaf in kept),
            kept={reason: tuple(paths) for reason, paths in reasons.items()},
        )

    @property
    def size_bits(self) -> float:
        """Estimated size: entropy of the codes, codebooks and scales, kept leaves in full.

        Kept leaves include integers and random keys; tied leaves count once.
        """
        return self.report().size_bits

    @property
    def original_bits(self) -> int:
        """Size of all leaves before compression, tied ones once."""
        return self.report().original_bits

    @property
    def ratio(self) -> float:
        """Estimated compression ratio, `original_bits / size_bits`, kept leaves in both."""
        return self.report().ratio

    @all_transfers
    def save(
        self,
        path: PathLike,
        *,
        container: "Container | None" = None,
        effort: "Effort | None" = None,
        made: Mapping[str, Any] | None = None,
    ) -> int:
        """Write the tree to a file, whole or not at all, and return its size in bytes.

        `jaxcomp.load` gives it back, with the same weights bit for bit; `jaxcomp.decoder` reads
        it without JAX. `docs/format.md` specifies the bytes.

        Args:
            path: of the file; missing folders are made.
            container: "jxc"; "safetensors", the same streams as tensors that other programs list;
                "bare", one stream without names, checks or structure. None for safetensors if
                the path ends so, else jxc.
            effort: "fast" for static codes, "best" for contexts of earlier rows too; None for the
                best below 1,000,000 codes of an array.
            made: how the tree was made, as JSON can say it; costs its bytes. None for nothing.

        Raises:
            ImportError: without `constriction` (install `jaxcomp[coding]`).
            TypeError: inside `jit`, or if an array has a dtype that files do not hold.
            ValueError: on another container or effort, or if a name in the tree would be a path
                of files.
            OSError: if the file cannot be written.
        """
        from jaxcomp.compressed.files import save

        return save(self, path, container=container, effort=effort, made=made)

    def _is_concrete(self) -> bool:
        return all(
            isinstance(value, jax.Array | np.ndarray | np.generic | bool) and is_concrete(value)
            for leaf, _ in self._tensors()
            for value in jax.tree.leaves(leaf)
        )

    def __repr__(self) -> str:
        methods = [layout.method.name for _, layout in self._tensors()]
        parts = sorted(set(methods))
        parts.append(f"{len(methods)} of {len(self.leaves)} leaves compressed")
        if self._is_concrete():
            parts += brief_totals(self.report())
        return f"CompressedTree({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """Return the report as a table, for notebooks."""
        return self.report()._repr_html_()


def kept_bits(leaf: KeptLeaf) -> int:
    """Size of a kept leaf in bits; 0 for what is not an array."""
    value = kept_value(leaf)
    return 8 * value.size * value.dtype.itemsize if hasattr(value, "dtype") else 0
