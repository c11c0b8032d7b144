"""Weights of few levels: what the price says, and what training under it does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jaxcomp.coding.arrays import write_parts
from jaxcomp.coding.streams import StackWriter, write_symbols
from jaxcomp.decoder import decode_bare
from jaxcomp.decoder.arrays import Parts
from jaxcomp.training import (
    Dense,
    bits_of_levels,
    interpolated_bits,
    level_costs_bits,
    train_few_levels,
)

OPTIMIZER = optax.adam(0.05)


def test_price_is_the_length_of_a_stream(strict_promotion):
    levels = np.random.default_rng(0).choice(
        [-2, -1, 0, 1, 2], 4000, p=[0.02, 0.1, 0.7, 0.15, 0.03]
    )
    price = jax.jit(partial(bits_of_levels, most=2))
    told = float(price({"a": levels.astype(np.float32)}))
    writer = StackWriter()
    write_symbols(writer, levels + 2, 5, 256)
    # The stream also says its frequencies: five numbers, some bits each.
    assert told <= writer.size_bits <= told + 5 * 12


def test_between_levels_the_price_is_a_mean(strict_promotion):
    costs = np.float32([5.0, 1.0, 3.0])
    at = np.float32([-1, -0.25, 0, 0.5, 1])
    found = jax.jit(jax.vmap(interpolated_bits, (0, None)))(at, costs)
    np.testing.assert_allclose(found, [5, 2, 1, 2, 3], atol=5e-3)
    slope = jax.jit(jax.grad(interpolated_bits))(np.float32([-0.5, 0.5]), costs)
    np.testing.assert_allclose(slope, [-4, 2])
    counts = np.asarray(jax.jit(partial(level_costs_bits, most=1))(np.float32([0, 0, 0, 1])))
    np.testing.assert_allclose(2.0**-counts, np.array([0.5, 3.5, 1.5]) / 5.5, rtol=1e-6)


def squares(levels, free, batch):
    inputs, targets = batch
    return jnp.mean((inputs @ levels["w"] + free - targets) ** 2)


def test_training_finds_levels_and_a_price_shortens_them():
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((256, 12)).astype(np.float32)
    true = np.array([0, 0, 2, 0, -1, 0, 0, 1, 0, -2, 0, 0.6])
    targets = (inputs @ true + 0.5).astype(np.float32)
    start = {"w": np.zeros(12, np.float32)}

    def fitted(price):
        return train_few_levels(
            squares, start, np.float32(0), (inputs, targets), jax.random.key(0),
            most=2, nats_per_bit=price, optimizer=OPTIMIZER, num_steps=300, batch_size=64,
        )  # fmt: skip

    free = fitted(0.0)
    np.testing.assert_array_equal(free.levels["w"], np.round(true))
    assert float(free.free) == pytest.approx(0.5, abs=0.1)
    assert free.losses.shape == (300,)
    priced = fitted(100.0)  # 0.4 nats a bit: what is near to 0 does not pay
    assert np.count_nonzero(priced.levels["w"]) < np.count_nonzero(free.levels["w"])
    assert np.isin(priced.levels["w"], range(-2, 3)).all()
    with pytest.raises(ValueError, match="at least batch_size = 300 examples"):
        train_few_levels(
            squares, start, np.float32(0), (inputs, targets), jax.random.key(0),
            most=2, nats_per_bit=0.0, optimizer=OPTIMIZER, num_steps=1, batch_size=300,
        )  # fmt: skip


def test_a_network_in_a_subspace_is_decoded_bit_for_bit():
    """What a file holds of it is theta; everything else both ends have."""
    digits = load_digits()
    inputs, labels = (digits.data / 16).astype(np.float32), digits.target.astype(np.int32)
    rng = np.random.default_rng(2)
    start = {
        "hidden": rng.normal(0, 0.15, (64, 24)).astype(np.float32),
        "out": rng.normal(0, 0.2, (24, 10)).astype(np.float32),
    }
    subspace = Dense(120, seed=5)
    signs = subspace.signs(start)

    def logits(theta, log_step, inputs):
        params = subspace.expand(start, jnp.exp(log_step) * theta, signs)
        return jax.nn.relu(inputs @ params["hidden"]) @ params["out"]

    def loss(theta, log_step, batch):
        found = logits(theta, log_step, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(found, batch[1]).mean()

    found = train_few_levels(
        loss, subspace.coordinates(start), np.float32(0), (inputs, labels), jax.random.key(1),
        most=3, nats_per_bit=1.0, optimizer=OPTIMIZER, num_steps=150, batch_size=400,
    )  # fmt: skip
    writer = StackWriter()
    step = np.float32(found.free)
    for values, dtype in ((step[None], "float32"), (np.asarray(found.levels, np.int8), "int8")):
        write_parts(writer, Parts(values), dtype, values.shape, "best")
    stream = writer.to_bytes()
    step_again, levels = decode_bare(stream, [("float32", (1,)), ("int8", (120,))])
    assert len(stream) < 60
    expanded = jax.jit(lambda step, levels: subspace.expand(start, jnp.exp(step) * levels, signs))
    again = expanded(step_again[0], levels.astype(np.float32))
    whole = expanded(found.free, np.asarray(found.levels, np.float32))
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    error = np.mean(np.argmax(jax.jit(logits)(found.levels, found.free, inputs), 1) != labels)
    assert error < 0.3  # nine in ten by chance
