"""A compressed model: codes and codebooks of its tensors, their sizes, and its weights again."""

from jaxcomp.compressed.compress import compress, curve
from jaxcomp.compressed.files import load, to_bytes
from jaxcomp.compressed.report import LayerReport, Report
from jaxcomp.compressed.tensors import CompressedTensor, KeptLeaf
from jaxcomp.compressed.tree import CompressedTree

__all__ = [
    "CompressedTensor",
    "CompressedTree",
    "KeptLeaf",
    "LayerReport",
    "Report",
    "compress",
    "curve",
    "load",
    "to_bytes",
]
