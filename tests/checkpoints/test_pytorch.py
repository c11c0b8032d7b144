"""Files of PyTorch, by a stand-in for it: what is asked of it, and what is made of the answer."""

import pickle
import sys
import types

import ml_dtypes
import numpy as np
import pytest

from jaxcomp.checkpoints import open_checkpoint


class Tensor:
    """The part of a tensor that is used here, over an array of NumPy."""

    layout = "strided"

    def __init__(self, array, dtype="torch.float32"):
        self.array, self.dtype = array, dtype

    def detach(self):
        return self

    cpu = resolve_conj = resolve_neg = detach

    def view(self, dtype):
        return Tensor(self.array.view(dtype), str(dtype))

    def numpy(self):
        return self.array


@pytest.fixture
def torch(monkeypatch):
    fake = types.SimpleNamespace(
        Tensor=Tensor, strided="strided", int16=np.int16, uint8=np.uint8, calls=[], content=None
    )

    def load(path, **options):
        fake.calls.append(options)
        if isinstance(fake.content, Exception):
            raise fake.content
        if options.get("mmap") and fake.is_old:
            raise RuntimeError("mmap can only be used with files of the new format")
        return fake.content

    fake.load, fake.is_old = load, False
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


def opened(tmp_path):
    path = tmp_path / "model.pt"
    path.touch()
    with open_checkpoint(path) as checkpoint:
        return checkpoint


@pytest.mark.parametrize("is_old", [False, True])
def test_a_state_dictionary(torch, tmp_path, is_old):
    torch.is_old = is_old
    weight = np.ones((2, 3), np.float32)
    brain = np.ones(3, ml_dtypes.bfloat16)
    torch.content = {
        "a.weight": Tensor(weight),
        "b.weight": Tensor(brain.view(np.int16), "torch.bfloat16"),
        "extra": None,
    }
    found = opened(tmp_path)
    assert found.format == "pytorch"
    assert found.left_out == ("extra",)
    assert found.tree()["a.weight"] is weight
    assert found.tensors["b.weight"][:2] == ("bfloat16", (3,))
    # Nothing but tensors and plain data is unpickled, ever.
    assert all(options["weights_only"] is True for options in torch.calls)


def test_a_model_beside_its_optimizer(torch, tmp_path):
    torch.content = {"state_dict": {"w": Tensor(np.ones(2))}, "optimizer": {}, "epoch": 3}
    found = opened(tmp_path)
    assert list(found.tensors) == ["w"]
    assert found.left_out == ("optimizer", "epoch")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.UnpicklingError("Weights only load failed"), "never unpickled; save the model's"),
        (RuntimeError("PytorchStreamReader failed"), "never unpickled; save the model's"),
        ([1, 2], "holds a list instead of a state dictionary"),
    ],
)
def test_what_is_no_state_dictionary(torch, tmp_path, content, message):
    torch.content = content
    with pytest.raises(ValueError, match=message):
        opened(tmp_path)


def test_without_pytorch(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="is not installed; install torch, or save the model as"):
        opened(tmp_path)
