import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from constriction import stream

from jaxcomp import coding
from jaxcomp.coding import Gaussian, Laplace, ScaleMixture, SpikeAndSlab
from jaxcomp.coding.ans import pop_cells, push_cells
from jaxcomp.coding.tables import MAX_INDEX, cell_table

NUM_WEIGHTS = 20_000


def sample(family):
    rng = np.random.default_rng(0)
    draws = {
        Gaussian: lambda: rng.normal(0, 0.05, NUM_WEIGHTS),
        Laplace: lambda: rng.laplace(0, 0.05, NUM_WEIGHTS),
        SpikeAndSlab: lambda: rng.normal(0, 0.05, NUM_WEIGHTS) * (rng.random(NUM_WEIGHTS) < 0.2),
        ScaleMixture: lambda: rng.normal(0, 1, NUM_WEIGHTS) * rng.choice([0.01, 0.2], NUM_WEIGHTS),
    }
    return draws[family]().astype(np.float32)


@pytest.mark.parametrize("family", [Gaussian, Laplace, SpikeAndSlab, ScaleMixture])
def test_encoded_length_is_the_ideal_one_and_decoding_is_exact(family):
    weights = sample(family)
    for step in (0.05, 0.003, 1e-5):
        prior = coding.fit(weights, family, step=step)
        words = coding.encode(weights, prior, step=step)
        ideal = np.sum(np.asarray(coding.code_length_bits(weights, prior, step=step), np.float64))
        # The header has 5 words, the coder at most 2.
        assert ideal * 0.999 < 32 * len(words) < ideal * 1.01 + 7 * 32
        back = coding.decode(words, prior, like=weights)
        # Cells in float64, centres as a float32 product.
        index = np.rint(weights.astype(np.float64) / float(np.float32(step)))
        np.testing.assert_array_equal(back, index.astype(np.float32) * np.float32(step))
        rounded = coding.quantize(weights, step=step)
        np.testing.assert_array_equal(
            coding.decode(coding.encode(rounded, prior, step=step), prior, like=weights), rounded
        )


def test_trees_with_a_prior_and_a_step_for_each_leaf():
    rng = np.random.default_rng(1)
    tree = {
        "kernel": rng.normal(0, 0.1, (40, 30)).astype(np.float32),
        "bias": rng.normal(0, 1, 30),
        "none": np.zeros((0, 3), np.float32),
    }
    prior = {"kernel": Gaussian(0.1), "bias": Laplace(1.0), "none": Gaussian(1.0)}
    step = {"kernel": 0.02, "bias": 0.25, "none": 1.0}
    like = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in tree.items()}
    back = coding.decode(coding.encode(tree, prior, step=step), prior, like=like)
    for name, leaf in tree.items():
        assert back[name].dtype == leaf.dtype
        own = leaf.dtype.type(step[name])
        np.testing.assert_array_equal(back[name], np.rint(leaf / own) * own)


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    index=st.lists(st.integers(-MAX_INDEX, MAX_INDEX), min_size=1, max_size=8),
    log_step=st.integers(-12, 4),
    prior=st.sampled_from(
        [
            Gaussian(0.3),
            Laplace(2.0),
            SpikeAndSlab(0.99, 1e-3),
            ScaleMixture(np.array([0.5, 0.5]), np.array([1e-3, 9.0])),
        ]
    ),
)
def test_any_cell_comes_back_however_unlikely(index, log_step, prior):
    step = 2.0**log_step
    weights = np.asarray(index) * step
    back = coding.decode(coding.encode(weights, prior, step=step), prior, like=weights)
    np.testing.assert_array_equal(back, weights)


@pytest.mark.parametrize("step", [1e-6, 0.01, 3.0])
def test_coder_uses_exactly_the_integer_table(step):
    table = cell_table(Laplace(0.3), step)
    frequencies = table.frequencies
    assert frequencies.sum() == 2**24
    assert frequencies.min() >= 1
    model = stream.model.Categorical(table.probabilities(), perfect=False)
    cumulative = np.concatenate([[0], np.cumsum(frequencies)[:-1]])
    for symbol in {0, 1, len(frequencies) // 2, len(frequencies) - 2, len(frequencies) - 1}:
        state = 2**32 + 12345
        coder = stream.stack.AnsCoder(np.uint32([12345, 1]))
        assert coder.pos()[1] == state
        coder.encode_reverse(np.int32([symbol]), model)
        expected = (
            (state // frequencies[symbol] << 24) + cumulative[symbol] + state % frequencies[symbol]
        )
        assert coder.pos()[1] == int(expected)


def test_table_matches_the_prior_and_the_coder_spends_what_it_says():
    table = cell_table(Gaussian(1.0), 0.25)
    assert not table.width_bits[:8].any()
    index = np.arange(-12, 13)
    ideal = coding.code_length_bits((index * 0.25).astype(np.float32), Gaussian(1.0), step=0.25)
    # Whole frequencies: an error of one unit in 2^24 p.
    slack = 1.5 * 2.0 ** (np.asarray(ideal, np.float64) - 24) / np.log(2) + 1e-4
    assert np.all(np.abs(table.coded_bits(index) - ideal) < slack)
    fine = cell_table(Gaussian(1.0), 1e-5)
    index = np.random.default_rng(0).normal(0, 1e5, 5000).astype(np.int32)
    coder = stream.stack.AnsCoder()
    push_cells(coder, index, fine)
    assert abs(coder.num_valid_bits() - fine.coded_bits(index).sum()) < 64
    np.testing.assert_array_equal(pop_cells(coder, len(index), fine), index)
    assert coder.is_empty()


def test_streams_do_not_change():
    # Golden bytes: a change here breaks the streams people have stored.
    weights = np.float32([0.5, -0.25, 0.0, 1.0, 30.0])
    words = coding.encode(weights, Gaussian(0.5), step=0.25)
    assert words.tolist() == GOLDEN


GOLDEN = [1245925377, 3944135965, 4238270242, 0, 1070596096, 3024644770, 485056230]


def stream_of(weights=None):
    weights = np.linspace(-1, 1, 200, dtype=np.float32) if weights is None else weights
    return weights, coding.encode(weights, Gaussian(0.5), step=0.01)


def test_any_damage_is_an_error():
    weights, words = stream_of()
    rng = np.random.default_rng(0)
    for place in range(len(words)):
        damaged = words.copy()
        damaged[place] ^= np.uint32(1 << rng.integers(32))
        with pytest.raises(ValueError, match=r"cut or altered|another one"):
            coding.decode(damaged, Gaussian(0.5), like=weights)
    for length in range(len(words)):
        with pytest.raises(ValueError, match=r"cut or altered|another one"):
            coding.decode(words[:length], Gaussian(0.5), like=weights)


def test_wrong_prior_or_shapes_are_an_error():
    weights, words = stream_of()
    for prior, like in [
        (Gaussian(0.6), weights),
        (Laplace(0.5), weights),
        (Gaussian(0.5), weights[1:]),
        (Gaussian(0.5), np.zeros(201, np.float32)),
    ]:
        with pytest.raises(ValueError, match="another prior or has weights of other shapes"):
            coding.decode(words, prior, like=like)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: coding.encode(np.float32([1.0]), Gaussian(1.0), step=1e-8),
            ValueError,
            "step must be at least the largest weight / 2.23 = 1.19e-07, got 1e-08",
        ),
        (
            lambda: coding.encode(np.float32([np.inf]), Gaussian(1.0), step=1.0),
            ValueError,
            "weights must be finite",
        ),
        (
            lambda: coding.encode(np.ones(2), Gaussian(1.0), step=np.ones(2)),
            ValueError,
            "step must be one number for each leaf",
        ),
        (
            lambda: coding.encode(np.ones(2), Gaussian(1.0), step=-1.0),
            ValueError,
            "step must be positive",
        ),
        (
            lambda: coding.decode(np.zeros(9), Gaussian(1.0), like=np.ones(2)),
            ValueError,
            "words must be one axis of uint32",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
