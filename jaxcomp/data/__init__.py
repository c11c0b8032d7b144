"""Labelled image data: one loader, three disjoint parts, and network inputs."""

from jaxcomp.data.dataset import Dataset, check_dataset
from jaxcomp.data.inputs import Standardization, standardization, to_inputs
from jaxcomp.data.loader import DATA_DIR_VARIABLE, DATASET_NAMES, load
from jaxcomp.data.parts import Parts, draw_parts

__all__ = [
    "DATASET_NAMES",
    "DATA_DIR_VARIABLE",
    "Dataset",
    "Parts",
    "Standardization",
    "check_dataset",
    "draw_parts",
    "load",
    "standardization",
    "to_inputs",
]
