"""In what sense does a penalty on the weights compress a model?

`run` trains networks over a range of L2 and L1 strengths and measures, for each, what its weights
cost as a code, what their loss is, and what theory says about both; rivals that penalise nothing
(early stopping, dropout, temperature) stand beside them. `smaller_network` removes what an L1
penalty has switched off.
"""

from typing import TYPE_CHECKING

from jaxcomp.experiments import lazily

if TYPE_CHECKING:
    from jaxcomp.experiments.regularization.codes import Codes, measure_codes
    from jaxcomp.experiments.regularization.config import RegularizationConfig, Variant, preset
    from jaxcomp.experiments.regularization.experiment import run
    from jaxcomp.experiments.regularization.results import RegularizationResult
    from jaxcomp.experiments.regularization.rounding import count_rounded_models
    from jaxcomp.experiments.regularization.sparsity import SmallerNetwork, smaller_network

__all__ = [
    "Codes",
    "RegularizationConfig",
    "RegularizationResult",
    "SmallerNetwork",
    "Variant",
    "count_rounded_models",
    "measure_codes",
    "preset",
    "run",
    "smaller_network",
]

__getattr__ = lazily.members(
    __name__,
    {
        "Codes": "codes",
        "RegularizationConfig": "config",
        "RegularizationResult": "results",
        "SmallerNetwork": "sparsity",
        "Variant": "config",
        "count_rounded_models": "rounding",
        "measure_codes": "codes",
        "preset": "config",
        "run": "experiment",
        "smaller_network": "sparsity",
    },
)
