"""A compressed model: codes and codebooks of its tensors, their sizes, and its weights again."""

from jaxcomp.compressed.report import LayerReport, Report
from jaxcomp.compressed.tree import QuantizedTree, quantize

__all__ = ["LayerReport", "QuantizedTree", "Report", "quantize"]
