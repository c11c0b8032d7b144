"""Bits back: a network's weights as a sample of a posterior cost `KL(q || p)`, really encoded.

`encode` draws weights by decoding them from a stack that holds a payload, `decode` gives weights
and payload back; `fit` learns the posterior; `Relearner` is the receiver of Hinton and van Camp,
who knows no more than the inputs and learns the rest from the message.
"""

from jaxcomp.bits_back.coder import (
    Decoded,
    KnownPosterior,
    Labels,
    Message,
    Receiver,
    StepReport,
    decode,
    encode,
    payload_bits,
    report,
)
from jaxcomp.bits_back.posterior import (
    CellDivergence,
    Posterior,
    discretized_kl,
    kl_nats,
    log_ratio_bits,
)

__all__ = [
    "CellDivergence",
    "Decoded",
    "KnownPosterior",
    "Labels",
    "Message",
    "Posterior",
    "Receiver",
    "StepReport",
    "decode",
    "discretized_kl",
    "encode",
    "kl_nats",
    "log_ratio_bits",
    "payload_bits",
    "report",
]
