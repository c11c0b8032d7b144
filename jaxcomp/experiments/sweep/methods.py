"""The quantizers a sweep compares and how bits are shared between layers: names and looks."""

from typing import NamedTuple


class MethodName(NamedTuple):
    """How a quantizer is spoken of.

    Attributes:
        label: in a table or picture, short.
        sentence: in a sentence; "{}" stands for K-means with its importance.
        colour: in pictures, where it is a line of its own.
        marker: likewise.
    """

    label: str
    sentence: str
    colour: str
    marker: str


METHODS: dict[str, MethodName] = {
    "kmeans": MethodName("K-means", "{}", "#56B4E9", "o"),
    "optimal": MethodName("optimal", "globally optimal {}", "#332288", "D"),
    "entropy_constrained": MethodName("entropy-coded", "entropy-constrained {}", "#882255", "h"),
    "vector": MethodName("vector pairs", "vector {} of pairs of weights", "#999933", "X"),
}
ALLOCATIONS: dict[str, str] = {
    "equal": "the same size of codebook in every layer",
    "optimal": "as many bits in all, shared between the layers for the least distortion",
}
# What a label says of a method whose bits are shared between the layers.
ALLOCATED_LABELS = {
    "kmeans": "K-means alloc",
    "optimal": "optimal alloc",
    "entropy_constrained": "entropy alloc",
}


def method_name(method: str) -> MethodName:
    """Return how a quantizer is spoken of; a user's by its own name."""
    return METHODS.get(method, MethodName(method, method, "#117733", "P"))


def method_label(method: str, allocation: str = "equal") -> str:
    """Return how a method is called in tables and pictures; an unknown one by its own name."""
    if allocation != "equal":
        return ALLOCATED_LABELS.get(method, f"{method} alloc")
    return method_name(method).label
