"""Dead parts taken out: the same output to rounding, by the network itself and by brute force."""

import jax
import numpy as np
import pytest

from jaxcomp.experiments import networks
from jaxcomp.experiments.regularization import smaller_network

NETWORK = networks.build("mlp", input_shape=(6,), num_classes=3, width=5 / 256, dropout=0.0)
INPUTS = np.random.default_rng(1).standard_normal((20, 6)).astype(np.float32)


def sparse_params(share=0.7, seed=0):
    rng = np.random.default_rng(seed)
    params = NETWORK.init(jax.random.key(seed))["params"]
    params = jax.tree.map(lambda leaf: np.array(leaf), params)
    for layer in params.values():
        layer["kernel"][rng.random(layer["kernel"].shape) < share] = 0
        layer["bias"][:] = rng.standard_normal(len(layer["bias"]))
    return params


def forward(params, inputs):
    """Oracle: plain NumPy in float64."""
    names = sorted(params)
    for name in names:
        inputs = inputs @ params[name]["kernel"].astype(np.float64) + params[name]["bias"]
        inputs = inputs if name == names[-1] else np.maximum(inputs, 0)
    return inputs


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("absorbs_constants", [True, False])
def test_the_output_is_the_same(seed, absorbs_constants):
    params = sparse_params(seed=seed)
    smaller = smaller_network(params, absorbs_constants=absorbs_constants)
    # Sums of at most a dozen float32 numbers of size one.
    np.testing.assert_allclose(
        forward(smaller.params, INPUTS[:, smaller.inputs]), forward(params, INPUTS), atol=5e-6
    )
    sizes = [kernel["kernel"].shape for kernel in smaller.params.values()]
    assert smaller.num_units == (sizes[0][1], sizes[1][1])
    assert sizes[0][0] == len(smaller.inputs)
    assert smaller.num_weights == sum(a * b + b for a, b in sizes)


def test_the_package_runs_the_smaller_network():
    params = sparse_params()
    smaller = smaller_network(params)
    assert smaller.num_weights < sum(leaf.size for leaf in jax.tree.leaves(params))
    before = NETWORK.predict({"params": params, "statistics": {}}, INPUTS)
    after = NETWORK.predict({"params": smaller.params, "statistics": {}}, INPUTS[:, smaller.inputs])
    np.testing.assert_allclose(after, before, atol=5e-6)


def test_what_is_dead_goes_and_nothing_else():
    params = sparse_params(share=0.0)
    assert smaller_network(params).num_weights == sum(x.size for x in jax.tree.leaves(params))
    params["hidden_0"]["kernel"][2] = 0  # an input that nothing reads
    params["hidden_0"]["kernel"][:, 1] = 0  # a constant
    params["hidden_0"]["bias"][1] = 0.5
    params["hidden_1"]["kernel"][3] = 0  # a unit that nothing reads, and so on downwards
    smaller = smaller_network(params)
    np.testing.assert_array_equal(smaller.inputs, [0, 1, 3, 4, 5])
    assert smaller.num_units == (3, 5)
    np.testing.assert_allclose(
        smaller.params["hidden_1"]["bias"],
        params["hidden_1"]["bias"] + 0.5 * params["hidden_1"]["kernel"][1],
        rtol=1e-6,
    )
    kept = smaller_network(params, absorbs_constants=False)
    assert kept.num_units == (4, 5)
    np.testing.assert_array_equal(kept.params["hidden_1"]["bias"], params["hidden_1"]["bias"])


def test_removal_goes_on_until_nothing_is_dead():
    params = sparse_params(share=0.0)
    params["output"]["kernel"][:] = 0
    smaller = smaller_network(params)
    assert smaller.num_units == (0, 0)
    assert len(smaller.inputs) == 0
    np.testing.assert_allclose(
        forward(smaller.params, INPUTS[:, smaller.inputs]), forward(params, INPUTS), atol=1e-6
    )


def test_layers_that_do_not_fit():
    params = sparse_params()
    params["hidden_1"]["kernel"] = params["hidden_1"]["kernel"][:3]
    with pytest.raises(ValueError, match=r"dense layers that read each other's outputs.*\(3, 5\)"):
        smaller_network(params)
