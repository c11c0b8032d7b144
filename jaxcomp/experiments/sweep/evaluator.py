"""Outputs of many changed networks for the examples of all parts, in few large compiled calls.

On accelerators networks are stacked; on CPUs one follows the other. An example that a part holds
several times, as samples drawn with replacement do, is evaluated once. On CPUs networks that begin
with a dense layer multiply what many examples have in common once (`common_inputs`).
"""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.experiments.samples import Examples, distinct, filled_up
from jaxcomp.experiments.sweep.common_inputs import (
    BLOCK,
    LEAST_SIZE,
    CommonInputs,
    in_common,
    multiplies_inputs,
    predict_in_common,
)
from jaxcomp.experiments.sweep.subject import Parts, Subject
from jaxcomp.experiments.sweep.tasks import own_calibration_of
from jaxcomp.types import AnyArray, Params, PredictFn

# A chunk of variants is one unit of work that survives: about this many floating-point operations,
# a few seconds on two cores.
CHUNK_FLOPS = 1.5e11
MAX_CHUNK_VARIANTS = 16
# Outputs of a chunk are held on the host: at most about this many numbers, 1 GiB.
MAX_CHUNK_OUTPUTS = 1 << 28


class Blocks(NamedTuple):
    """Inputs of some parts, each once if that saves any block, cut into blocks of one size.

    Attributes:
        inputs: filled up with zeros, to as many blocks as all examples would take: then shapes,
            and programs, do not depend on how often examples are repeated. Or what the examples of
            blocks have in common, and what not.
        num_blocks: that hold any.
        places: of every example of the parts, end to end, among the inputs.
    """

    inputs: Shaped[AnyArray, "blocks block ..."] | CommonInputs
    num_blocks: int
    places: Int[np.ndarray, " n"] | slice


class Evaluator:
    """Scores stacks of changed networks of one kind on the three parts.

    One instance serves all networks of a setting: shapes stay the same, so everything compiles
    once.

    Args:
        subject: any of the networks; it gives the shapes.
        parts: any of its parts.
        num_chunk_variants: variants of a chunk; None picks it from the cost of one.
    """

    def __init__(self, subject: Subject, parts: Parts, num_chunk_variants: int | None = None):
        self.score_fn = subject.score_fn or subject.predict_fn
        self.task = subject.task
        total = sum(len(part.labels) for part in parts)
        is_convolutional = any(w.ndim > 2 for w in subject.weights().values())
        self.is_on_cpu = _platform(subject.params) == "cpu"
        # Windows of images are many times as large as the images: on a CPU few stay in its cache.
        largest = 2048 if not is_convolutional else 16 if self.is_on_cpu else 256
        self.block = min(largest, total)
        self._num_examples = total
        self._params, self._example = subject.params, parts.test.inputs[:1]
        self._last: tuple[Sequence[Any], Any] = (), None
        self.num_chunk_variants = num_chunk_variants or self._chunk_variants(subject, parts, total)

    def blocks(self, *inputs: Shaped[np.ndarray, "n ..."]) -> Blocks:
        """Cut inputs of parts into blocks, once for many networks."""
        total = sum(len(own) for own in inputs)
        block = self.block
        if self.is_on_cpu:
            # Every number of blocks is a program of its own anyway: a size that fills up little.
            block = -(-total // max(1, round(total / block)))
        examples = np.concatenate(inputs)
        first, places = distinct(examples)
        # Only what many networks are scored on is worth a program with many loops.
        is_for_many = total == self._num_examples and first.size >= LEAST_SIZE
        if is_for_many and self._takes_common_inputs:
            found = in_common(first, -(-total // BLOCK))
            if found is not None:
                common, where = found
                common = jax.device_put(common)
                return Blocks(common, int(common.ends[-1]), where[places])
        most, number = -(-total // block), -(-len(first) // block)
        if number == most:  # to gather outputs would be for nothing
            first, places = examples, slice(total)
        blocks = filled_up(first, most * block).reshape(most, block, *first.shape[1:])
        # What is handed to a program of a CPU as an array of NumPy is copied in every call.
        return Blocks(jax.device_put(blocks) if self.is_on_cpu else blocks, number, places)

    def blocks_of(self, *parts: Examples) -> Blocks:
        """Inputs of parts in blocks, those of the last time if the parts are the same."""
        inputs = [part.inputs for part in parts]
        last, blocks = self._last
        if len(last) != len(inputs) or any(a is not b for a, b in zip(last, inputs, strict=True)):
            blocks = self.blocks(*inputs)
            self._last = inputs, blocks
        return blocks

    def outputs(self, networks: Sequence[Params], blocks: Blocks) -> Float[np.ndarray, "C n ..."]:
        """Outputs of networks for the examples of all blocks.

        On CPUs each network is a call of its own: a product is large enough alone, calls that do
        not wait for each other share the cores, and nothing is stacked or filled up.
        """
        inputs, num_blocks, places = blocks
        if self.is_on_cpu:
            if isinstance(inputs, CommonInputs):
                found = [
                    predict_in_common(self.score_fn, params, inputs, self._example.shape[1:])
                    for params in networks
                ]
            else:
                number = jax.device_put(np.int32(num_blocks))
                found = [
                    _predict_blocks(self.score_fn, params, inputs, number) for params in networks
                ]
            outputs = np.stack([np.asarray(own) for own in found])
            outputs = outputs.reshape(len(networks), -1, *outputs.shape[3:])
        else:
            # All shapes stay the same, so that nothing recompiles.
            filled = [*networks, *[networks[-1]] * (self.num_chunk_variants - len(networks))]
            stacked = _stack(filled if len(networks) > 1 else list(networks))
            parts = [_predict_stack(self.score_fn, stacked, own) for own in inputs[:num_blocks]]
            outputs = np.concatenate([np.asarray(own) for own in parts], axis=1)[: len(networks)]
        return outputs[:, places]

    def check_finite(self, subject: Subject, parts: Parts) -> None:
        """Refuse a network whose loss is not finite, before anything is measured at it."""
        outputs = self.outputs([subject.params], self.blocks_of(*parts))
        for name, (own,) in zip(Parts._fields, split_outputs(outputs, parts), strict=True):
            num_bad = int(np.sum(~np.isfinite(own.reshape(len(own), -1)).all(axis=-1)))
            if num_bad:
                raise ValueError(
                    f"the loss of network {subject.model_seed} is not finite: its outputs are "
                    f"NaN or infinite for {num_bad} of the {len(own)} {name} examples; check "
                    "these inputs and the weights."
                )

    def own_calibration(self, subject: Subject, parts: Parts) -> Float[Array, ""]:
        """Return the calibration that an original network brings: its raw loss has it."""
        if not self.task.brings_calibration:
            return jnp.ones(())
        inputs, targets = parts.validation
        outputs = self.outputs([subject.params], self.blocks(inputs))[0]
        return own_calibration_of(self.task, outputs, targets)

    @cached_property
    def _takes_common_inputs(self) -> bool:
        return self.is_on_cpu and multiplies_inputs(self.score_fn, self._params, self._example)

    def _chunk_variants(self, subject: Subject, parts: Parts, total: int) -> int:
        example = parts.test.inputs[: self.block]
        lowered = jax.jit(subject.predict_fn).lower(subject.params, example)
        flops = (lowered.cost_analysis() or {}).get("flops", 0.0)
        cost = max(float(flops), 1.0) * total / len(example)
        outputs = jax.eval_shape(subject.predict_fn, subject.params, example)
        each = outputs.size * total // len(example)
        most = min(MAX_CHUNK_VARIANTS, max(MAX_CHUNK_OUTPUTS // max(each, 1), 1))
        return int(np.clip(CHUNK_FLOPS // cost, 1, most))


@partial(jax.jit, static_argnames=("predict_fn",))
def _predict_blocks(
    predict_fn: PredictFn,
    params: Params,
    blocks: Float[Array, "blocks block ..."],
    num_blocks: Int[Array, ""],
) -> Float[Array, "blocks block ..."]:
    """Outputs for the first of some blocks, zeros for the others."""
    like = jax.eval_shape(predict_fn, params, blocks[0])

    def predict(number: Array, outputs: Array) -> Array:
        return outputs.at[number].set(predict_fn(params, blocks[number]))

    with jax.default_matmul_precision("highest"):
        nothing = jnp.zeros((len(blocks), *like.shape), like.dtype)
        return jax.lax.fori_loop(0, num_blocks, predict, nothing)


@partial(jax.jit, static_argnames=("predict_fn",))
def _predict_stack(predict_fn: PredictFn, stacked: Params, inputs: Array) -> Array:
    # Inputs are not batched over the networks: the first layer is one matrix product for all.
    with jax.default_matmul_precision("highest"):
        return jax.vmap(predict_fn, in_axes=(0, None))(stacked, inputs)


@jax.jit
def _stack(trees: list[Params]) -> Params:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def split_outputs(outputs: np.ndarray, parts: Parts) -> list[np.ndarray]:
    """Take outputs apart along their examples, the second axis."""
    ends = np.cumsum([len(part.labels) for part in parts])
    return np.split(outputs, ends[:-1], axis=1)


def _platform(params: Params) -> str:
    """Where a network is evaluated."""
    arrays = [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    return next(iter(arrays[0].devices())).platform if arrays else jax.default_backend()
