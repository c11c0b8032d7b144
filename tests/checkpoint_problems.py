"""A small model in the files of others."""

import ml_dtypes
import numpy as np
import safetensors


def arrays(seed=0):
    """Arrays of every kind of dtype, as flat dicts of PyTorch's names hold them."""
    rng = np.random.default_rng(seed)
    return {
        "block.0.weight": rng.normal(size=(6, 4)).astype(np.float32),
        "block.0.bias": rng.normal(size=6).astype(np.float32),
        "half.weight": rng.normal(size=(3, 5)).astype(np.float16),
        "brain.weight": rng.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
        "short.weight": rng.normal(size=(2, 3)).astype(ml_dtypes.float8_e4m3fn),
        "steps": np.asarray(7, np.int64),
        "mask": np.asarray([True, False, True]),
        "nothing": np.zeros((0, 3), np.float32),
    }


def plain_arrays():
    """Those of dtypes that NumPy has."""
    return {path: own for path, own in arrays().items() if own.dtype.kind in "biufc"}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for path, own in expected.items():
        assert found[path].dtype == own.dtype
        assert found[path].shape == own.shape
        assert found[path].tobytes() == own.tobytes()


def by_the_library(path):
    """Bytes of the tensors of a file, as the library of safetensors finds them."""
    return {name: bytes(own["data"]) for name, own in safetensors.deserialize(path.read_bytes())}
