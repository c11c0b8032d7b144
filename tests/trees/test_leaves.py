"""Leaves of other libraries, constants beside arrays, and views of one memory."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.trees.leaves import (
    Constant,
    Framed,
    is_array,
    memory_of,
    readable_leaves,
    split_constants,
    view_between,
    with_readable_leaves,
)


class Tensor:
    """The part of a tensor of PyTorch that is used here, over an array of NumPy."""

    def __init__(self, array, dtype, layout="strided"):
        self.array, self.dtype, self.layout = array, dtype, layout

    def detach(self):
        return self

    cpu = resolve_conj = resolve_neg = detach

    def view(self, dtype):
        return Tensor(self.array.view(dtype), dtype)

    def numpy(self):
        if str(self.dtype) == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.array


@pytest.fixture
def torch(monkeypatch):
    class Module:
        pass

    fake = types.SimpleNamespace(
        Tensor=Tensor,
        nn=types.SimpleNamespace(Module=Module),
        strided="strided",
        int16=np.int16,
        uint8=np.uint8,
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


def test_tensors_become_arrays_of_the_same_memory(torch):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    half = np.asarray(jnp.asarray(array, jnp.bfloat16))
    leaves = readable_leaves(
        {
            "layer.weight": Tensor(array, "torch.float32"),
            "layer.half": Tensor(half.view(np.int16), "torch.bfloat16"),
        }
    )
    assert np.shares_memory(leaves["layer.weight"], array)
    assert leaves["layer.half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(leaves["layer.half"], half)
    with pytest.raises(TypeError, match=r"a module of PyTorch, Module, .*pass its state_dict\(\)"):
        readable_leaves(torch.nn.Module())
    with pytest.raises(TypeError, match="'w' is a tensor of the layout sparse; pass a dense one"):
        readable_leaves({"w": Tensor(array, "torch.float32", "sparse")})


def test_byte_order_and_masks():
    big = np.arange(3, dtype=">f4")
    native = readable_leaves({"w": big})["w"]
    assert native.dtype == np.float32
    assert native.dtype.isnative
    np.testing.assert_array_equal(native, big)
    with pytest.raises(TypeError, match=r"the leaf 'w' is a masked array.*filled\(0\)"):
        readable_leaves({"w": np.ma.array([1.0, 2.0], mask=[0, 1])})
    array = jnp.ones(3)
    assert readable_leaves([array])["0"] is array


ODD = {
    "function": jax.nn.relu,
    "text": "relu",
    "number": 0.5,
    "flag": True,
    "scalar of NumPy": np.float64(0.5),
    "objects": np.array([{}], object),
    "float0": np.zeros(2, jax.dtypes.float0),
}


def test_constants_stay_out_of_compiled_functions():
    params = {
        **ODD,
        "w": jnp.arange(3.0),
        "key": jax.random.key(0),
        "half": jnp.ones(2, "bfloat16"),
    }
    arrays, frame = split_constants(params)
    assert {name for name, leaf in arrays.items() if leaf is not None} == {"w", "key", "half"}

    def function(params, factor):
        assert params["function"] is jax.nn.relu
        assert params["number"] == 0.5
        return params["w"] * factor

    framed = Framed(function, frame)
    compiled = jax.jit(lambda f, a, x: f(a, x), static_argnums=0)
    np.testing.assert_array_equal(compiled(framed, arrays, 2.0), [0, 2, 4])
    # The same constants in another tree: the same function.
    again = Framed(function, split_constants({**params, "w": jnp.ones(3)})[1])
    assert framed == again
    compiled(again, arrays, 2.0)
    assert compiled._cache_size() == 1
    other = Framed(function, split_constants({**params, "number": 0.25})[1])
    assert framed != other
    filled = frame.fill(arrays)
    assert all(filled[name] is params[name] for name in params)
    assert not any(is_array(leaf) for leaf in ODD.values())


def test_constants_of_other_types_differ():
    assert Constant(1) != Constant(1.0)
    assert Constant(1) != Constant(True)
    assert Constant(1) != 1
    held = [1]
    assert Constant(held) == Constant(held)
    assert hash(Constant(held)) == hash(Constant(held))
    assert repr(Constant(1)) == "Constant(1)"


def views(base):
    return {
        "again": base.view(),
        "transposed": base.transpose(2, 0, 1),
        "flat": base.reshape(-1),
        "joined": base.reshape(6, 4),
        "joined and transposed": base.reshape(6, 4).T,
        "with an axis of length 1": base[:, None],
        "cut apart": base.reshape(2, 3, 2, 2).transpose(3, 1, 2, 0),
    }


@pytest.mark.parametrize("name", views(np.zeros((2, 3, 4))))
def test_views_of_the_same_memory_are_one_array(name):
    base = np.arange(24.0).reshape(2, 3, 4)
    other = views(base)[name]
    stored, seen = memory_of(base), memory_of(other)
    assert stored.key == seen.key
    view = view_between(base, stored.order, other, seen.order)
    assert (view is None) == (name == "again")
    if view is not None:
        changed = base + 100
        np.testing.assert_array_equal(view.apply(changed), other + 100)
        np.testing.assert_array_equal(view.undo(view.apply(changed)), changed)


def test_other_memory_is_another_array():
    base = np.arange(24.0).reshape(2, 3, 4)
    others = [base.copy(), base[:1], base[:, ::-1], base[..., ::2], base.view(np.int64)]
    keys = [memory_of(array).key for array in (base, *others)]
    assert len(set(keys)) == len(keys)
    stretched = np.broadcast_to(base[:1], base.shape)
    assert memory_of(stretched).key not in keys
    assert memory_of("text") is None


def test_weights_of_several_processes_are_refused(monkeypatch):
    weights = jnp.ones((2, 2))
    monkeypatch.setattr(type(weights), "is_fully_addressable", False)
    monkeypatch.setattr(type(weights), "is_fully_replicated", False)
    with pytest.raises(ValueError, match="'w' is spread over devices of several processes"):
        with_readable_leaves({"w": weights})
