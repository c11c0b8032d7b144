"""Training towards short descriptions: prices of bits, few levels, subspaces, codebooks."""

from jaxcomp.training.code_length import (
    Latents,
    Prior,
    Rounded,
    bits_of,
    initial_latents,
    nearest_integers,
    rounded,
    weights_and_bits,
)
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
    "Latents",
    "LowRank",
    "Prior",
    "Rounded",
    "Subspace",
    "bits_of",
    "bits_of_levels",
    "fine_tune_codebook",
    "initial_latents",
    "interpolated_bits",
    "level_costs_bits",
    "look_up",
    "nearest_integers",
    "nearest_levels",
    "quantize_ste",
    "random_signs",
    "random_words",
    "rounded",
    "train_few_levels",
    "weights_and_bits",
]
