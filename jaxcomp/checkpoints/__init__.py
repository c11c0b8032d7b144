"""Files of others: safetensors, PyTorch, NumPy and Orbax in, safetensors, NumPy and Orbax out.

`open_checkpoint` opens any of them, and compressed models too, tensor by tensor; `decompress`
writes the weights of a compressed model for other programs; `differences` compares two checkpoints.
JAX is not imported here.
"""

from jaxcomp.checkpoints.comparison import Difference, compare, differences
from jaxcomp.checkpoints.decompression import Decompressed, decompress, refuse_same
from jaxcomp.checkpoints.reading import open_checkpoint
from jaxcomp.checkpoints.tensors import Checkpoint, Tensor
from jaxcomp.checkpoints.verification import Verified, verify
from jaxcomp.decoder import is_compressed

__all__ = [
    "Checkpoint",
    "Decompressed",
    "Difference",
    "Tensor",
    "Verified",
    "compare",
    "decompress",
    "differences",
    "is_compressed",
    "open_checkpoint",
    "refuse_same",
    "verify",
]
