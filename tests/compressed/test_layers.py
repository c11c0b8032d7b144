"""Networks rounded layer by layer, with their inputs: what becomes of sizes, losses and stacks."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import special
from slow_cases import some_slow

import jaxcomp
from jaxcomp import compress, curve
from jaxcomp.compressed import to_bytes
from jaxcomp.curvature import Layers
from jaxcomp.quantizers import EntropyConstrained, HessianRounding, RoundingSettings

SETTINGS = RoundingSettings(exponents=(0.0, 1.0), slopes=(2.0,), num_passes=2, max_code=127)
METHOD = HessianRounding(
    settings=SETTINGS,
    dampings=(1e-3, 1e-2),
    otherwise=EntropyConstrained(num_bins=64, num_symbols=16),
)
TOKENS, WIDTH, CLASSES = 12, 16, 4


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network() -> dict[str, Any]:
    """Embeddings, which are in no layer; two blocks in a stack; a layer as PyTorch has it."""
    return {
        "embed": {"embedding": normal(0, TOKENS, WIDTH)},
        "blocks": {
            "kernel": normal(1, 2, WIDTH, WIDTH) / 4,
            "bias": 0.1 * normal(2, 2, WIDTH),
        },
        "out": {"weight": normal(3, CLASSES, WIDTH) / 4, "bias": 0.3 * normal(4, CLASSES)},
    }


def predict(params: Any, tokens: jax.Array) -> jax.Array:
    x = params["embed"]["embedding"][tokens].sum(1)

    def block(x, own):
        return jnp.tanh(x @ own["kernel"] + own["bias"]), None

    x = lax.scan(block, x, params["blocks"])[0]
    return x @ params["out"]["weight"].T + params["out"]["bias"]


outputs = jax.jit(predict)


@functools.cache
def data(seed: int = 5, number: int = 200) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(seed).integers(0, TOKENS, (number, 3))
    return tokens, np.argmax(outputs(network(), tokens), axis=-1)


def loss(params: Any, seed: int = 6) -> float:
    tokens, _ = data(seed, 400)
    before, after = (special.log_softmax(outputs(own, tokens), -1) for own in (network(), params))
    return float(np.mean(np.sum(np.exp(before) * (before - after), axis=-1)))


SIZE_BYTES = 870


@pytest.fixture(scope="module")
def rounded() -> jaxcomp.CompressedTree:
    # Both parts of the data have one size, and share programs.
    layers = Layers(predict, [data()], held_out=0.5)
    return compress(network(), METHOD, layers=layers, size_bytes=SIZE_BYTES)


def assert_same_weights(one: jaxcomp.CompressedTree, other: jaxcomp.CompressedTree) -> None:
    for own, its in zip(
        jax.tree.leaves(one.params()), jax.tree.leaves(other.params()), strict=True
    ):
        np.testing.assert_array_equal(own, its)
        assert own.dtype == its.dtype


def test_the_file_has_the_size_and_decodes_to_the_same_weights(rounded):
    written = to_bytes(rounded)
    assert 0.985 * SIZE_BYTES <= len(written) <= SIZE_BYTES
    assert_same_weights(rounded, jaxcomp.load(written))
    methods = {layer.path: layer.method for layer in rounded.report()}
    assert methods == {
        "blocks/bias": "round_to_nearest",
        "blocks/kernel": "hessian_rounding",
        "embed/embedding": "entropy_constrained",
        "out/bias": "round_to_nearest",
        "out/weight": "hessian_rounding",
    }


def test_it_loses_less_than_the_diagonal_method_at_equal_bytes(rounded):
    params = network()
    importance = jaxcomp.curvature.gauss_newton_diagonal(predict, params, data())
    plain = compress(params, METHOD.otherwise, importance=importance, size_bytes=SIZE_BYTES)
    assert loss(rounded.params()) < 0.7 * loss(plain.params())


def test_a_fixed_multiplier_is_that_of_all_layers():
    layers = Layers(predict, [data()], num_stages=1, held_out=0.5)
    fixed = HessianRounding(1e-4, settings=SETTINGS, dampings=(1e-3,), refits=False)
    tree = compress(network(), fixed, layers=layers, select=["blocks/kernel", "out/weight"])
    report = tree.report()
    assert [layer.parameter for layer in report] == pytest.approx([1e-4, 1e-4])
    np.testing.assert_array_equal(tree.params()["out"]["bias"], network()["out"]["bias"])
    assert_same_weights(tree, jaxcomp.load(to_bytes(tree)))
    bound = 0.5 * report.distortion
    open_ended = fixed.at(None)
    finer = compress(
        network(),
        open_ended,
        layers=layers,
        select=["blocks/kernel", "out/weight"],
        max_distortion=bound,
    )
    assert 0.95 * bound <= finer.report().distortion <= bound
    # A curve says what its point costs and loses, from all outputs of such small layers.
    found = curve(network(), fixed, layers=layers, select=["out/weight"])["out/weight"]
    assert found.distortion[0] == pytest.approx(report[1].distortion, rel=1e-3)


def test_blocks_of_a_stack_are_those_of_the_unrolled_network():
    fixed = HessianRounding(1e-3, settings=SETTINGS, dampings=(1e-3,), refits=False)

    def unrolled(params: Any, tokens: jax.Array) -> jax.Array:
        x = params["embed"]["embedding"][tokens].sum(1)
        for own in params["blocks"]:
            x = jnp.tanh(x @ own["kernel"] + own["bias"])
        return x @ params["out"]["weight"].T + params["out"]["bias"]

    params = network()
    blocks = [jax.tree.map(lambda x, n=n: x[n], params["blocks"]) for n in range(2)]
    stacked, plain = (
        compress(
            own,
            fixed,
            layers=Layers(fn, [data()], loss=None, num_stages=1, held_out=0.5),
            select="blocks/*kernel",
            stacked=stack,
        )
        for own, fn, stack in (
            (params, predict, "blocks/kernel"),
            ({**params, "blocks": blocks}, unrolled, ()),
        )
    )
    for number in range(2):
        np.testing.assert_allclose(
            stacked.params()["blocks"]["kernel"][number],
            plain.params()["blocks"][number]["kernel"],
            atol=1e-6,
        )


@pytest.mark.slow
def test_groups_of_a_convolution_have_inputs_of_their_own():
    kernel = normal(7, 3, 1, 6)  # each of three channels has two outputs
    images = normal(8, 50, 8, 3)

    def convolved(params: Any, x: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            params["kernel"],
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=3,
        )

    method = HessianRounding(1e-3, settings=SETTINGS, dampings=(1e-3,))
    layers = Layers(convolved, [images], loss=None)
    tree = compress({"kernel": kernel}, method, layers=layers, select="kernel")
    found = tree.params()
    before, after = (convolved(params, images) for params in ({"kernel": kernel}, found))
    lost = float(jnp.sum((before - after) ** 2) / jnp.sum(before**2))
    assert 0 < lost < 0.1
    # What is reported is the relative error of the outputs, damped.
    assert tree.report().distortion == pytest.approx(lost, rel=0.01)
    again = jaxcomp.load(to_bytes(tree)).params()
    np.testing.assert_array_equal(again["kernel"], found["kernel"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "HessianRounding needs the inputs of layers; pass layers="),
        ({"layers": predict}, TypeError, "layers must be jaxcomp.curvature.Layers.*function"),
        (
            {"layers": Layers(predict, [data()]), "select": "embed/*"},
            ValueError,
            "nothing is rounded with it: of the selected leaves embed/embedding none",
        ),
        pytest.param(
            {"layers": Layers(predict, [data()]), "size_bytes": 250},
            ValueError,
            "size_bytes (is|=) 250",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        compress(network(), METHOD, **options)


@pytest.mark.parametrize("shift", some_slow([-110, 100], 100))
def test_weights_of_extreme_size_are_rounded_as_those_of_the_same_network(shift):
    """A leaf of 2^-110, whose outputs the next one makes ordinary again: ReLU is homogeneous."""

    def relu_network(params, x):
        hidden = jax.nn.relu(x @ params["in"] + params["bias"])
        return hidden @ params["out"] + params["end"]

    # Both layers of the size that all others have.
    ordinary = {"in": normal(1, WIDTH, WIDTH) / 4, "bias": normal(2, WIDTH)}
    ordinary |= {"out": normal(3, WIDTH, CLASSES) / 4, "end": normal(4, CLASSES)}
    shifts = {"in": shift, "bias": shift, "out": -shift, "end": 0}
    scaled = {name: np.ldexp(leaf, shifts[name]) for name, leaf in ordinary.items()}
    x = normal(5, 200, WIDTH)
    batch = x, np.argmax(jax.jit(relu_network)(ordinary, x), axis=-1)
    expected, found = (
        compress(
            params,
            replace(METHOD, nats_per_bit=1e-3),
            layers=Layers(relu_network, [batch], held_out=0.5),
            select=("in", "out"),
        )
        for params in (ordinary, scaled)
    )
    for name, change in shifts.items():
        np.testing.assert_allclose(
            np.ldexp(found.params()[name], -change), expected.params()[name], rtol=1e-6
        )
    np.testing.assert_array_equal(found.codes("out"), expected.codes("out"))
    assert found.report().distortion == pytest.approx(expected.report().distortion, rel=1e-4)
