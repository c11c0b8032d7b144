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
from jaxcomp.bits_back.labels import (
    CrossEntropy,
    LabelCode,
    Relearner,
    prequential_bits,
    send_labels,
)
from jaxcomp.bits_back.posterior import (
    CellDivergence,
    Posterior,
    discretized_kl,
    kl_nats,
    log_ratio_bits,
)
from jaxcomp.bits_back.training import (
    NegativeElbo,
    VariationalConfig,
    VariationalFit,
    fit,
    negative_elbo,
    sample,
)

__all__ = [
    "CellDivergence",
    "CrossEntropy",
    "Decoded",
    "KnownPosterior",
    "LabelCode",
    "Labels",
    "Message",
    "NegativeElbo",
    "Posterior",
    "Receiver",
    "Relearner",
    "StepReport",
    "VariationalConfig",
    "VariationalFit",
    "decode",
    "discretized_kl",
    "encode",
    "fit",
    "kl_nats",
    "log_ratio_bits",
    "negative_elbo",
    "payload_bits",
    "prequential_bits",
    "report",
    "sample",
    "send_labels",
]
