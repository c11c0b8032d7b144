"""The engine of every sweep: one trained network, many variants, scored on three parts.

A chunk of variants is evaluated in few large jitted calls: the examples of all three parts are laid
end to end and walked through in blocks, by the changed networks stacked or, on CPUs, by one after
the other, and every score is computed from the outputs, as the task says. What is fitted by looking
at data (a calibration, and later the variant that a claim speaks of) is fitted on the validation
set only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxcomp.bounds import mutual_information_bound
from jaxcomp.coding.sizes import compression_ratio
from jaxcomp.experiments.samples import Examples
from jaxcomp.experiments.sweep.candidates import VariantLosses
from jaxcomp.experiments.sweep.codebooks import Codebooks, Layers
from jaxcomp.experiments.sweep.compress import Compressed, compress, squared_errors
from jaxcomp.experiments.sweep.files import SharedFiles, can_be_written, file_of, num_bytes
from jaxcomp.experiments.sweep.limits import NO_LIMITS, limits_at, network_limit
from jaxcomp.experiments.sweep.tasks import (
    Classification,
    Task,
    example_values_of,
    own_calibration_of,
    scores_of,
)
from jaxcomp.experiments.sweep.variants import TRAINED_OTHERWISE, Variant
from jaxcomp.numerics.units import LN2
from jaxcomp.quantizers import Method
from jaxcomp.rate_distortion import NetworkLimit
from jaxcomp.trees.paths import leaves_by_path, replace_leaves
from jaxcomp.types import AnyArray, Params, PredictFn

Row = dict[str, Any]

# A chunk of variants is one unit of work that survives: about this many floating-point operations,
# a few seconds on two cores.
CHUNK_FLOPS = 1.5e11
MAX_CHUNK_VARIANTS = 16
# Outputs of a chunk are held on the host: at most about this many numbers, 1 GiB.
MAX_CHUNK_OUTPUTS = 1 << 28
FLOAT_BITS = 32


def _as_they_are(params: Params) -> Params:
    return params


class Parts(NamedTuple):
    """Three disjoint parts: what was learned, what choices are made on, and one look."""

    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class Subject:
    """One trained network under test.

    Attributes:
        predict_fn: `(params, inputs) -> outputs`, evaluation mode, hashable.
        params: all of its arrays.
        layers: names of the layers to compress: paths of leaves, or of a leaf that is a stack of
            layers those of its layers, `path[0]` and so on.
        otherwise: arrays of the same network trained or changed otherwise, by the method of the
            control that they are, `early_stopping` and so on; as far as they are known.
        last_layer: path of the layer that makes the logits, if known.
        refresh_fn: `(params, inputs) -> params`, re-estimates batch statistics after a
            change of the weights; None to keep them.
        model_seed: which of several networks this is.
        num_distinct: distinct training examples (draws with replacement repeat some).
        stacks: leaves that are stacks of layers: path, and the axis of the layers.
        as_given: `params -> params`, puts arrays back into the tree that was handed in.
        task: what it is for.
        methods: of the user, by the name that variants give them.
        score_fn: `predict_fn` in a form that is faster where only outputs are wanted, the same to
            rounding: nothing differentiates it or looks for layers in it; None if there is none.
    """

    predict_fn: PredictFn
    params: Params
    layers: tuple[str, ...]
    otherwise: Mapping[str, Params] = field(default_factory=dict)
    last_layer: str | None = None
    refresh_fn: Callable[[Params, Any], Params] | None = None
    model_seed: int = 0
    num_distinct: int | None = None
    stacks: tuple[tuple[str, int], ...] = ()
    as_given: Callable[..., Params] = _as_they_are
    task: Task = Classification()  # noqa: RUF009
    methods: Mapping[str, Method] = field(default_factory=dict)
    score_fn: PredictFn | None = None

    def weights(self) -> Layers:
        """The layers to compress, by name."""
        return self.layers_of(leaves_by_path(self.params))

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Paths of the leaves that hold the layers."""
        inside = {name: path for path, axis in self.stacks for name in self._names(path, axis)}
        return tuple(dict.fromkeys(inside.get(name, name) for name in self.layers))

    def layers_of(self, leaves: Mapping[str, Any]) -> Layers:
        """Return the layers, by name, of leaves by path (weights, or what is shaped like them)."""
        axes = dict(self.stacks)
        layers = {}
        for path in self.paths:
            leaf = jnp.asarray(leaves[path])
            if path in axes:
                names = self._names(path, axes[path])
                layers |= dict(zip(names, jnp.moveaxis(leaf, axes[path], 0), strict=True))
            else:
                layers[path] = leaf
        return layers

    def leaves_of(self, layers: Layers) -> dict[str, Array]:
        """Undo `layers_of`."""
        axes = dict(self.stacks)
        return {
            path: jnp.stack([layers[name] for name in self._names(path, axes[path])], axes[path])
            if path in axes
            else layers[path]
            for path in self.paths
        }

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {path: jnp.shape(leaf) for path, leaf in leaves_by_path(self.params).items()}

    def _names(self, path: str, axis: int) -> list[str]:
        return [f"{path}[{number}]" for number in range(self._shapes[path][axis])]


class Network(NamedTuple):
    """A trained network and all its codebooks: enough to give every changed version back.

    Attributes:
        subject: the network.
        codebooks: of every quantized variant.
        key: of the noise control.
    """

    subject: Subject
    codebooks: Codebooks
    key: jax.Array


class Blocks(NamedTuple):
    """Inputs of some parts, end to end and cut into blocks of one size.

    Attributes:
        inputs: the last block is filled up with zeros.
        num_examples: without these.
    """

    inputs: Shaped[AnyArray, "blocks block ..."]
    num_examples: int


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
        self.num_chunk_variants = num_chunk_variants or self._chunk_variants(subject, parts, total)

    def blocks(self, *inputs: Shaped[np.ndarray, "n ..."]) -> Blocks:
        """Lay inputs of parts end to end and cut them into blocks, once for many networks."""
        total = sum(len(own) for own in inputs)
        block = self.block
        if self.is_on_cpu:
            # Every number of blocks is a program of its own anyway: a size that fills up little.
            block = -(-total // max(1, round(total / block)))
        missing = -total % block
        filling = np.zeros((missing, *inputs[0].shape[1:]), inputs[0].dtype)
        blocks = np.concatenate([*inputs, filling]).reshape(-1, block, *filling.shape[1:])
        # What is handed to a program of a CPU as an array of NumPy is copied in every call.
        return Blocks(jnp.asarray(blocks) if self.is_on_cpu else blocks, total)

    def outputs(self, networks: Sequence[Params], blocks: Blocks) -> Float[np.ndarray, "C n ..."]:
        """Outputs of networks for the examples of all blocks.

        On CPUs each network is a call of its own: a product is large enough alone, calls that do
        not wait for each other share the cores, and nothing is stacked or filled up.
        """
        inputs, num_examples = blocks
        if self.is_on_cpu:
            found = [_predict_blocks(self.score_fn, params, inputs) for params in networks]
            outputs = np.stack([np.asarray(own) for own in found])
            outputs = outputs.reshape(len(networks), -1, *outputs.shape[3:])
        else:
            # All shapes stay the same, so that nothing recompiles.
            filled = [*networks, *[networks[-1]] * (self.num_chunk_variants - len(networks))]
            stacked = _stack(filled if len(networks) > 1 else list(networks))
            parts = [_predict_stack(self.score_fn, stacked, block) for block in inputs]
            outputs = np.concatenate([np.asarray(own) for own in parts], axis=1)[: len(networks)]
        return outputs[:, :num_examples]

    def check_finite(self, subject: Subject, parts: Parts) -> None:
        """Refuse a network whose loss is not finite, before anything is measured at it."""
        outputs = self.outputs([subject.params], self.blocks(*_inputs(parts)))
        for name, (own,) in zip(Parts._fields, _split(outputs, parts), strict=True):
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

    def _chunk_variants(self, subject: Subject, parts: Parts, total: int) -> int:
        example = parts.test.inputs[: self.block]
        lowered = jax.jit(subject.predict_fn).lower(subject.params, example)
        flops = (lowered.cost_analysis() or {}).get("flops", 0.0)
        cost = max(float(flops), 1.0) * total / len(example)
        outputs = jax.eval_shape(subject.predict_fn, subject.params, example)
        each = outputs.size * total // len(example)
        most = min(MAX_CHUNK_VARIANTS, max(MAX_CHUNK_OUTPUTS // max(each, 1), 1))
        return int(np.clip(CHUNK_FLOPS // cost, 1, most))


class Scorer:
    """All rows of one network: compresses it variant by variant and scores chunk by chunk.

    Args:
        network: with its codebooks.
        parts: its three parts.
        evaluator: of its setting.
        reference: importance of every weight, for predictions and limits; None for none.
        keep: takes the file of every compressed variant; None for nobody.
    """

    def __init__(
        self,
        network: Network,
        parts: Parts,
        evaluator: Evaluator,
        *,
        reference: Layers | None = None,
        keep: Callable[[Variant, bytes], None] | None = None,
    ):
        self.network = network
        self.subject = network.subject
        self.parts = parts
        self.evaluator = evaluator
        self.reference = reference
        self.keep = keep
        self.weights = network.subject.weights()

    @cached_property
    def blocks(self) -> Blocks:
        """Inputs of all parts."""
        return self.evaluator.blocks(*_inputs(self.parts))

    @cached_property
    def calibration(self) -> Float[Array, ""]:
        """What the original network brings."""
        return self.evaluator.own_calibration(self.subject, self.parts)

    @cached_property
    def limit(self) -> NetworkLimit | None:
        """The rate-distortion limit of the network under the reference importance."""
        if self.reference is None:
            return None
        return network_limit(self.weights, self.reference)

    def apply(self, variant: Variant) -> tuple[Params, Compressed]:
        """Return the whole network after one variant, and what became of its layers."""
        params, changed = change(self.network, variant)
        if self.subject.refresh_fn is not None and variant.kind in ("compressed", "sensitivity"):
            params = self.subject.refresh_fn(params, self.parts.train.inputs)
        return params, changed

    def score(self, variants: Sequence[Variant]) -> list[Row]:
        """Score one chunk of variants."""
        applied = [self.apply(variant) for variant in variants]
        scores = self._scores([params for params, _ in applied], variants)
        rows = []
        for position, (variant, (params, changed)) in enumerate(
            zip(variants, applied, strict=True)
        ):
            row = {name: float(values[position]) for name, values in scores.items()}
            size = self._size_bytes(variant, params, changed)
            rows.append(self._row(variant, changed, row, size))
        return rows

    def losses(self, variant: Variant, calibration: float) -> VariantLosses:
        """Per test example: loss, loss at a fitted calibration, and score."""
        params, _ = self.apply(variant)
        _, validation, test = self.parts
        task = self.evaluator.task
        outputs = self._outputs_of(params, test)
        if self._is_output_control(variant):
            fitted_on = self._outputs_of(params, validation)
            outputs = task.controlled(outputs, fitted_on, validation.labels)
        values = example_values_of(task, outputs, test.labels, self.calibration, calibration)
        losses = VariantLosses(*map(np.asarray, values))
        if self._is_output_control(variant) and task.words.control_is_calibration:
            return losses._replace(loss=losses.loss_tempered)
        return losses

    def _outputs_of(self, params: Params, part: Examples) -> Float[np.ndarray, "n ..."]:
        return self.evaluator.outputs([params], self.evaluator.blocks(part.inputs))[0]

    def _is_output_control(self, variant: Variant) -> bool:
        return (variant.kind, variant.method) == ("control", self.evaluator.task.words.control)

    @cached_property
    def _original_bytes(self) -> int:
        return num_bytes(self.subject.params)

    @cached_property
    def _shared(self) -> SharedFiles:
        return SharedFiles(jax.tree.leaves(self.subject.params))

    def _size_bytes(self, variant: Variant, params: Params, changed: Compressed) -> float:
        """Write the file of a compressed variant and return its bytes; NaN if there is none."""
        if variant.kind in ("original", "control"):
            return self._original_bytes
        # A layer alone is compressed to see what the loss does, not for its size.
        if variant.kind == "sensitivity" or not can_be_written():
            return np.nan
        data = file_of(params, changed.stored, self.subject.stacks, self._shared)
        if self.keep is not None:
            self.keep(variant, data)
        return len(data)

    def _scores(
        self, networks: Sequence[Params], variants: Sequence[Variant]
    ) -> dict[str, np.ndarray]:
        task = self.evaluator.task
        outputs = self.evaluator.outputs(networks, self.blocks)
        # A short chunk is filled up, so that nothing recompiles.
        missing = self.evaluator.num_chunk_variants - len(networks)
        outputs = np.concatenate([outputs, np.repeat(outputs[-1:], missing, axis=0)])
        targets = [part.labels for part in self.parts]
        parts = _split(outputs, self.parts)
        for position, variant in enumerate(variants):
            if self._is_output_control(variant):
                fitted_on = parts[1][position].copy()
                for part in parts:
                    part[position] = task.controlled(part[position], fitted_on, targets[1])
        scores = scores_of(task, self.calibration, parts, targets)
        return {name: np.asarray(values, np.float64) for name, values in scores.items()}

    def _row(self, variant: Variant, changed: Compressed, scores: Row, size_bytes: float) -> Row:
        num_weights = sum(w.size for w in self.weights.values())
        biases = _num_floats(self.subject.params) - num_weights
        original_bits = float(FLOAT_BITS * num_weights)
        predicted = np.nan
        if (
            self.reference is not None
            and variant.kind != "original"
            and not self._is_output_control(variant)
        ):
            _, weighted = squared_errors(self.weights, changed.layers, self.reference)
            predicted = 0.5 * float(weighted)
        words = self.evaluator.task.words
        if self._is_output_control(variant) and words.control_is_calibration:
            scores = _at_calibration(scores)
        sizes = changed.sizes
        limits = NO_LIMITS
        if sizes is None or variant.kind == "sensitivity":
            fixed = entropy = description = original_bits
            codebook = 0.0
        else:
            fixed, entropy = sizes.fixed_bits, sizes.entropy_bits
            codebook, description = sizes.codebook_bits, sizes.description_bits
            limits = limits_at(self.limit, entropy / num_weights, predicted)
        size_bits = entropy + codebook
        description += FLOAT_BITS * biases
        num_examples = self.subject.num_distinct or len(self.parts.train.labels)
        # A score between 0 and 1 of independent examples.
        has_bound = words.score.is_higher_better and words.per == "example"
        bound = (
            mutual_information_bound(
                description * LN2, num_examples=num_examples, sub_gaussian_scale=0.5
            )
            if has_bound
            else np.nan
        )
        return {
            "variant": variant.id,
            "kind": variant.kind,
            "method": variant.method,
            "importance": variant.importance,
            "penalty_form": variant.penalty_form,
            "diameter_penalty": variant.diameter_penalty,
            "num_clusters": variant.num_clusters,
            "parameter": variant.parameter,
            "allocation": variant.allocation,
            "layer": variant.layer,
            "model_seed": self.subject.model_seed,
            **scores,
            "generalization_gap": scores["test_loss"] - scores["train_loss"],
            "predicted_rise_nats": predicted,
            "fixed_bits_per_weight": fixed / num_weights,
            "entropy_bits_per_weight": entropy / num_weights,
            "limit_bits_per_weight": limits.limit,
            "shannon_bits_per_weight": limits.shannon,
            "excess_bits_per_weight": limits.excess,
            "size_bytes": float(size_bytes),
            "ratio": self._original_bytes / size_bytes,
            "codebook_bits": codebook,
            "size_bits_estimated": size_bits,
            "description_bits": description,
            "ratio_estimated": compression_ratio(original_bits, size_bits),
            "ratio_with_biases": compression_ratio(
                original_bits + FLOAT_BITS * biases, size_bits + FLOAT_BITS * biases
            ),
            "zero_one_bound": float(bound),
            "num_used": changed.num_used,
            "num_empty": changed.num_empty,
            "converged": changed.converged,
        }


def change(network: Network, variant: Variant) -> tuple[Params, Compressed]:
    """Return a network after one variant (batch statistics as they were), and its layers.

    Raises:
        ValueError: for a variant that was trained otherwise, if the network has no such version.
    """
    subject, codebooks, key = network
    weights = subject.weights()
    changed = compress(
        weights,
        variant,
        codebooks,
        key=key,
        last_layer=subject.last_layer,
        methods=subject.methods,
    )
    if variant.method not in subject.otherwise and variant.method not in TRAINED_OTHERWISE:
        return replace_leaves(subject.params, subject.leaves_of(changed.layers)), changed
    params = subject.otherwise.get(variant.method)
    if params is None:
        raise ValueError(
            f"this network has no version by {variant.method}; choose another variant."
        )
    return params, changed._replace(layers=subject.layers_of(leaves_by_path(params)))


def stack_losses(per_model: Sequence[VariantLosses]) -> VariantLosses:
    """Loss matrices (models, test examples) of one variant, for the claims."""
    return VariantLosses(*(np.stack(part) for part in zip(*per_model, strict=True)))


def chunked(variants: Sequence[Variant], size: int) -> Iterator[tuple[int, Sequence[Variant]]]:
    """Numbered chunks of at most `size` variants, in order."""
    for number, start in enumerate(range(0, len(variants), size)):
        yield number, variants[start : start + size]


@partial(jax.jit, static_argnames=("predict_fn",))
def _predict_blocks(
    predict_fn: PredictFn, params: Params, blocks: Float[Array, "blocks block ..."]
) -> Float[Array, "blocks block classes"]:
    with jax.default_matmul_precision("highest"):
        return jax.lax.map(partial(predict_fn, params), blocks)


@partial(jax.jit, static_argnames=("predict_fn",))
def _predict_stack(predict_fn: PredictFn, stacked: Params, inputs: Array) -> Array:
    # Inputs are not batched over the networks: the first layer is one matrix product for all.
    with jax.default_matmul_precision("highest"):
        return jax.vmap(predict_fn, in_axes=(0, None))(stacked, inputs)


@jax.jit
def _stack(trees: list[Params]) -> Params:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _at_calibration(scores: Row) -> Row:
    """Scores of the network whose raw loss is the one with its fitted calibration, which stays."""
    return scores | {
        name.removesuffix("_tempered"): value
        for name, value in scores.items()
        if name.endswith("_tempered")
    }
    for name, (raw, tempered) in on_test.items():
        scores |= {name: raw, f"{name}_tempered": tempered}
    return scores


def _inputs(parts: Parts) -> list[np.ndarray]:
    return [part.inputs for part in parts]


def _split(outputs: np.ndarray, parts: Parts) -> list[np.ndarray]:
    """Take outputs apart along their examples, the second axis."""
    ends = np.cumsum([len(part.labels) for part in parts])
    return np.split(outputs, ends[:-1], axis=1)


def _platform(params: Params) -> str:
    """Where a network is evaluated."""
    arrays = [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    return next(iter(arrays[0].devices())).platform if arrays else jax.default_backend()


def _num_floats(params: Params) -> int:
    return sum(
        leaf.size
        for leaf in jax.tree.leaves(params)
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    )
