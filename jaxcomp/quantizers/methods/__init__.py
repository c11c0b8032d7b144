"""Methods of compression as objects: what each is, its operating points, codes, and their cost."""

from jaxcomp.quantizers.methods.base import CodebookMethod, Encoded, Method, method_named
from jaxcomp.quantizers.methods.entropy_constrained import EntropyConstrained
from jaxcomp.quantizers.methods.hessian_rounding import HessianRounding
from jaxcomp.quantizers.methods.integers import RoundToNearest
from jaxcomp.quantizers.methods.intervals import KMeans, Optimal, Uniform
from jaxcomp.quantizers.methods.pruning import MagnitudePruning
from jaxcomp.quantizers.methods.trellis_coded import TrellisCoded
from jaxcomp.quantizers.methods.vector import Vector

METHODS: tuple[type[Method], ...] = (
    KMeans,
    Optimal,
    EntropyConstrained,
    Vector,
    Uniform,
    RoundToNearest,
    MagnitudePruning,
    TrellisCoded,
    HessianRounding,
)

__all__ = [
    "METHODS",
    "CodebookMethod",
    "Encoded",
    "EntropyConstrained",
    "HessianRounding",
    "KMeans",
    "MagnitudePruning",
    "Method",
    "Optimal",
    "RoundToNearest",
    "TrellisCoded",
    "Uniform",
    "Vector",
    "method_named",
]
