"""Training towards short descriptions: codebooks, few levels under a price, random subspaces."""

from jaxcomp.training.few_levels import (
    FewLevels,
    bits_of_levels,
    interpolated_bits,
    level_costs_bits,
    nearest_levels,
    train_few_levels,
)
from jaxcomp.training.straight_through import (
    FineTunedCodebook,
    fine_tune_codebook,
    look_up,
    quantize_ste,
)
from jaxcomp.training.subspace import (
    Dense,
    KroneckerSum,
    LowRank,
    Subspace,
    random_signs,
    random_words,
)

__all__ = [
    "Dense",
    "FewLevels",
    "FineTunedCodebook",
    "KroneckerSum",
    "LowRank",
    "Subspace",
    "bits_of_levels",
    "fine_tune_codebook",
    "interpolated_bits",
    "level_costs_bits",
    "look_up",
    "nearest_levels",
    "quantize_ste",
    "random_signs",
    "random_words",
    "train_few_levels",
]
