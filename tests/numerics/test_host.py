import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantizer_oracles import count_compilations

from jaxcomp.numerics.host import as_array, is_on_host, is_on_one_cpu, part_of, placed_like, view


def test_what_the_host_reads():
    values = np.arange(3.0, dtype=np.float32)
    assert is_on_host(None, values, jnp.asarray(values))
    assert is_on_one_cpu(None, values, jnp.asarray(values))
    jax.eval_shape(lambda traced: pytest.fail("read") if is_on_host(traced) else traced, values)
    with jax.transfer_guard("disallow"):
        np.testing.assert_array_equal(view(as_array(values)), values)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.dtype(">f4"), np.int64])
def test_arrays_become_what_jax_makes_of_them(dtype):
    values = np.arange(3).astype(dtype)
    if not values.dtype.isnative:
        with pytest.raises(TypeError):
            jnp.asarray(values)
        with pytest.raises(TypeError):
            as_array(values)
        return
    found = as_array(values)
    assert found.dtype == jnp.asarray(values).dtype
    np.testing.assert_array_equal(found, values)


def test_results_go_where_their_source_is():
    device = jax.devices()[0]
    values = np.arange(4, dtype=np.float32)
    assert not placed_like(values, jnp.asarray(values)).committed
    assert not placed_like(values, values).committed
    placed = placed_like(values, jax.device_put(values, device))
    assert placed.committed
    assert placed.device == device


def test_a_part_of_a_tree_is_that_of_every_array_and_compiles_nothing():
    tree = {"a": jnp.arange(6.0).reshape(3, 2), "b": np.arange(3)}
    with count_compilations() as count:
        one, two = part_of(tree, 1), part_of(tree, slice(1, 3))
    assert count() == 0
    assert all(isinstance(leaf, jax.Array) for leaf in (*one.values(), *two.values()))
    np.testing.assert_array_equal(one["a"], [2, 3])
    assert one["b"] == 1
    np.testing.assert_array_equal(two["a"], [[2, 3], [4, 5]])
    np.testing.assert_array_equal(two["b"], [1, 2])
