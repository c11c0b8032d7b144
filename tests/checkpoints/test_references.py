"""Files that hold differences to another model: the same weights with it, a sentence without."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import jaxcomp
from jaxcomp.checkpoints import decompress, open_checkpoint, verify
from jaxcomp.compressed import compress_file
from jaxcomp.decoder import File
from jaxcomp.decoder.arrays import added
from jaxcomp.quantizers import RoundToNearest


def base():
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.normal(size=(12, 8)).astype(np.float32),
        "b.weight": rng.normal(size=(12, 8)).astype(ml_dtypes.bfloat16),
        "b.bias": np.zeros(8, np.float32),
    }


def tuned():
    """The same a little further, with a new layer."""
    rng = np.random.default_rng(1)
    further = {
        name: (own.astype(np.float32) + 0.01 * rng.normal(size=own.shape)).astype(own.dtype)
        for name, own in base().items()
    }
    return further | {"c.weight": rng.normal(size=(12, 8)).astype(np.float32)}


@pytest.fixture
def files(tmp_path):
    """The base, the tuned model, and the file of their difference."""
    paths = [tmp_path / name for name in ("base.safetensors", "tuned.safetensors", "small.jxc")]
    safetensors.numpy.save_file(base(), paths[0])
    safetensors.numpy.save_file(tuned(), paths[1])
    report = compress_file(paths[1], paths[2], RoundToNearest(4), reference=paths[0])
    return *paths, report


def opened(path, reference=None):
    with open_checkpoint(path, reference=reference) as checkpoint:
        return checkpoint.tree()


def test_the_weights_are_those_of_the_reference_and_the_differences(files, tmp_path):
    first, second, small, report = files
    with open_checkpoint(first) as reference:
        decompress(small, tmp_path / "back.safetensors", reference=reference)
        found = opened(small, reference)
    back = opened(tmp_path / "back.safetensors")
    for name, values in tuned().items():
        assert back[name].tobytes() == found[name].tobytes()
        assert back[name].dtype == values.dtype
        # A step of 4 bits over what is coded: differences, but for the new layer.
        error = np.abs(found[name].astype(np.float32) - values.astype(np.float32)).max()
        assert error < (0.25 if name == "c.weight" else 0.02)
    plain = compress_file(second, tmp_path / "plain.jxc", RoundToNearest(4))
    assert report.mean_squared_error < plain.mean_squared_error
    np.testing.assert_array_equal(found["b.bias"], tuned()["b.bias"])  # kept, not coded
    with File(small) as file:
        assert file.reference is not None
        assert {file.entries[number].path for number in file.reference[1]} == {
            "a.weight", "b.weight",
        }  # fmt: skip
    assert verify(small).num_arrays == 4


def test_without_the_reference_or_with_another(files, tmp_path):
    first, second, small, _ = files
    with pytest.raises(ValueError, match="holds differences to another one, with the SHA-256"):
        decompress(small, tmp_path / "back.safetensors")
    with pytest.raises(ValueError, match=r"the file holds differences to another model"):
        jaxcomp.load(small)
    with File(small) as file, pytest.raises(jaxcomp.FormatError, match="name its reference"):
        file.tree()
    with (
        open_checkpoint(second) as other,
        pytest.raises(jaxcomp.FormatError, match="the reference is another model than the one"),
    ):
        decompress(small, tmp_path / "back.safetensors", reference=other)
    np.savez(tmp_path / "less.npz", w=np.zeros(3))
    with (
        open_checkpoint(tmp_path / "less.npz") as other,
        pytest.raises(ValueError, match=r"has no 'a.weight' of float32 and the shape"),
    ):
        decompress(small, tmp_path / "back.safetensors", reference=other)
    with open_checkpoint(first) as reference:
        plain = tmp_path / "plain.jxc"
        compress_file(second, plain, RoundToNearest(4))
        with pytest.raises(ValueError, match="holds no differences; leave the reference out"):
            opened(plain, reference)
    assert not (tmp_path / "back.safetensors").exists()
    with pytest.raises(ValueError, match="has no compressed tensor of the same name"):
        compress_file(second, plain, RoundToNearest(4), reference=tmp_path / "less.npz")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_sums_are_rounded_to_the_dtype(dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=100).astype(kind) for _ in range(2))
    plain = [part.view(np.uint16) if dtype == "bfloat16" else part for part in (a, b)]
    found = added(*plain, dtype)
    assert found.tobytes() == (a + b).tobytes()
