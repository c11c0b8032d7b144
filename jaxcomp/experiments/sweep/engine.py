"""The engine of every sweep: one trained network, many variants, scored on three parts.

A chunk of variants is evaluated in few large jitted calls: the examples of all three parts are laid
end to end and walked through in blocks, by the changed networks stacked or, on CPUs, by one after
the other, and every score is computed from the outputs, as the task says. What is fitted by looking
at data (a calibration, and later the variant that a claim speaks of) is fitted on the validation
set only.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcomp.bounds import mutual_information_bound
from jaxcomp.coding.sizes import compression_ratio
from jaxcomp.experiments.sweep.candidates import VariantLosses
from jaxcomp.experiments.sweep.codebooks import Codebooks, Layers
from jaxcomp.experiments.sweep.compress import Compressed, compress, squared_errors
from jaxcomp.experiments.sweep.evaluator import Blocks, Evaluator, split_outputs
from jaxcomp.experiments.sweep.files import SharedFiles, can_be_written, file_of, num_bytes
from jaxcomp.experiments.sweep.limits import NO_LIMITS, limits_at, network_limit
from jaxcomp.experiments.sweep.subject import Parts, Subject
from jaxcomp.experiments.sweep.tasks import example_values_of, scores_of
from jaxcomp.experiments.sweep.variants import TRAINED_OTHERWISE, Variant
from jaxcomp.numerics.units import LN2
from jaxcomp.rate_distortion import NetworkLimit
from jaxcomp.trees.paths import leaves_by_path, replace_leaves
from jaxcomp.types import Params

Row = dict[str, Any]

FLOAT_BITS = 32


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


class Scorer:
    """All rows of one network: compresses it variant by variant and scores chunk by chunk.

    Args:
        network: with its codebooks.
        parts: its three parts.
        evaluator: of its setting.
        reference: importance of every weight, for predictions and limits; None for none.
    """

    def __init__(
        self,
        network: Network,
        parts: Parts,
        evaluator: Evaluator,
        *,
        reference: Layers | None = None,
    ):
        self.network = network
        self.subject = network.subject
        self.parts = parts
        self.evaluator = evaluator
        self.reference = reference
        self.weights = network.subject.weights()

    @cached_property
    def blocks(self) -> Blocks:
        """Inputs of all parts."""
        return self.evaluator.blocks_of(*self.parts)

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

    def score(
        self,
        variants: Sequence[Variant],
        keep: Callable[[Variant, bytes], object] | None = None,
    ) -> list[Row]:
        """Score one chunk of variants.

        Args:
            variants: of the chunk.
            keep: takes the file of every compressed variant; None for nobody.
        """
        applied = [self.apply(variant) for variant in variants]
        scores = self._scores([params for params, _ in applied], variants)
        rows = []
        for position, (variant, (params, changed)) in enumerate(
            zip(variants, applied, strict=True)
        ):
            row = {name: float(values[position]) for name, values in scores.items()}
            size = self._size_bytes(variant, params, changed, keep)
            rows.append(self._row(variant, changed, row, size))
        return rows

    def losses(self, variant: Variant, calibration: float) -> VariantLosses:
        """Per test example: loss, loss at a fitted calibration, and score."""
        params, _ = self.apply(variant)
        _, validation, test = self.parts
        task, evaluator = self.evaluator.task, self.evaluator
        outputs = evaluator.outputs([params], evaluator.blocks_of(test))[0]
        if self._is_output_control(variant):
            fitted_on = evaluator.outputs([params], evaluator.blocks(validation.inputs))[0]
            outputs = task.controlled(outputs, fitted_on, validation.labels)
        values = example_values_of(task, outputs, test.labels, self.calibration, calibration)
        losses = VariantLosses(*map(np.asarray, values))
        if self._is_output_control(variant) and task.words.control_is_calibration:
            return losses._replace(loss=losses.loss_tempered)
        return losses

    def _is_output_control(self, variant: Variant) -> bool:
        return (variant.kind, variant.method) == ("control", self.evaluator.task.words.control)

    @cached_property
    def _original_bytes(self) -> int:
        return num_bytes(self.subject.params)

    @cached_property
    def _shared(self) -> SharedFiles:
        return SharedFiles(jax.tree.leaves(self.subject.params))

    def _size_bytes(
        self,
        variant: Variant,
        params: Params,
        changed: Compressed,
        keep: Callable[[Variant, bytes], object] | None,
    ) -> float:
        """Write the file of a compressed variant and return its bytes; NaN if there is none."""
        if variant.kind in ("original", "control"):
            return self._original_bytes
        # A layer alone is compressed to see what the loss does, not for its size.
        if variant.kind == "sensitivity" or not can_be_written():
            return np.nan
        data = file_of(params, changed.stored, self.subject.stacks, self._shared)
        if keep is not None:
            keep(variant, data)
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
        parts = split_outputs(outputs, self.parts)
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


def _num_floats(params: Params) -> int:
    return sum(
        leaf.size
        for leaf in jax.tree.leaves(params)
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    )
