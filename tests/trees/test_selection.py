"""Which leaves are compressed by default, by name and shape, and which are stacks."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.trees.selection import Decision, compressible, decide, selected_paths, stacked_paths
from jaxcomp.trees.uses import LeafUse


def leaf(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("params/Dense_0/kernel", (4, 3)),
        ("params/Conv_0/kernel", (3, 3, 1, 8)),
        ("params/Conv_0/kernel", (1, 1, 4, 8)),
        ("params/attention/query/kernel", (8, 2, 4)),
        ("params/ScanBlock_0/Dense_0/kernel", (5, 4, 4)),
        ("layers/0/kernel/value", (4, 3)),
        ("token_embedding/embedding", (9, 4)),
        ("wte", (9, 4)),
        ("embeddings.position_embeddings.weight", (64, 4)),
        ("pos_embed", (1, 64, 4)),
        ("encoder.layers.0.linear1.weight", (4, 3)),
        ("mlp/~/linear_0/w", (4, 3)),
        ("layers/0/weight", (4, 3)),
        ("a", (4, 3)),
        ("b", (4, 3)),  # without a `w` beside it a matrix like any other
        ("", (4, 3)),
    ],
)
def test_weights_by_name_and_shape(path, shape):
    assert compressible(path, leaf(*shape)).is_compressed


@pytest.mark.parametrize(
    ("path", "shape", "reason"),
    [
        ("params/ScanBlock_0/Dense_0/bias", (5, 4), "bias by its name"),
        ("params/ScanBlock_0/BatchNorm_0/scale", (5, 4), "scale by its name"),
        ("batch_stats/ScanBlock_0/BatchNorm_0/var", (5, 4), "statistic by its name"),
        ("stack/bias/value", (5, 4), "bias by its name"),
        ("layers/norm1/weight", (5, 4), "part of a normalization by its name"),
        ("blocks.ln_1.weight", (5, 4), "part of a normalization by its name"),
        ("model.bn1.running_mean", (5, 4), "statistic by its name"),
        ("batch_norm/~/mean_ema/average", (1, 4), "statistic by its name"),
        ("block/LayerNorm_0/g", (5, 4), "part of a normalization by its name"),
        ("RMSNorm_0/w", (5, 4), "part of a normalization by its name"),
        ("pos_embed", (1, 9, 4), "token or position by its name"),
        ("position_embeddings/embedding", (9, 4), "token or position by its name"),
        ("pos_embed", (1, 63, 4), "token or position by its name"),
        ("cls_token", (1, 1, 4), "token or position by its name"),
        ("relative_position_bias_table", (169, 4), "bias by its name"),
        ("mask", (1, 4), "less than two axes longer than 1"),
        ("dense/kernel", (4,), "less than two axes"),
        ("gain", (5, 4), "scale by its name"),
    ],
)
def test_what_is_kept_by_name_and_shape(path, shape, reason):
    assert compressible(path, leaf(*shape)) == Decision(False, reason)


def test_what_stands_beside_a_leaf_counts():
    stacked = {"w": leaf(5, 4, 4), "b": leaf(5, 4)}
    assert selected_paths(stacked) == ["w"]
    # Below a name that looks like a normalization, but with a smaller bias: a linear layer.
    modulation = {"adaLN": {"weight": leaf(4, 8), "bias": leaf(8)}}
    assert selected_paths(modulation) == ["adaLN/weight"]
    norm = {"norm": {"weight": leaf(5, 4), "bias": leaf(5, 4)}}
    assert selected_paths(norm) == []


def test_a_known_use_decides_before_the_name():
    matrix = LeafUse("matrix")
    assert compressible("scale", leaf(4, 3), matrix).is_compressed
    assert compressible("kernel", leaf(4, 1), matrix).is_compressed
    assert compressible("kernel", leaf(4), matrix) == Decision(False, "less than two axes")
    other = compressible("kernel", leaf(4, 3), LeafUse("other"))
    assert other == Decision(False, "not a factor of a product")
    assert compressible("kernel", leaf(4, 3), LeafUse("unused")) == Decision(False, "unused")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (leaf(4, 3, dtype=np.int8), "not floating"),
        (leaf(4, 3, dtype=np.complex64), "not floating"),
        (jnp.ones((4, 3), jnp.float8_e4m3fn), "fewer than 16 bits"),
        (leaf(0, 3), "empty"),
        (0.5, "no array"),
        ("relu", "no array"),
    ],
)
def test_select_overrides_all_but_what_cannot_be_compressed(value, reason):
    params = {"value": value, "norm": {"bias": leaf(5, 4)}}
    decisions = decide(params, "*")
    assert decisions["value"] == Decision(False, reason)
    assert decisions["norm/bias"] == Decision(True, "selected")
    assert decide(params, "norm/*")["value"] == Decision(False, "not selected")


def test_stacks_by_name_and_by_their_biases():
    params = {
        "ScanBlock_0": {"Dense_0": {"kernel": leaf(5, 4, 4)}},
        "eqx": {"weight": leaf(5, 3, 4), "bias": leaf(5, 3)},
        "conv": {"kernel": leaf(3, 3, 4, 8), "bias": leaf(8)},
        "conv_stack": {"kernel": leaf(3, 3, 4, 8), "bias": leaf(8)},
        "query": {"kernel": leaf(8, 2, 4), "bias": leaf(2, 4)},
        "out": {"kernel": leaf(2, 4, 8), "bias": leaf(8)},
        "stack": {"kernel": leaf(5, 3, 3, 4, 8), "bias": leaf(5, 8)},
        "plain": leaf(5, 4, 4),
    }
    chosen = selected_paths(params)
    found = ["ScanBlock_0/Dense_0/kernel", "eqx/weight", "stack/kernel"]
    assert sorted(stacked_paths(params, None, chosen)) == sorted(found)
    assert stacked_paths(params, "plain", chosen) == ["plain"]
    assert stacked_paths(params, [], chosen) == []
    with pytest.raises(ValueError, match=r"stacked names 'conv/bias' of shape \(8,\), but a stack"):
        stacked_paths(params, "conv/bias", ["conv/bias"])
    with pytest.raises(ValueError, match="the pattern 'typo' in stacked matches no leaf"):
        stacked_paths(params, "typo", chosen)
