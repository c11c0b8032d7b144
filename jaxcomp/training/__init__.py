"""Training with codebooks: straight-through gradients and centres that are trained."""

from jaxcomp.training.straight_through import (
    FineTunedCodebook,
    fine_tune_codebook,
    look_up,
    quantize_ste,
)

__all__ = ["FineTunedCodebook", "fine_tune_codebook", "look_up", "quantize_ste"]
