"""What Adam has learnt about the curvature: its second moments, as importances of weights.

Adam divides by the root of a running mean of squared gradients. That root is a stand-in for the
diagonal of the Hessian and comes free with training, but it has the unit of a gradient, grows as
the batches shrink, and is not bias-corrected in optax's state: only its ratios within a layer
mean anything.
"""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxcomp.curvature.estimate import DiagonalEstimate, diagonal_dtype
from jaxcomp.numerics.transformations import always_compiled


@always_compiled
def adam_second_moments(opt_state: Any) -> DiagonalEstimate:
    """Take the importances of weights from the state of optax's Adam.

    An entry is `sqrt(nu_hat)`, divided by its mean over the leaf, where `nu_hat = nu/(1 - b2^t)`
    is the bias-corrected second moment after t steps. The correction is the same number for all
    entries, so it drops out with the normalisation, and b2 need not be known. Pure, and `jax.vmap`
    takes it over states of many models.

    Args:
        opt_state: state of an optax transformation that holds one state of Adam (`adam`, `adamw`,
            `nadam`, `lamb`...), at any depth: in a chain, in `inject_hyperparams`, in `MultiSteps`,
            masked.

    Returns:
        `mean` structured like the weights (without those that a mask took from Adam), float32 or
        float64, of mean one within a leaf, hence without unit; a leaf whose gradients were always
        zero is zero. `standard_error` is zero: nothing is drawn. Values that are not finite pass
        through: see `check_finite`.

    Raises:
        ValueError: if no state of Adam is found, or several are, or it has not made a step, or it
            is stacked over models.

    Source: Kingma, Ba (2015), Algorithm 1, arXiv:1412.6980.
    """
    # Imported here, for `import jaxcomp` does without optax.
    from optax import ScaleByAdamState

    def is_adam(node: Any) -> bool:
        return isinstance(node, ScaleByAdamState)

    with_paths, _ = jax.tree_util.tree_flatten_with_path(opt_state, is_leaf=is_adam)
    found = [(path, node) for path, node in with_paths if is_adam(node)]
    if not found:
        raise ValueError(
            "opt_state holds no optax.ScaleByAdamState, so there are no second moments to take; "
            f"got {type(opt_state).__name__}; pass the state of optax.adam or of a chain with it."
        )
    if len(found) > 1:
        places = ", ".join(f"opt_state{jax.tree_util.keystr(path)}" for path, _ in found)
        raise ValueError(
            f"opt_state holds {len(found)} states of Adam, at {places}; pass one of them."
        )
    return _from_state(found[0][1])


def _from_state(state: Any) -> DiagonalEstimate:
    count = jnp.asarray(state.count)
    if count.ndim > 0:
        raise ValueError(
            f"the state of Adam counts steps in an array of shape {count.shape}, as if stacked "
            "over models; take the second moments of one model, or of all with jax.vmap."
        )
    if not isinstance(count, jax.core.Tracer) and np.asarray(count) == 0:
        raise ValueError("Adam has not made a step yet, so its second moments are empty; train.")
    mean = jax.tree.map(_normalised_root, state.nu)
    return DiagonalEstimate(mean, jax.tree.map(jnp.zeros_like, mean))


def _normalised_root(nu: jax.Array) -> jax.Array:
    """Divide by the largest entry before the root's mean is taken: no unit, no underflow."""
    nu = jnp.asarray(nu).astype(diagonal_dtype(jnp.result_type(nu)))
    largest = jnp.max(nu, initial=0.0)
    root = jnp.sqrt(nu / jnp.where(largest > 0, largest, jnp.ones_like(largest)))
    mean = jnp.mean(root) if root.size else jnp.ones((), root.dtype)
    return root / jnp.where(mean > 0, mean, jnp.ones_like(mean))
