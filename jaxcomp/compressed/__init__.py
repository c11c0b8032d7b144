"""A compressed model: codes and codebooks of its tensors, their sizes, and its weights again."""

from jaxcomp.compressed.compress import compress, curve
from jaxcomp.compressed.file_report import FileReport
from jaxcomp.compressed.files import load, to_bytes
from jaxcomp.compressed.from_integers import from_integers
from jaxcomp.compressed.loss_budget import CalibrationData
from jaxcomp.compressed.qwix_arrays import to_qwix
from jaxcomp.compressed.random_codes import (
    random_code_of_size,
    random_codes_size,
    random_codes_to_bytes,
    save_random_codes,
)
from jaxcomp.compressed.report import LayerReport, Report
from jaxcomp.compressed.tensors import CompressedTensor, KeptLeaf
from jaxcomp.compressed.to_file import compress_file
from jaxcomp.compressed.tree import CompressedTree
from jaxcomp.compressed.units import sort_units

__all__ = [
    "CalibrationData",
    "CompressedTensor",
    "CompressedTree",
    "FileReport",
    "KeptLeaf",
    "LayerReport",
    "Report",
    "compress",
    "compress_file",
    "curve",
    "from_integers",
    "load",
    "random_code_of_size",
    "random_codes_size",
    "random_codes_to_bytes",
    "save_random_codes",
    "sort_units",
    "to_bytes",
    "to_qwix",
]
