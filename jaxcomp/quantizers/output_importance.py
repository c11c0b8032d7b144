"""What the squared error of a layer's outputs counts in the loss.

The Gauss-Newton matrix of the weights that enter output o is E[delta_o^2 x x^T], delta_o the
gradient of the loss in that output. With the mean of the product replaced by a product of means it
is `g_o S`: rounding errors of the layer then raise the loss by `1/2 sum over o of g_o e_o^T S e_o`,
whose S is the same for all outputs.

Source: Martens and Grosse, arXiv:1503.05671, section 3 (the same product of means).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.jit
def output_importance(
    diagonal: Float[Array, "G I O"], second_moments: Float[Array, "G I I"]
) -> Float[Array, "G O"]:
    """Return g from the Gauss-Newton diagonal: the g for which `g_o S` has the same trace.

    That is the mean of delta_o^2 over examples, weighed by |x|^2.

    Args:
        diagonal: of the loss in the weights, laid out as matrices (G, I, O), >= 0, in nats.
        second_moments: S = E[x x^T] (G, I, I) of the layer's inputs.

    Returns:
        g (G, O) >= 0, nats per squared unit of the outputs; 0 in a group without inputs.
    """
    trace = jnp.trace(second_moments, axis1=-2, axis2=-1)[..., None]
    return jnp.sum(diagonal, axis=-2) / jnp.where(trace > 0, trace, 1)
