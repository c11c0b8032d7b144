"""Everything that is measured of the networks of one variant.

Axes: `M` networks of one variant (the first axis of every leaf), `n` training examples, `T` steps.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcomp import bounds, coding
from jaxcomp.curvature import gauss_newton_diagonal
from jaxcomp.evaluation import metrics
from jaxcomp.evaluation.calibration import fit_temperature
from jaxcomp.experiments.regularization import codes
from jaxcomp.experiments.regularization.config import RegularizationConfig, Variant
from jaxcomp.experiments.regularization.sparsity import smaller_network
from jaxcomp.experiments.run import Row
from jaxcomp.experiments.samples import Samples
from jaxcomp.numerics.units import LN2
from jaxcomp.types import Params, PredictFn


class Measured(NamedTuple):
    """Rows of the table, one for each network, and the losses that claims are made of."""

    rows: list[Row]
    losses: dict[str, np.ndarray]
    """`loss`, `loss_tempered`: (M, test examples), float32 nats."""


def measure(
    predict_fn: PredictFn,
    variables: Params,
    variant: Variant,
    samples: Samples,
    config: RegularizationConfig,
) -> Measured:
    """Measure the networks of one variant.

    Args:
        predict_fn: of the network, in evaluation mode.
        variables: with `params`; networks first.
        variant: how they were trained.
        samples: the three parts.
        config: settings.

    Returns:
        Rows and losses.
    """
    num_models = config.num_models
    train = [samples.train(number) for number in range(num_models)]
    few = min(config.curvature_examples, config.train_size)
    stacked = tuple(np.stack(part) for part in zip(*train, strict=True))
    # Parts of arrays are taken on the host, where they compile nothing.
    (inputs, labels), first = jax.device_put((stacked, tuple(part[:, :few] for part in stacked)))
    steps = 2.0 ** -np.arange(1, config.num_steps + 1)
    scores = _scores(
        variables, inputs, labels, *samples.validation, *samples.test, predict_fn=predict_fn
    )
    scores = jax.tree.map(np.asarray, scores)
    rounded_loss, rounded_error = jax.tree.map(
        np.asarray,
        _rounded_losses(
            variables,
            inputs,
            labels,
            jax.device_put(steps.astype(np.float32)),
            predict_fn=predict_fn,
        ),
    )
    curvature = _curvature(variables, *first, predict_fn=predict_fn)
    curvature = jax.tree.map(np.asarray, curvature)
    host = jax.tree.map(np.asarray, variables)
    own = [jax.tree.map(lambda leaf, m=m: leaf[m], host) for m in range(num_models)]
    rows = []
    for number, network in enumerate(own):
        params = network["params"]
        hessian = config.train_size * codes.flat(
            jax.tree.map(lambda leaf, m=number: leaf[m], curvature)["params"]
        )
        row = {
            "variant": variant.id,
            "kind": variant.kind,
            "strength": variant.strength,
            "model_seed": number,
        }
        row |= {name: float(scores[name][number]) for name in _SCORES}
        if variant.kind == "temperature":
            row |= {
                "validation_loss": row["validation_loss_tempered"],
                "test_loss": row["test_loss_tempered"],
            }
        row["gap"] = row["test_loss"] - row["train_loss"]
        row |= _weights_row(params, variant, config)
        row["num_train"] = config.train_size
        row["uniform_label_bits"] = config.train_size * math.log2(samples.num_classes)
        row |= _theory_row(params, variant, hessian, config)
        row |= _description_row(
            params,
            variant,
            steps,
            config.train_size * rounded_loss[number] / LN2,
            rounded_error[number],
            config,
        )
        rows.append(row)
    tempered = scores["test_losses_tempered"]
    raw = tempered if variant.kind == "temperature" else scores["test_losses"]
    return Measured(rows, {"loss": raw, "loss_tempered": tempered})


_SCORES = (
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_loss_tempered",
    "test_loss",
    "test_loss_tempered",
    "test_accuracy",
    "temperature",
)


@partial(jax.jit, static_argnames="predict_fn")
def _scores(
    variables: Params,
    inputs: Float[Array, "M n ..."],
    labels: Int[Array, "M n"],
    validation_inputs: Float[Array, "validation ..."],
    validation_labels: Int[Array, "validation"],
    test_inputs: Float[Array, "test ..."],
    test_labels: Int[Array, "test"],
    *,
    predict_fn: PredictFn,
) -> dict[str, Array]:
    """Losses, accuracies and temperatures; the validation set fits its own temperature."""
    train_logits = jax.vmap(predict_fn)(variables, inputs)
    validation_logits = jax.vmap(predict_fn, in_axes=(0, None))(variables, validation_inputs)
    test_logits = jax.vmap(predict_fn, in_axes=(0, None))(variables, test_inputs)
    temperature = fit_temperature(validation_logits, validation_labels)
    scale = (1 / temperature)[:, None, None]
    test_losses = metrics.cross_entropy(test_logits, test_labels)
    tempered = metrics.cross_entropy(test_logits * scale, test_labels)

    def mean(values: Array) -> Array:
        return jnp.mean(values.astype(jnp.float32), axis=1)

    return {
        "train_loss": mean(metrics.cross_entropy(train_logits, labels)),
        "train_accuracy": mean(metrics.correct(train_logits, labels)),
        "validation_loss": mean(metrics.cross_entropy(validation_logits, validation_labels)),
        "validation_loss_tempered": mean(
            metrics.cross_entropy(validation_logits * scale, validation_labels)
        ),
        "test_loss": mean(test_losses),
        "test_loss_tempered": mean(tempered),
        "test_accuracy": mean(metrics.correct(test_logits, test_labels)),
        "temperature": temperature,
        "test_losses": test_losses,
        "test_losses_tempered": tempered,
    }


@partial(jax.jit, static_argnames="predict_fn")
def _rounded_losses(
    variables: Params,
    inputs: Float[Array, "M n ..."],
    labels: Int[Array, "M n"],
    steps: Float[Array, "T"],
    *,
    predict_fn: PredictFn,
) -> tuple[Float[Array, "M T"], Float[Array, "M T"]]:
    """Mean training loss (nats) and 0-1 error of the networks rounded to every step."""

    def at_step(step: Array) -> tuple[Array, Array]:
        rounded = variables | {"params": coding.quantize(variables["params"], step=step)}
        logits = jax.vmap(predict_fn)(rounded, inputs)
        errors = ~metrics.correct(logits, labels)
        return (
            jnp.mean(metrics.cross_entropy(logits, labels), axis=1),
            jnp.mean(errors.astype(jnp.float32), axis=1),
        )

    losses, errors = jax.lax.map(at_step, steps)
    return losses.T, errors.T


@partial(jax.jit, static_argnames="predict_fn")
def _curvature(
    variables: Params,
    inputs: Float[Array, "M n ..."],
    labels: Int[Array, "M n"],
    *,
    predict_fn: PredictFn,
) -> Params:
    """Diagonal of the Gauss-Newton matrix of the mean loss, of every network."""

    def one(own: Params, examples: Array, classes: Array) -> Params:
        return gauss_newton_diagonal(predict_fn, own, (examples, classes)).mean

    return jax.vmap(one)(variables, inputs, labels)


def _weights_row(params: Params, variant: Variant, config: RegularizationConfig) -> Row:
    """Codes at the common step, and what is left when dead parts are taken out."""
    weights = codes.flat(params)
    coded = codes.measure_codes(params, variant, num_examples=config.train_size, step=config.step)
    row: Row = {
        "num_weights": len(weights),
        "weight_rms": float(np.sqrt(np.mean(np.square(weights, dtype=np.float64)))),
        "zero_share": float(np.mean(weights == 0)),
        "zero_cell_share": float(
            np.mean(np.asarray(coding.quantize(weights, step=config.step)) == 0)
        ),
    }
    row |= {f"bits_per_weight_{name}": b / len(weights) for name, b in coded.bits.items()}
    row |= {f"bytes_{name}": float(size) for name, size in coded.size_bytes.items()}
    smaller = smaller_network(params)
    kernels = [params[layer]["kernel"] for layer in sorted(params)]
    row |= {
        "num_inputs": len(kernels[0]),
        "num_units": sum(len(kernel) for kernel in kernels[1:]),
        "live_inputs": len(smaller.inputs),
        "live_units": sum(smaller.num_units),
        "live_weights": smaller.num_weights,
        "bytes_smaller": float(_smaller_bytes(params, config.step)),
    }
    return row


def _smaller_bytes(params: Params, step: float) -> int:
    """Bytes of the rounded network without its dead parts, and of what says which they are.

    One bit for each input, 16 for the size of each hidden layer, the spike and slab's parameters.
    """
    rounded = codes.rounded(params, step)
    smaller = smaller_network(rounded, absorbs_constants=False)
    weights = codes.flat(smaller.params)
    prior = codes.fitted_prior(weights, "spike", step)
    words = coding.encode(weights, prior, step=step)
    num_inputs = len(rounded[min(rounded)]["kernel"])
    header = num_inputs + 16 * len(smaller.num_units) + coding.parameter_bits(prior)
    return words.nbytes + -(-header // 8)


def _theory_row(
    params: Params, variant: Variant, hessian: Float[np.ndarray, "N"], config: RegularizationConfig
) -> Row:
    """The effective rate at the implied and the fitted Gaussian prior, and the bound it gives."""
    weights = codes.flat(params)
    spread = float(np.sqrt(np.mean(np.square(weights, dtype=np.float64))))
    fitted = coding.l2_rate_nats(hessian, 1 / spread**2) if spread > 0 else 0.0
    implied = math.nan
    if variant.kind == "l2":
        precision = coding.prior_precision_from_weight_decay(variant.strength, config.train_size)
        implied = float(coding.l2_rate_nats(hessian, precision))
    bound = math.nan
    if not math.isnan(implied):
        bound = float(
            bounds.mutual_information_bound(
                implied, num_examples=config.train_size, sub_gaussian_scale=0.5
            )
        )
    return {"rate_nats_implied": implied, "rate_nats_fitted": float(fitted), "gap_bound": bound}


def _description_row(
    params: Params,
    variant: Variant,
    steps: Float[np.ndarray, "T"],
    label_bits: Float[np.ndarray, "T"],
    errors: Float[np.ndarray, "T"],
    config: RegularizationConfig,
) -> Row:
    weights = codes.flat(params)
    weight_bits = codes.fitted_bits(weights, steps)
    best = codes.shortest_description(weight_bits, label_bits, steps)
    certified = codes.certificate(
        params, errors, weight_bits, num_examples=config.train_size, delta=config.delta
    )
    prior: Any = codes.implied_prior(variant, config.train_size)
    implied = math.nan
    if prior is not None:
        lengths = [codes.code_bits(weights, prior, step) for step in steps.tolist()]
        implied = float(np.min(np.asarray(lengths) + label_bits) + math.log2(len(steps)))
    return {
        "description_bits": best.bits,
        "description_weight_bits": best.weight_bits,
        "description_label_bits": best.label_bits,
        "description_step": best.step,
        "description_code": best.code,
        "description_bits_implied": implied,
        "certificate": certified.bound,
        "certificate_bytes": certified.size_bytes,
        "certificate_ideal_bytes": certified.ideal_bytes,
        "certificate_step": certified.step,
    }
