"""A random network: a Gaussian posterior, what it costs, and the error of its draws."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxcomp import bounds
from jaxcomp.certificates.sample import Classifier, Sample
from jaxcomp.checkpoints import open_checkpoint
from jaxcomp.long_call import LongCall
from jaxcomp.numerics.host import as_array
from jaxcomp.storage import PathLike
from jaxcomp.trees.paths import leaves_by_path, replace_leaves, shorten
from jaxcomp.types import Params, PRNGKey

# Examples that a draw is evaluated on, if there are more: chosen anew for each, so that the draws'
# mean error is unbiased, and each costs little.
_EXAMPLES_OF_A_DRAW = 1_000
# Draws of one call: after each it is told how far it is.
_DRAWS_AT_ONCE = 50


class Posterior(NamedTuple):
    """Independent Gaussian weights, `N(mean, exp(log_std)^2)`.

    Attributes:
        mean: tree of weights, float32.
        log_std: of the same structure, of the shapes of `mean`.
    """

    mean: Params
    log_std: Params


def read_posterior(posterior: PathLike | Any, like: Params | None = None) -> Posterior:
    """Return a posterior from a file, a pair of trees, or a dict of them.

    Args:
        posterior: `(mean, log_std)`, `{"mean": ..., "log_std": ...}`, or the path of a checkpoint
            with an array `mean.NAME` and an array `log_std.NAME` for each NAME (or with `/`).
        like: a tree whose structure both take over; None for a file gives dicts by NAME.

    Raises:
        ValueError: if there is no log_std, it is of another structure or shape, or not finite.
        OSError: if the file cannot be read.
    """
    if isinstance(posterior, str | Path):
        with open_checkpoint(posterior) as checkpoint:
            named = {path: np.array(one.read()) for path, one in checkpoint.tensors.items()}
        posterior = {}
        for part in ("mean", "log_std"):
            found = {
                path[len(part) + 1 :]: values
                for path, values in named.items()
                if path.startswith((f"{part}.", f"{part}/"))
            }
            if found:
                posterior[part] = found
    elif isinstance(posterior, tuple | list) and len(posterior) == 2:
        posterior = dict(zip(("mean", "log_std"), posterior, strict=True))
    if not isinstance(posterior, dict) or posterior.get("mean") is None:
        raise ValueError(
            "the posterior has no mean; give (mean, log_std), two trees of weights, or a file with "
            "arrays mean.NAME and log_std.NAME."
        )
    if posterior.get("log_std") is None:
        raise ValueError(
            "the posterior has no log_std, without which it has no variance; give the logarithm of "
            "the standard deviation of each weight, in a file as log_std.NAME."
        )
    mean, spread = (
        {path: np.asarray(leaf, np.float32) for path, leaf in leaves_by_path(tree).items()}
        for tree in (posterior["mean"], posterior["log_std"])
    )
    if mean.keys() != spread.keys():
        raise ValueError(
            f"mean and log_std of the posterior have other arrays, {shorten(mean)} and "
            f"{shorten(spread)}; give one log_std for each mean."
        )
    for path, values in mean.items():
        if np.shape(values) != np.shape(spread[path]):
            raise ValueError(
                f"log_std of {path!r} has the shape {np.shape(spread[path])}, its mean "
                f"{np.shape(values)}; give one number for each weight."
            )
        if not np.all(np.isfinite(spread[path])) or not np.all(np.isfinite(values)):
            raise ValueError(
                f"the posterior of {path!r} has a mean or log_std that is not finite; a weight "
                "without variance has no bound: give it a small one."
            )
    tree = posterior["mean"] if like is None else like
    return Posterior(replace_leaves(tree, mean), replace_leaves(tree, spread))


def complexity_of(posterior: Posterior, prior_mean: Params | None) -> bounds.GaussianComplexity:
    """Return what the posterior costs against a Gaussian whose scale is chosen and charged.

    Args:
        posterior: of the weights.
        prior_mean: fixed before the examples; None for 0.

    Raises:
        ValueError: if the prior has other arrays.
    """
    mean, log_std = (leaves_by_path(tree) for tree in posterior)
    centre: Any = 0.0
    if prior_mean is not None:
        leaves = leaves_by_path(prior_mean)
        other = [p for p in mean if p not in leaves or np.shape(leaves[p]) != np.shape(mean[p])]
        if other:
            raise ValueError(
                f"the prior has no {shorten(other)} of the posterior's shape; give the network "
                "that the posterior is centred on."
            )
        centre = _flat([leaves[path] for path in mean])
    deviation: Any = np.exp(_flat([log_std[path] for path in mean]))
    return bounds.gaussian_complexity(_flat(list(mean.values())), deviation, prior_mean=centre)


def _flat(leaves: list[Any]) -> Any:
    """Return arrays as one, in float64."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])


def error_of_draws(
    classifier: Classifier, posterior: Posterior, sample: Sample, *, num_draws: int, key: PRNGKey
) -> float:
    """Return the mean error of independent draws of the network.

    Each is evaluated on all examples, or where these are many on some of its own.

    Args:
        classifier: of weights and inputs.
        posterior: of the weights.
        sample: labelled examples.
        num_draws: m.
        key: consumed here.
    """
    mean, log_std = (jax.tree.map(as_array, tree) for tree in posterior)
    number = min(len(sample), _EXAMPLES_OF_A_DRAW)
    inputs, labels = as_array(sample.inputs), as_array(sample.labels)
    keys, total = jax.random.split(key, num_draws), 0
    with LongCall("evaluating draws of the network", num_draws) as report:
        for start in range(0, num_draws, _DRAWS_AT_ONCE):
            report(start, num_draws, "")
            some = keys[start : start + _DRAWS_AT_ONCE]
            errors = _errors_of_draws(
                mean, log_std, inputs, labels, some, classifier=classifier, number=number
            )
            total += int(np.sum(np.asarray(errors, np.int64)))
    return total / (num_draws * number)


@partial(jax.jit, static_argnames=("classifier", "number"))
def _errors_of_draws(
    mean: Params,
    log_std: Params,
    inputs: Array,
    labels: Array,
    keys: Array,
    *,
    classifier: Classifier,
    number: int,
) -> Array:
    def errors(key: PRNGKey) -> Array:
        of_weights, of_examples = jax.random.split(key)
        leaves, structure = jax.tree.flatten(mean)
        own = structure.unflatten(jax.random.split(of_weights, len(leaves)))
        params = jax.tree.map(
            lambda m, s, k: m + jnp.exp(s) * jax.random.normal(k, m.shape, m.dtype),
            mean,
            log_std,
            own,
        )
        chosen = jnp.arange(number)
        if number < len(inputs):
            chosen = jax.random.choice(of_examples, len(inputs), (number,), replace=False)
        return jnp.sum(classifier.classes_of(params, inputs[chosen]) != labels[chosen])

    return lax.map(errors, keys)
