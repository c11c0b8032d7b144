import numpy as np
import pytest
from scipy import stats

from jaxcomp.evaluation.statistics import crossed_mean, holm, model_interval


def variance_by_sums_of_squares(table):
    """The unbiased variance of the mean, from the definitions, variant by variant."""
    num_models, num_examples = table.shape
    grand = table.mean()
    rows = num_examples * sum((row.mean() - grand) ** 2 for row in table) / (num_models - 1)
    columns = num_models * sum((c.mean() - grand) ** 2 for c in table.T) / (num_examples - 1)
    residual = sum(
        (table[m, n] - table[m].mean() - table[:, n].mean() + grand) ** 2
        for m in range(num_models)
        for n in range(num_examples)
    ) / ((num_models - 1) * (num_examples - 1))
    return rows, columns, residual


def test_agrees_with_the_definition():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((5, 1)) + rng.standard_normal(30) + rng.standard_normal((5, 30))
    rows, columns, residual = variance_by_sums_of_squares(table)
    assert rows > residual
    assert columns > residual
    combined = rows + columns - residual
    df = min(4 * combined / rows, 29 * combined / columns)
    found = crossed_mean(table, confidence=0.9)
    expected = stats.t(df, loc=table.mean(), scale=np.sqrt(combined / table.size))
    np.testing.assert_allclose((found.low, found.high), expected.interval(0.9))
    np.testing.assert_allclose(found.degrees_of_freedom, df)
    p_value = 2 * stats.t.sf(abs(table.mean()) / np.sqrt(combined / table.size), df)
    np.testing.assert_allclose(found.p_value, p_value)
    assert found.estimate == table.mean()
    assert (found.num_models, found.num_examples) == (5, 30)


@pytest.mark.parametrize("seed", range(20))
def test_never_below_the_larger_of_the_two_variances(seed):
    # Pure noise: in half of the tables a naive variance would fall below the examples' own.
    table = np.random.default_rng(seed).standard_normal((4, 10))
    rows, columns, _ = variance_by_sums_of_squares(table)
    found = crossed_mean(table)
    half_width = stats.t.ppf(0.975, found.degrees_of_freedom) * np.sqrt(max(rows, columns) / 40)
    assert (found.high - found.low) / 2 >= half_width * (1 - 1e-12)


# Variances of networks, examples and residual; then how often 95 % intervals may miss.
@pytest.mark.parametrize("num_models", [5, 20])
@pytest.mark.parametrize(
    "deviations", [(0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (0.05, 1.0, 1.0), (0.3, 1.0, 1.0)]
)
def test_covers_the_true_mean(num_models, deviations):
    num_draws, num_examples, mean = 1000, 500, 0.3
    model_deviation, example_deviation, residual_deviation = deviations
    rng = np.random.default_rng(num_models)
    num_missed = 0
    for _ in range(num_draws):
        table = residual_deviation * rng.standard_normal((num_models, num_examples))
        table += mean + model_deviation * rng.standard_normal((num_models, 1))
        table += example_deviation * rng.standard_normal(num_examples)
        found = crossed_mean(table)
        num_missed += not found.low <= mean <= found.high
    assert num_missed / num_draws <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / num_draws)


@pytest.mark.parametrize("num_models", [2, 3])
def test_few_models_are_not_trusted_when_they_agree_by_luck(num_models):
    rng = np.random.default_rng(0)
    num_missed = 0
    for _ in range(500):
        table = rng.standard_normal((num_models, 200))
        found = crossed_mean(table + 0.3 * rng.standard_normal((num_models, 1)))
        assert found.degrees_of_freedom <= num_models - 1
        num_missed += not found.low <= 0 <= found.high
    assert num_missed / 500 <= 0.05


@pytest.mark.parametrize("num_models", [4, 6])
def test_a_variance_between_models_that_is_small_by_luck_is_not_trusted(num_models):
    # Where Satterthwaite's degrees of freedom are worst: 6.5 % of the intervals of 4 models miss.
    num_draws, num_examples = 4000, 60
    rng = np.random.default_rng(num_models)
    model_deviation = np.sqrt(4 * (num_models + 1) / num_examples)
    num_missed = 0
    for _ in range(num_draws):
        table = rng.standard_normal((num_models, num_examples)) + rng.standard_normal(num_examples)
        table += model_deviation * rng.standard_normal((num_models, 1))
        found = crossed_mean(table)
        num_missed += not found.low <= 0 <= found.high
    assert num_missed / num_draws <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / num_draws)


def test_p_value_and_interval_agree():
    rng = np.random.default_rng(1)
    for shift in np.linspace(0, 0.3, 30):
        found = crossed_mean(shift + rng.standard_normal((6, 100)))
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)


def test_scale_sign_and_order():
    rng = np.random.default_rng(2)
    table = 0.1 + rng.standard_normal((5, 50))
    found, mirrored = crossed_mean(table), crossed_mean(-1e6 * table[::-1, ::-1])
    np.testing.assert_allclose(mirrored.estimate, -1e6 * found.estimate)
    np.testing.assert_allclose((mirrored.low, mirrored.high), (-1e6 * found.high, -1e6 * found.low))
    np.testing.assert_allclose(mirrored.p_value, found.p_value)


def test_one_model_is_a_statement_about_examples():
    values = 0.2 + np.random.default_rng(3).standard_normal(100)
    found = crossed_mean(values[None])
    expected = stats.ttest_1samp(values, 0)
    np.testing.assert_allclose(found.p_value, expected.pvalue)
    np.testing.assert_allclose(found[1:3], expected.confidence_interval(0.95))
    assert found.degrees_of_freedom == 99
    assert found.num_models == 1


@pytest.mark.parametrize("num_models", [1, 4])
def test_equal_differences(num_models):
    found = crossed_mean(np.zeros((num_models, 10), bool))
    assert (found.estimate, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    found = crossed_mean(np.full((num_models, 10), -0.25))
    assert (found.estimate, found.low, found.high, found.p_value) == (-0.25, -0.25, -0.25, 0)


def test_model_interval_is_the_t_interval():
    values = 0.5 + np.random.default_rng(4).standard_normal(7)
    found, expected = model_interval(values), stats.ttest_1samp(values, 0)
    np.testing.assert_allclose(found[1:3], expected.confidence_interval(0.95))
    np.testing.assert_allclose(found.p_value, expected.pvalue)
    assert found[4:] == (6, 7, 0)


def test_model_interval_of_one_model_is_unknown():
    found = model_interval([0.5])
    assert found.estimate == 0.5
    assert np.isnan((found.low, found.high, found.p_value)).all()
    assert found.num_models == 1


def test_holm_of_a_published_example():
    # The p-values of Holm's procedure as given by R: p.adjust(p, "holm").
    p_values = [0.01, 0.02, 0.03, 0.04, 0.05]
    np.testing.assert_allclose(holm(p_values), [0.05, 0.08, 0.09, 0.09, 0.09])
    np.testing.assert_allclose(holm(p_values[::-1]), [0.09, 0.09, 0.09, 0.08, 0.05])
    np.testing.assert_allclose(holm([0.6, 0.001, 0.7]), [1.0, 0.003, 1.0])
    assert holm([]).shape == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_holm_rejects_what_its_step_down_rejects(seed):
    p_values = np.random.default_rng(seed).random(8) ** 4
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for step, index in enumerate(np.argsort(p_values)):
            if p_values[index] > level / (8 - step):
                break
            rejected.add(int(index))
        assert set(np.flatnonzero(holm(p_values) <= level).tolist()) == rejected


def test_refused():
    with pytest.raises(ValueError, match=r"at least 1 model and 2 examples, got \(3, 1\)"):
        crossed_mean(np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"shape \(models, examples\)"):
        crossed_mean(np.zeros(3))
    with pytest.raises(ValueError, match="differences must be finite, got 2 values"):
        crossed_mean([[np.nan, np.inf, 0.0]])
    with pytest.raises(ValueError, match=r"one number per model, got shape \(2, 2\)"):
        model_interval(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="values must be finite"):
        model_interval([np.nan])
    for confidence in (0.0, 1.0, 95):
        with pytest.raises(ValueError, match="confidence must lie strictly between 0 and 1"):
            crossed_mean(np.zeros((2, 3)), confidence=confidence)
        with pytest.raises(ValueError, match="confidence must lie strictly between 0 and 1"):
            model_interval([1.0], confidence=confidence)
    with pytest.raises(ValueError, match=r"flat list of numbers, got shape \(1, 1\)"):
        holm([[0.1]])
    for p_value in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="p_values must lie between 0 and 1"):
            holm([0.5, p_value])
