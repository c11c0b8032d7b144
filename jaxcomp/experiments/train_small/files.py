"""Trained latents to files: their integers as they are, or rounded once more with feedback.

Which of the two a network gets is chosen on validation data, by loss plus price: at equal loss the
smaller file.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcomp
from jaxcomp.compressed import CompressedTree, from_integers, random_codes_to_bytes, to_bytes
from jaxcomp.curvature import Layers
from jaxcomp.decoder import read_random_codes
from jaxcomp.experiments.train_small.descent import Images, evaluate
from jaxcomp.experiments.train_small.networks import predict_fn
from jaxcomp.quantizers import HessianRounding
from jaxcomp.training import Coded, Latents, RandomCode, rounded, weights_and_bits
from jaxcomp.types import Params

CALIBRATION_EXAMPLES = 2_000
"""Training examples whose inputs say how errors of weights make up for each other."""


class TrainedFile(NamedTuple):
    """A file and what it decodes to.

    Attributes:
        content: of the `.jxc`, or the `.jxr`.
        params: its network.
        is_rounded_again: whether integers are those of rounding with feedback.
        ideal_bits: of the trained integers by their distributions, or of the indices.
        stream_bits: of the streams alone, or of indices and scales, without names, checks and
            structure.
        nonzero: weights that are not zero.
    """

    content: bytes
    params: Params
    is_rounded_again: bool
    ideal_bits: float
    stream_bits: int
    nonzero: int


def best_file(
    latents: Latents,
    network: str,
    train: Images,
    validation: Images,
    *,
    nats_per_bit: float,
    rounds_again: bool,
) -> TrainedFile:
    """Return the file of a network with the lowest validation loss plus price of its bits.

    Args:
        latents: of one seed.
        network: its name.
        train: inputs of layers, for rounding with feedback.
        validation: chooses.
        nats_per_bit: the price at which it was trained, and is rounded.
        rounds_again: whether rounding with feedback is tried.
    """
    params, bits = weights_and_bits(latents)
    found = rounded(latents)
    integers = {path: np.asarray(own) for path, own in found.integers.items()}
    steps = {path: float(own) for path, own in found.steps.items()}
    trees = [from_integers(params, integers, steps)]
    if rounds_again:
        again = _rounded_again(params, integers, steps, network, train, nats_per_bit)
        trees.append(from_integers(params, *again))
    files = [_file(tree, place > 0, float(bits)) for place, tree in enumerate(trees)]

    def cost(file: TrainedFile) -> float:
        loss, _ = evaluate(file.params, validation, network)
        return loss + nats_per_bit * 8 * len(file.content)

    return min(files, key=cost)


def random_codes_file(code: RandomCode, coded: Coded) -> TrainedFile:
    """Write the indices of one seed, and read them again by NumPy.

    Args:
        code: of the size.
        coded: of one seed.
    """
    content = random_codes_to_bytes(code, coded)
    file = read_random_codes(content)
    nonzero = sum(int(np.count_nonzero(own)) for own in file.arrays.values())
    layout = code.layout
    bits = float(layout.num_blocks * layout.block_bits)
    stream = 8 * layout.index_bytes + 32 * len(layout.shapes)
    return TrainedFile(content, file.tree(), False, bits, stream, nonzero)


def _file(tree: CompressedTree, is_rounded_again: bool, ideal_bits: float) -> TrainedFile:
    """Write a tree, and read it again: what is evaluated is what the file holds."""
    content = to_bytes(tree, effort="best")
    bare = to_bytes(tree, effort="best", container="bare")
    nonzero = sum(int(np.count_nonzero(np.asarray(tree.codes(path)))) for path in tree.paths)
    params = jaxcomp.load(content).params()
    return TrainedFile(content, params, is_rounded_again, ideal_bits, 8 * len(bare), nonzero)


def _rounded_again(
    params: Params,
    integers: dict[str, Any],
    steps: dict[str, float],
    network: str,
    train: Images,
    nats_per_bit: float,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Round kernels with feedback at the price; biases stay as they were trained.

    Codebooks would cost more than they bring here: integers keep one step each, fitted.
    """
    images = train.pixels[:CALIBRATION_EXAMPLES].astype(np.float32) / np.float32(train.max_value)
    batch = jnp.asarray(images), jnp.asarray(train.labels[:CALIBRATION_EXAMPLES])
    method = HessianRounding(nats_per_bit, refits=False)
    method = replace(method, settings=replace(method.settings, exponents=(0.0,)))
    tree = jaxcomp.compress(
        jax.tree.map(jnp.asarray, params), method, layers=Layers(predict_fn(network), [batch])
    )
    integers, steps = dict(integers), dict(steps)
    for path in tree.paths:
        codebook = np.asarray(tree.codebook(path), np.float64)
        own = np.asarray(tree.codes(path)).astype(np.int64) - int(np.argmin(np.abs(codebook)))
        values = codebook[own + int(np.argmin(np.abs(codebook)))]
        if np.any(own):
            integers[path] = own
            steps[path] = float(np.sum(values * own) / np.sum(own * own))
        else:
            integers[path] = np.zeros_like(own)
    return integers, steps
