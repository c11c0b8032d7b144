"""Information-theoretic bounds on the generalization gap, and certificates for compressed files.

Two kinds. In expectation: the mutual-information bound, and the bound on the population risk that
it gives together with a rate-distortion function (`population_risk`). With probability 1 - delta
over the training examples, for all codes at once: `occam` for one network in a file, `pac_bayes_kl`
and `catoni` for a random one; `gaussian_complexity`, `choice_bits` and `self_delimiting_bits` say
what was spent.

All of them broadcast over their arguments and can be traced, mapped and differentiated: where an
inverse is found by halving, its derivative is that of the implicit function. They compute in
float64 and in logarithms (2^-B is no float at all), allow for the rounding of that, and return the
default floating dtype, rounded up: a float32 certificate is never below the exact one. Pass sizes
and complexities as Python or NumPy numbers; a float32 array counts no more than 16,777,216 bits
one by one.

Sources: Xu and Raginsky, "Information-theoretic analysis of generalization capability of learning
algorithms", NeurIPS 2017, arXiv:1705.07809, theorem 1; Bu, Gao, Zou and Veeravalli,
doi:10.3390/e23101255, for its use with a compression rate; Langford, JMLR 6 (2005), for the
binomial tail; Maurer, arXiv:cs/0411099; Catoni, arXiv:0712.0248; Lotfi et al., arXiv:2211.13609.
"""

from jaxcomp.bounds.certificates import (
    catoni,
    choice_bits,
    occam,
    pac_bayes_kl,
    self_delimiting_bits,
)
from jaxcomp.bounds.gaussian_complexity import GaussianComplexity, gaussian_complexity
from jaxcomp.bounds.information import (
    PopulationRisk,
    lambert_lower_branch,
    mutual_information_bound,
    population_risk,
)
from jaxcomp.bounds.relative_entropy import kl_inverse

__all__ = [
    "GaussianComplexity",
    "PopulationRisk",
    "catoni",
    "choice_bits",
    "gaussian_complexity",
    "kl_inverse",
    "lambert_lower_branch",
    "mutual_information_bound",
    "occam",
    "pac_bayes_kl",
    "population_risk",
    "self_delimiting_bits",
]
