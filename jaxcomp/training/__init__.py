"""Training towards short descriptions: prices of bits, codebooks and straight-through gradients."""

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
from jaxcomp.training.straight_through import (
    FineTunedCodebook,
    fine_tune_codebook,
    look_up,
    quantize_ste,
)

__all__ = [
    "FineTunedCodebook",
    "Latents",
    "Prior",
    "Rounded",
    "bits_of",
    "fine_tune_codebook",
    "initial_latents",
    "look_up",
    "nearest_integers",
    "quantize_ste",
    "rounded",
    "weights_and_bits",
]
