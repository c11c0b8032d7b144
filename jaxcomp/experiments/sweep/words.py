"""How claims speak of variants and numbers: losses in nats, scores as their task writes them."""

from jaxcomp.evaluation.statistics import Interval
from jaxcomp.experiments.sweep.candidates import ALLOCATION, JudgedVariant, is_penalised
from jaxcomp.experiments.sweep.importance import importance_name
from jaxcomp.experiments.sweep.methods import METHODS
from jaxcomp.experiments.sweep.task_words import CLASSIFICATION, LOSS, Quantity, TaskWords
from jaxcomp.experiments.verdicts import percent, signed


def describe(variant: JudgedVariant, words: TaskWords = CLASSIFICATION) -> str:
    """Say what a variant is; a method or a control of the user's by the name that it has."""
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
        words.control: words.control_words,
        "last_layer_scaled": f"the last layer's weights times {parameter:g}",
        "weights_clipped": f"weights clipped at quantile {parameter:g}",
        "gaussian_noise": f"Gaussian noise as large as the error of K-means, K = {clusters}",
        "early_stopping": "early stopping",
        "dropout": "training with dropout",
        "dropout_early_stopping": "training with dropout, stopped early",
    }
    if method in described:
        return described[method]
    if about["kind"] == "control":
        return method.replace("_", " ")
    weighted = importance_name(str(about["importance"])).label
    weighted = "" if about["importance"] == "none" else f", weighted by {weighted}"
    return f"{method} at {parameter:g}{weighted}" if parameter == parameter else variant.name


def relative_words(relative: float | None, quantity: Quantity, words: TaskWords) -> str:
    """An effect as a share of the original's loss or error rate."""
    if relative is None:
        return ""
    if quantity.is_higher_better:
        return f", {quantity.deficit} {-100 * relative:+.1f} %"
    told = f" of the original {quantity.label}"
    if quantity.name != words.score.name and words.loss_scale is not None:
        told = words.relative_to
    return f", {100 * relative:+.1f} %{told}"


def change_words(interval: Interval, quantity: Quantity, confidence: float) -> str:
    """An effect with its interval."""
    return (
        f"{signed_words(interval.estimate, quantity)}{quantity.difference_unit}, "
        f"{percent(confidence)} interval {ends_words(interval, quantity)}"
    )


def ends_words(interval: Interval, quantity: Quantity = LOSS) -> str:
    """An interval."""
    return f"{signed_words(interval.low, quantity)} to {signed_words(interval.high, quantity)}"


def value_words(value: float, quantity: Quantity) -> str:
    """A mean."""
    return f"{quantity.shown(value)}{quantity.unit}"


def signed_words(difference: float, quantity: Quantity) -> str:
    """A difference with its sign."""
    if quantity.decimals is None:
        return f"{quantity.factor * difference:+.3g}" if difference else "0"
    return signed(quantity.factor * difference, quantity.decimals)


def amount_words(difference: float, quantity: Quantity) -> str:
    """A difference whose direction the sentence says."""
    return signed_words(difference, quantity).lstrip("+")
