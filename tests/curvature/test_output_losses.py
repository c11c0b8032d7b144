"""Columns of the outputs' Hessian against the dense one, by automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from slow_cases import some_slow

from jaxcomp.curvature import PerPosition
from jaxcomp.curvature.output_losses import checked_loss, output_hessian

pytestmark = pytest.mark.usefixtures("strict_promotion")

SHAPE = (2, 3, 4)  # two axes of positions, four classes
RNG = np.random.default_rng(0)
OUTPUTS = RNG.normal(size=(2, *SHAPE))
LABELS = RNG.integers(0, 4, (2, 2, 3))
WEIGHTS = np.array([[[1.0, 0.0, 0.5], [2.0, 1.0, 0.0]], np.zeros((2, 3))])


def logsumexp_loss(outputs, weights):
    return jnp.sum(weights * jax.nn.logsumexp(outputs, axis=-1))


def squares_loss(outputs, weights):
    return jnp.sum(weights * jnp.sum(outputs * outputs, axis=-1))


def coupled_loss(outputs, target):
    """A convex function that links all outputs of an example."""
    return jax.nn.logsumexp(outputs * target[..., None])


def pixel_loss(outputs, target):
    """Cross-entropy of Bernoulli variables: nothing is linked."""
    return jnp.sum(jax.nn.softplus(outputs) - target[..., None] * outputs)


def position_loss(outputs, label):
    return jax.nn.logsumexp(outputs) + jnp.sum(
        jnp.where(jnp.arange(4) == label, 0.1, 0) * outputs**2
    )


def positions_loss(outputs, labels):
    """The same for all positions, whose weight is one over their number."""
    return jnp.mean(jax.vmap(position_loss)(outputs.reshape(-1, 4), labels.reshape(-1)))


# Name: loss, reduction, weights as the target; and the loss of one example with them.
CASES = {
    "softmax": ("softmax_cross_entropy", "sum", None, logsumexp_loss),
    "softmax, weighted": ("softmax_cross_entropy", "sum", WEIGHTS, logsumexp_loss),
    "softmax, own mean": ("softmax_cross_entropy", "example_mean", WEIGHTS, logsumexp_loss),
    "squares": ("squared_error", "mean", WEIGHTS, squares_loss),
    "positions found": (logsumexp_loss, "mean", WEIGHTS, None),
    "pixels found": (pixel_loss, "mean", WEIGHTS, None),
    "all linked": (coupled_loss, "mean", WEIGHTS, None),
    "positions declared": (PerPosition(position_loss), "example_mean", LABELS, positions_loss),
}


def hessian_of(name):
    """The Hessian found, and the targets as they are passed."""
    loss, reduction, target, _ = CASES[name]
    if isinstance(loss, str):
        target = LABELS if target is None else (LABELS, target)
    targets = target
    outputs = jax.ShapeDtypeStruct(SHAPE, jnp.float64)
    return output_hessian(checked_loss(loss, reduction), outputs, targets, is_exact=True), targets


def dense_hessian(name):
    """The dense Hessian of every example."""
    loss, reduction, target, oracle = CASES[name]
    weights = np.ones(LABELS.shape) if target is None else target
    if isinstance(loss, str) and reduction == "example_mean":
        weights = weights / np.maximum(weights.sum((1, 2), keepdims=True), 1e-300)

    def one(o, w):
        return (loss if oracle is None else oracle)(o.reshape(SHAPE), w)

    with jax.numpy_rank_promotion("allow"):
        dense = jax.jit(jax.vmap(jax.hessian(one)))(OUTPUTS.reshape(2, -1), weights)
    return np.asarray(dense)


@pytest.mark.parametrize(
    "name", some_slow(CASES, "softmax", "softmax, weighted", "pixels found", "positions found")
)
def test_columns_multiply_to_the_dense_hessian(name, x64):
    hessian, targets = hessian_of(name)

    @jax.jit
    def all_columns(outputs):
        columns = hessian.exact(outputs, targets)
        assert columns.num_columns == 24
        return jax.lax.map(columns.at, jnp.arange(24, dtype=jnp.int32))

    S = np.asarray(all_columns(OUTPUTS)).reshape(24, 2, -1)
    products = np.einsum("cei,cej->eij", S, S)
    np.testing.assert_allclose(products, dense_hessian(name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    some_slow(["softmax, own mean", "squares", "positions found", "all linked"], "all linked"),
)
def test_drawn_columns_have_the_dense_hessian_as_their_mean(name, x64):
    hessian, targets = hessian_of(name)
    outputs = OUTPUTS

    def products(key):
        drawn = hessian.drawn(outputs, targets, key, jnp.arange(1), jnp.arange(2))
        column = drawn.at(jnp.int32(0))
        flat = column.reshape(2, -1)
        return flat[:, :, None] * flat[:, None, :]

    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = np.asarray(jax.jit(lambda keys: jax.lax.map(products, keys))(keys))
    error = drawn.std(axis=0) / np.sqrt(len(drawn))
    difference = drawn.mean(axis=0) - dense_hessian(name)
    # Products that are the same in every sample have no error but rounding.
    is_random = error > 1e-12
    np.testing.assert_allclose(difference[~is_random], 0.0, atol=1e-9)
    z = difference[is_random] / error[is_random]
    assert 0.5 < np.mean(z**2) < 1.7
    assert np.max(np.abs(z)) < 5


def test_blocks_are_no_larger_than_what_is_linked(x64):
    sizes = {name: hessian_of(name)[0].block_size for name in CASES}
    assert {sizes[name] for name in CASES if "softmax" in name or "positions" in name} == {4}
    assert (sizes["pixels found"], sizes["squares"], sizes["all linked"]) == (1, 4, 24)


@pytest.mark.parametrize(
    ("reduction", "targets", "expected"),
    [
        ("mean", LABELS, 12),
        ("mean", (LABELS, WEIGHTS), 4.5),
        ("mean", [LABELS, WEIGHTS > 0], 4),
        ("example_mean", (LABELS, WEIGHTS), 2),
        ("sum", (LABELS, WEIGHTS), 2),
    ],
)
def test_what_the_mean_is_over(reduction, targets, expected):
    loss = checked_loss("softmax_cross_entropy", reduction)
    assert float(loss.total_weight(SHAPE, targets, 2)) == expected


def test_a_function_of_an_example_counts_examples_and_keeps_its_arrays_traced():
    loss = checked_loss(Partial(lambda scale, o, t: scale * jnp.sum(o**2), jnp.float32(2)))
    assert float(loss.total_weight(SHAPE, (LABELS, WEIGHTS), 2)) == 2
    assert len(jax.tree.leaves(loss)) == 1


def test_many_columns_and_dense_matrices_are_refused_with_the_number():
    outputs = jax.ShapeDtypeStruct((16, 128), jnp.float32)
    labels = np.zeros((2, 16), np.int32)

    def find(loss, *, is_exact, **options):
        return output_hessian(checked_loss(loss, **options), outputs, labels, is_exact=is_exact)

    with pytest.raises(ValueError, match=r"2,048 backward .* 16 x 128 outputs.*num_label_samples"):
        find("softmax_cross_entropy", is_exact=True)
    assert find("softmax_cross_entropy", is_exact=True, max_columns=2048).num_held < 10_000
    assert find("softmax_cross_entropy", is_exact=False).num_held < 10_000

    def linked(outputs, labels):
        return jnp.sum(outputs) ** 2

    with pytest.raises(ValueError, match=r"links 2,048 of the 2,048 outputs .*PerPosition"):
        find(linked, is_exact=False)
    assert find(linked, is_exact=False, max_columns=2048).block_size == 2048
    with pytest.raises(ValueError, match=r"links 128 of the 2,048 .*=100: pass as loss its name"):
        find(PerPosition(lambda o, t: jnp.sum(o) ** 2), is_exact=False, max_columns=100)


def test_bad_input_is_named():
    outputs = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    labels = np.zeros((2, 3), np.int32)

    def find(loss, targets=labels, outputs=outputs, **options):
        return output_hessian(checked_loss(loss, **options), outputs, targets, is_exact=True)

    with pytest.raises(ValueError, match="reduction must be one of mean, example_mean, sum, got"):
        find("squared_error", reduction="max")
    with pytest.raises(ValueError, match="reduction='sum' is for losses that are known position"):
        find(lambda o, t: jnp.sum(o), reduction="sum")
    with pytest.raises(
        ValueError, match=r"weights need the shape .*\('batch', 3\), got \('batch',"
    ):
        find("squared_error", (labels, np.ones(2, np.float32)))
    with pytest.raises(ValueError, match=r"need the axes \('batch', 3\) of the outputs first"):
        find(PerPosition(position_loss), np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match=r"scalar for one position, got the shape \(4,\)"):
        find(PerPosition(lambda o, t: o))
    with pytest.raises(ValueError, match=r"scalar for one example, got the shape \(3, 4\)"):
        find(lambda o, t: o)
    with pytest.raises(ValueError, match=r"needs outputs \(batch, ..., classes\)"):
        find("softmax_cross_entropy", outputs=jax.ShapeDtypeStruct((), jnp.float32))
    with pytest.raises(TypeError, match="loss must be a function"):
        checked_loss(PerPosition(3))
