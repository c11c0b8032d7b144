"""How claims speak of variants and numbers: losses in nats, accuracies in per cent."""

from jaxcomp.evaluation.statistics import Interval
from jaxcomp.experiments.sweep.candidates import (
    ALLOCATION,
    JudgedVariant,
    Quantity,
    is_penalised,
)
from jaxcomp.experiments.sweep.importance import importance_name
from jaxcomp.experiments.sweep.methods import METHODS
from jaxcomp.experiments.verdicts import percent, signed


def describe(variant: JudgedVariant) -> str:
    """Say what a variant is; its name if the method is not known here."""
    about = variant.is_about
    clusters, parameter = int(about["num_clusters"]), float(about["parameter"])
    method = str(about["method"])
    kmeans = importance_name(str(about["importance"])).sentence
    kmeans = METHODS[method].sentence.format(kmeans) if method in METHODS else kmeans
    allocated = ", bits shared between layers" if about[ALLOCATION] != "equal" else ""
    penalty = (
        f", {about['penalty_form']} diameter penalty {float(about['diameter_penalty']):g}"
        if is_penalised(variant)
        else ""
    )
    described = {
        "original": "the original",
        "kmeans": f"{kmeans}, K = {clusters}{penalty}{allocated}",
        "optimal": f"{kmeans}, K = {clusters}{penalty}{allocated}",
        "entropy_constrained": f"{kmeans}, multiplier {parameter:g}{allocated}",
        "vector": f"{kmeans}, K = {clusters}",
        "uniform": f"uniform quantization, K = {clusters}",
        "round_to_nearest": f"rounding to {parameter:g} bits",
        "magnitude_pruning": f"magnitude pruning, sparsity {parameter:g}",
        "temperature": "one temperature",
        "last_layer_scaled": f"the last layer's weights times {parameter:g}",
        "weights_clipped": f"weights clipped at quantile {parameter:g}",
        "gaussian_noise": f"Gaussian noise as large as the error of K-means, K = {clusters}",
        "early_stopping": "early stopping",
        "dropout": "training with dropout",
        "dropout_early_stopping": "training with dropout, stopped early",
    }
    return described.get(method, variant.name)


def relative_words(relative: float | None, is_accuracy: bool) -> str:
    """An effect as a share of the original's loss or error rate."""
    if relative is None:
        return ""
    if is_accuracy:
        return f", error rate {-100 * relative:+.1f} %"
    return f", {100 * relative:+.1f} % of the original loss"


def change_words(interval: Interval, quantity: Quantity, confidence: float) -> str:
    """An effect with its interval."""
    return (
        f"{signed_words(interval.estimate, quantity)}{unit_words(quantity)}, "
        f"{percent(confidence)} interval {ends_words(interval, quantity)}"
    )


def ends_words(interval: Interval, quantity: Quantity = "loss") -> str:
    """An interval."""
    return f"{signed_words(interval.low, quantity)} to {signed_words(interval.high, quantity)}"


def value_words(value: float, quantity: Quantity) -> str:
    """A mean."""
    return f"{100 * value:.2f} %" if quantity == "accuracy" else f"{value:.4f}"


def signed_words(difference: float, quantity: Quantity) -> str:
    """A difference with its sign."""
    return signed(100 * difference, 2) if quantity == "accuracy" else signed(difference, 4)


def amount_words(difference: float, quantity: Quantity) -> str:
    """A difference whose direction the sentence says."""
    return signed_words(difference, quantity).lstrip("+")


def unit_words(quantity: Quantity) -> str:
    """What follows a difference."""
    return " points" if quantity == "accuracy" else " nats"
