"""Labelled image data: one loader, three disjoint parts, and network inputs."""

from jaxcomp.experiments.data.dataset import Dataset, check_dataset
from jaxcomp.experiments.data.inputs import Standardization, standardization, to_inputs
from jaxcomp.experiments.data.loader import DATA_DIR_VARIABLE, DATASET_NAMES, load
from jaxcomp.experiments.data.parts import Parts, draw_parts

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
