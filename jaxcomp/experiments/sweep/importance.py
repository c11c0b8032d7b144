"""What weighs the squared error of a weight in K-means: names and looks."""

import re
from typing import NamedTuple


class ImportanceName(NamedTuple):
    """How an importance is spoken of.

    Attributes:
        label: in a table or picture.
        sentence: the quantizer, in a sentence.
        colour: in pictures.
    """

    label: str
    sentence: str
    colour: str


IMPORTANCES: dict[str, ImportanceName] = {
    "none": ImportanceName("unweighted", "K-means", "#0072B2"),
    "gauss_newton": ImportanceName("Gauss-Newton", "Gauss-Newton-weighted K-means", "#D55E00"),
    "hutchinson": ImportanceName("Hutchinson", "Hutchinson-weighted K-means", "#CC79A7"),
    "fisher": ImportanceName("Fisher", "Fisher-weighted K-means", "#009E73"),
    "adam": ImportanceName("Adam", "Adam-weighted K-means", "#E69F00"),
}
ALLOWED = ", ".join([*IMPORTANCES, "hutchinson-N"])
PROBES = re.compile(r"hutchinson-(\d+)")


def is_importance(name: str) -> bool:
    """Tell whether there is an importance of that name."""
    match = PROBES.fullmatch(name)
    return name in IMPORTANCES or (match is not None and int(match[1]) >= 2)


def importance_name(name: str) -> ImportanceName:
    """Return how an importance is spoken of; an unknown one by its own name."""
    match = PROBES.fullmatch(name)
    if match is not None:
        known = IMPORTANCES["hutchinson"]
        return known._replace(
            label=f"{known.label} ({match[1]} probes)",
            sentence=f"Hutchinson-weighted K-means ({match[1]} probes)",
        )
    return IMPORTANCES.get(name, ImportanceName(name, f"{name}-weighted K-means", "#6b6b6b"))
