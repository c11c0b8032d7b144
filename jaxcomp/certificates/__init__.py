"""Certificates of the test error for the file of a compressed model, side by side in one table.

`certify` decodes a file, evaluates it on its training sample, and prints what each way of bounding
the error in the population gives: from the bytes of the file alone, by a Gaussian posterior, by a
prior from part of the data, by labels held out, and for the original network through its file. The
bounds themselves are in `jaxcomp.bounds`; `docs/certificates.md` says what each row states.
"""

from jaxcomp.certificates.architecture import Architecture, architecture_of
from jaxcomp.certificates.certify import certify
from jaxcomp.certificates.dense import DensePredictFn, dense_predict_fn
from jaxcomp.certificates.report import Report, Row

__all__ = [
    "Architecture",
    "DensePredictFn",
    "Report",
    "Row",
    "architecture_of",
    "certify",
    "dense_predict_fn",
]
