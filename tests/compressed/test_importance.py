"""Hessian blocks as the importance of vectors, against sums in NumPy."""

import jax
import numpy as np
import pytest
from tree_problems import weights

from jaxcomp import compress, curve
from jaxcomp.curvature import CurvaturePolicy, DiagonalEstimate
from jaxcomp.quantizers import KMeans, Vector

SHAPE = (12, 8)


def blocks(number: int = 48, size: int = 2, *, is_diagonal: bool = False) -> np.ndarray:
    factors = np.random.default_rng(3).standard_normal((number, size, size)).astype(np.float32)
    found = factors @ np.swapaxes(factors, 1, 2)
    return found * np.eye(size, dtype=np.float32) if is_diagonal else found


def quadratic_form(before, after, h) -> float:
    error = (np.asarray(after, np.float64) - np.asarray(before, np.float64)).reshape(len(h), -1)
    return float(np.einsum("vi,vij,vj->", error, h.astype(np.float64), error))


@pytest.mark.parametrize("unit", [1.0, 1e-25, 1e25])
def test_distortion_is_the_quadratic_form_and_lower_than_without(unit):
    params, h = {"kernel": weights()}, blocks()
    importance = {"kernel": jax.device_put(h * np.float32(unit))}
    tree = compress(params, Vector(6), importance=importance)
    (layer,) = tree.report()
    found = quadratic_form(params["kernel"], tree.params()["kernel"], h)
    assert layer.distortion == pytest.approx(found * unit, rel=1e-4)
    # Blocks that say nothing, for which nothing new is compiled.
    ones = {"kernel": np.tile(np.eye(2, dtype=np.float32), (48, 1, 1))}
    plain = compress(params, Vector(6), importance=ones).params()["kernel"]
    assert found < quadratic_form(params["kernel"], plain, h)
    promised = curve(params, Vector(6), importance=importance)
    assert promised["kernel"].distortion[0] == pytest.approx(layer.distortion, rel=1e-4)


@pytest.mark.slow
def test_diagonal_blocks_are_importances_of_weights():
    h = blocks(is_diagonal=True)
    diagonal = np.einsum("vii->vi", h).reshape(SHAPE)
    params = {"kernel": weights()}
    one = compress(params, Vector(6), importance={"kernel": h})
    other = compress(params, Vector(6), importance={"kernel": diagonal})
    np.testing.assert_allclose(one.params()["kernel"], other.params()["kernel"], rtol=1e-5)


def test_estimates_go_through_the_policy_for_blocks():
    signed = blocks() - 0.3 * np.eye(2, dtype=np.float32)
    estimate = DiagonalEstimate({"kernel": signed}, {"kernel": np.zeros_like(signed)})
    raised = CurvaturePolicy().apply_blocks(estimate).importance
    params = {"kernel": weights()}
    one = compress(params, Vector(6), importance=estimate)
    other = compress(params, Vector(6), importance=raised)
    np.testing.assert_array_equal(one.params()["kernel"], other.params()["kernel"])


def test_layers_of_a_stack_have_their_own_blocks():
    params, h = {"layers": {"kernel": weights(0, (2, *SHAPE))}}, blocks(96)
    tree = compress(params, Vector(6), importance={"layers": {"kernel": h}}, stacked="layers/*")
    found = tree.params()["layers"]["kernel"]
    for number in range(2):
        alone = compress(
            {"kernel": np.asarray(params["layers"]["kernel"])[number]},
            Vector(6),
            importance={"kernel": h[48 * number : 48 * (number + 1)]},
        )
        np.testing.assert_allclose(found[number], alone.params()["kernel"], rtol=1e-5)


@pytest.mark.slow
def test_an_odd_weight_has_a_block_of_its_own():
    params = {"kernel": weights(0, (3, 5))}
    h = blocks(8)
    h[-1, 1, :] = h[-1, :, 1] = 0
    tree = compress(params, Vector(3), importance={"kernel": h})
    error = np.append(np.subtract(tree.params()["kernel"], params["kernel"]), 0).astype(np.float64)
    expected = quadratic_form(np.zeros(16), error, h)
    assert tree.report()[0].distortion == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weigh", ["mean", "floor", "nothing"])
def test_weights_that_no_example_met_are_said_and_weigh_as_stated(weigh):
    h = np.zeros(SHAPE, np.float32)
    h[3], h[7] = 1.0, 3.0
    params = {"embedding": weights(0), "kernel": weights(1)}
    given = {"embedding": h, "kernel": np.ones(SHAPE, np.float32)}
    policy = CurvaturePolicy(zeros="floor" if weigh == "floor" else "mean")
    estimate = given if weigh == "nothing" else DiagonalEstimate(given, given)

    tree = compress(params, KMeans(5), importance=estimate, policy=policy)

    raised = {"mean": h.mean(), "floor": 0.01 * h.mean(), "nothing": 0.0}
    by_hand = given | {"embedding": np.where(h == 0, raised[weigh], h).astype(np.float32)}
    expected = compress(params, KMeans(5), importance=by_hand)
    np.testing.assert_array_equal(tree.codes("embedding"), expected.codes("embedding"))
    embedding, kernel = tree.report()
    assert (embedding.num_unseen, embedding.unseen_weigh) == (80, weigh)
    assert (kernel.num_unseen, kernel.unseen_weigh) == (0, "")
    (line,) = (line for line in str(tree.report()).splitlines() if "importance 0" in line)
    assert line.startswith(
        "importance 0 for over half of the weights (embedding 83.3 %): they weigh"
    )


def test_the_policy_is_checked():
    with pytest.raises(TypeError, match=r"must be a .*CurvaturePolicy.*, got str"):
        compress({"kernel": weights()}, KMeans(3), policy="mean")


def test_bad_blocks_get_one_sentence():
    params = {"kernel": weights()}
    h = blocks()

    vector = Vector(6)

    def refuse(message, method=vector, importance=h, tree=params):
        with pytest.raises(ValueError, match=message):
            compress(tree, method, importance=jax.tree.map(lambda _: importance, tree))

    refuse(r"must have the shape of the weights, \(12, 8\), got \(48, 2, 2\)", KMeans(4))
    refuse(r"\(12, 8\), or of blocks of its vectors, \(32, 3, 3\), got", Vector(6, vector_size=3))
    refuse("symmetric positive semi-definite blocks, got 48 of 48", importance=-h)
    refuse("needs vectors without scales, got scale 'channel'", Vector(6, scale="channel"))
    tied = weights()
    with pytest.raises(ValueError, match="is by blocks, but the leaf is tied to b with"):
        compress(
            {"a": tied, "b": tied}, Vector(6), importance={"a": h, "b": np.ones(SHAPE, np.float32)}
        )
    with pytest.raises(ValueError, match="some reach over the end of a layer"):
        compress(
            {"layers": {"kernel": weights(0, (2, 5, 5))}},
            Vector(6),
            importance={"layers": {"kernel": blocks(25)}},
            stacked="layers/*",
        )
