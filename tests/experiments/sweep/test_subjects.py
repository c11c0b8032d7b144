"""Networks trained elsewhere: of any task, several at once, with methods and controls of a user."""

import functools
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.stats

from jaxcomp.experiments import sweep
from jaxcomp.experiments.sweep import limits, pictures
from jaxcomp.quantizers import RoundToNearest

RNG = np.random.default_rng(0)
SIZE, FEATURES, WIDTH = 64, 8, 3
GRID = functools.partial(
    sweep.Grid,
    num_clusters=(2, 4, 16),  # as in test_experiment.py: one program
    diameter_penalty=0.0,
    baselines=False,
    num_bins=512,
    sensitivity_clusters=(),
)


@pytest.fixture(scope="module", autouse=True)
def simplified():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "save_figures", lambda *_, **__: [])
        patch.setattr(limits, "_NUM_SLOPES", 5)
        patch.setattr(limits, "_GAP_BITS", 0.2)
        yield


def linear(params, inputs):
    return inputs @ params["kernel"]


def least_squares(seed):
    """Data with orthogonal inputs in the training sample, and the solution there."""
    rng = np.random.default_rng(seed)
    orthogonal = np.sqrt(SIZE) * np.linalg.qr(rng.normal(size=(SIZE, FEATURES)))[0]
    truth = np.random.default_rng(9).normal(size=(FEATURES, WIDTH))
    targets = orthogonal @ truth + 0.5 * rng.normal(size=(SIZE, WIDTH))
    solution = orthogonal.T @ targets / SIZE
    return orthogonal.astype(np.float32), targets, {"kernel": solution.astype(np.float32)}


@pytest.fixture(scope="module")
def regression():
    """Two networks, of which the first is the least-squares solution of the training sample."""
    inputs, targets, first = least_squares(0)
    second = {"kernel": first["kernel"] + 0.02 * RNG.normal(size=(FEATURES, WIDTH))}
    second = {"kernel": second["kernel"].astype(np.float32)}

    def sample(number):
        x = RNG.normal(size=(number, FEATURES)).astype(np.float32)
        truth = np.random.default_rng(9).normal(size=(FEATURES, WIDTH))
        return x, x @ truth + 0.5 * RNG.normal(size=(number, WIDTH))

    return [first, second], sweep.Data((inputs, targets), sample(50), sample(70))


def evaluate(networks, data, grid=None):
    grid = GRID() if grid is None else grid
    found = sweep.Networks(linear, networks)
    return sweep.evaluate(found, data, sweep.Regression(), grid, quiet=True)


@pytest.fixture(scope="module")
def both(regression):
    return evaluate(*regression)


def nll(params, part, variance):
    squared = np.mean((np.float64(linear(params, part[0])) - part[1]) ** 2)
    return 0.5 * np.log(2 * np.pi * variance) + squared / (2 * variance), squared


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("variant", ["original", "kmeans/none/K4", "kmeans/gauss_newton/K16"])
def test_the_numbers_of_a_regression_are_those_of_the_closed_form(regression, both, variant, seed):
    networks, data = regression
    row = both.table.set_index(["variant", "model_seed"]).loc[variant, seed]
    params = jax.tree.map(np.asarray, both.params(variant, model_seed=seed))
    variance = nll(params, data.validation, 1.0)[1]
    original = nll(networks[seed], data.validation, 1.0)[1]
    assert row["variance"] == pytest.approx(variance, rel=1e-4)
    for name, part in (("train", data.train), ("test", data.test)):
        raw, squared = nll(params, part, original)
        assert row[f"{name}_loss"] == pytest.approx(raw, rel=1e-4)
        tempered = nll(params, part, variance)[0]
        assert row[f"{name}_loss_tempered"] == pytest.approx(tempered, rel=1e-4)
        column = "squared_error" if name == "test" else "train_squared_error"
        assert row[column] == pytest.approx(squared, rel=1e-4)
    assert np.isnan(row["zero_one_bound"])


def test_the_rise_of_a_quadratic_loss_is_predicted_exactly(both):
    """Orthogonal inputs: the Gauss-Newton matrix is its diagonal, and the loss is quadratic."""
    table = both.table
    rows = table[(table["kind"] == "compressed") & (table["model_seed"] == 0)]
    np.testing.assert_allclose(
        rows["predicted_rise_nats"], rows["measured_rise_nats"], rtol=1e-3, atol=1e-6
    )


def test_shrunken_outputs_are_the_control_of_a_regression(regression, both):
    networks, data = regression
    row = both.table.set_index(["variant", "model_seed"]).loc["shrinkage", 1]
    targets, centre = data.validation[1], data.validation[1].mean(axis=0)
    outputs = [np.float64(linear(networks[1], x)) - centre for x, _ in (data.validation, data.test)]
    factor = np.sum(outputs[0] * (targets - centre)) / np.sum(outputs[0] ** 2)
    error = np.mean((factor * outputs[1] + centre - data.test[1]) ** 2)
    assert row["squared_error"] == pytest.approx(error, rel=1e-4)
    assert both.claims[0].control is not None
    assert np.isnan(row["predicted_rise_nats"])


def test_several_networks_are_each_as_alone(regression, both):
    networks, data = regression
    for seed, params in enumerate(networks):
        alone = evaluate([params], data).table
        together = both.table[both.table["model_seed"] == seed].reset_index(drop=True)
        # Noise is drawn anew for every network.
        alone, together = (t[t["method"] != "gaussian_noise"] for t in (alone, together))
        pd.testing.assert_frame_equal(
            alone.drop(columns="model_seed"), together.drop(columns="model_seed"), check_exact=True
        )


def test_claims_of_several_networks_are_crossed_and_make_a_table(both):
    assert {claim.num_models for claim in both.claims} == {2}
    assert {claim.num_examples for claim in both.claims} == {70}
    names = ["raw loss", "tempered loss", "squared error", "beyond controls"]
    frame = both.claims_frame()
    assert list(frame["name"]) == names
    for row, claim in zip(frame.itertuples(), both.claims, strict=True):
        assert (row.effect, row.p_adjusted, row.verdict) == (
            claim.effect, claim.p_adjusted, claim.verdict,
        )  # fmt: skip
    text = both.report()
    for words in ("in squared error", "with the best variance", "calibrated test loss"):
        assert words.lower() in text.lower()
    for words in ("temperature", "accuracy", "softmax"):
        assert words not in text


def test_pictures_of_a_regression_name_its_quantities(both):
    figure = both.plot()
    titles = [axis.get_title(loc="left") + axis.get_title() for axis in figure.axes]
    texts = " ".join([t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))])
    assert "nats per output" in texts
    assert "Calibrated: calibration taken out" in texts, titles
    details = both.plot_details()
    texts = " ".join([t.get_text() for t in details.findobj(lambda a: hasattr(a, "get_text"))])
    assert "test mean squared error" in texts.lower()
    assert "outputs shrunk" in texts


def next_token(params, inputs):
    return params["embedding"][inputs] @ params["output"]


def test_tokens_behind_a_mask(tmp_path):
    vocabulary, length = 6, 5

    def sample(number):
        inputs = RNG.integers(0, vocabulary, size=(number, length))
        targets = (inputs + 1) % vocabulary
        mask = np.arange(length) < RNG.integers(1, length + 1, size=(number, 1))
        return inputs, np.where(mask, targets, -100), mask

    params = {
        "embedding": RNG.normal(size=(vocabulary, 4)).astype(np.float32),
        "output": RNG.normal(size=(4, vocabulary)).astype(np.float32),
    }
    data = sweep.Data(sample(20), sample(20), sample(30))
    # The embedding stays as it is: an array of NumPy that is indexed by tokens.
    networks, task = sweep.Networks(next_token, [params], select="output"), sweep.Tokens()
    grid = GRID(importance=("gauss_newton", "fisher"))
    result = sweep.evaluate(networks, data, task, grid, out=tmp_path / "run", quiet=True)
    table = result.table.set_index("variant")
    for variant in ("original", "kmeans/gauss_newton/K4"):
        changed = jax.tree.map(np.asarray, result.params(variant))
        inputs, targets, mask = data.test
        logits = np.float64(next_token(changed, inputs))[mask]
        losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(logits)), targets[mask]]
        assert table.loc[variant, "test_loss"] == pytest.approx(losses.mean(), rel=1e-4)
        hits = logits.argmax(-1) == targets[mask]
        assert table.loc[variant, "accuracy"] == pytest.approx(hits.mean(), rel=1e-5)
    assert {claim.num_examples for claim in result.claims} == {30}
    loaded = sweep.SweepResult.load(tmp_path / "run")
    assert loaded.words == task.words
    assert "nats per token" in loaded.report()


@dataclass(frozen=True)
class Poisson(sweep.Task):
    """Counts, and the logarithm of their rate."""

    words: ClassVar[sweep.TaskWords] = sweep.TaskWords(
        name="Poisson regression",
        score=sweep.Quantity("deviation", "mean deviation", decimals=None),
        calibration="rate factor",
        fitted="the best rate factor",
    )

    def loss(self, outputs, targets, calibration):
        rate = jnp.asarray(calibration)[..., None] * jnp.exp(outputs[..., 0])
        return rate - targets * jnp.log(rate) + jax.scipy.special.gammaln(targets + 1.0)

    def score(self, outputs, targets):
        return jnp.abs(jnp.exp(outputs[..., 0]) - targets)

    def calibrate(self, outputs, targets):
        return jnp.mean(targets) / jnp.mean(jnp.exp(outputs[..., 0]), axis=-1)


@pytest.fixture(scope="module")
def poisson(tmp_path_factory):
    """A sweep with a task, a method and controls of the user, and its folder."""
    rng = np.random.default_rng(1)
    kernel = 0.3 * rng.normal(size=(16, 1))  # as many weights as clusters at most

    def sample(number):
        x = rng.normal(size=(number, 16)).astype(np.float32)
        return x, rng.poisson(np.exp(x @ kernel)[:, 0])

    data = sweep.Data(sample(40), sample(40), sample(50))
    networks = [{"kernel": (s * kernel).astype(np.float32)} for s in (1.0, 1.5)]
    out = tmp_path_factory.mktemp("runs") / "poisson"

    def run(**own_controls):
        grid = GRID(
            method=RoundToNearest(3, group_size=4),
            importance="none",
            own_controls=own_controls,
        )
        found = sweep.Networks(linear, networks)
        return sweep.evaluate(found, data, Poisson(), grid, out=out, quiet=True)

    def best_scale(params, validation):
        inputs, counts = validation

        def loss(scale):
            rate = np.exp(scale * np.asarray(linear(params, inputs))[:, 0])
            return np.mean(rate - counts * np.log(rate))

        scale = min(np.linspace(0.5, 1.5, 21), key=loss)
        return {"kernel": np.float32(scale) * params["kernel"]}

    controls = {
        "early_stopping": [{"kernel": 0.5 * own["kernel"]} for own in networks],
        "halved": lambda params: jax.tree.map(lambda leaf: leaf / 2, params),
        "best scale": sweep.FittedControl(best_scale),
    }
    return networks, data, out, run, run(**controls)


def test_a_task_a_method_and_controls_of_the_user(poisson):
    networks, data, out, _, result = poisson
    table = result.table.set_index(["variant", "model_seed"])
    own = "round_to_nearest (group_size=4)/none/3"
    assert set(result.table.loc[result.table["kind"] == "compressed", "variant"]) == {own}
    inputs, counts = data.test
    for seed, params in enumerate(networks):
        rate = np.exp(np.float64(linear(params, inputs))[:, 0])
        expected = -np.mean(scipy.stats.poisson.logpmf(counts, rate))
        assert table.loc[("original", seed), "test_loss"] == pytest.approx(expected, rel=1e-4)
        half = result.params("halved", model_seed=seed)["kernel"]
        np.testing.assert_array_equal(half, params["kernel"] / 2)
        # Three bits: whole numbers up to 3 in each group, in units of a third of the largest.
        groups = np.asarray(result.params(own, model_seed=seed)["kernel"]).reshape(4, 4)
        units = 3 * groups / np.abs(groups).max(axis=1, keepdims=True)
        np.testing.assert_allclose(units, np.round(units), atol=1e-5)
        # Given as a list, and computed: the same weights have the same numbers.
        for column in ("test_loss", "deviation", "rate factor"):
            assert (
                table.loc[("early_stopping", seed), column] == table.loc[("halved", seed), column]
            )
    scaled = result.params("best scale", model_seed=1)["kernel"] / networks[1]["kernel"]
    assert np.ptp(scaled) < 1e-5
    assert scaled[0, 0] < 1
    beyond = result.claims[-1]
    assert beyond.name == "beyond controls"
    assert beyond.control in {"best scale", "halved", "early_stopping"}
    assert "best rate factor for all networks" in beyond.sentence
    loaded = sweep.SweepResult.load(out)
    np.testing.assert_array_equal(
        loaded.params(own, model_seed=1)["kernel"], result.params(own, model_seed=1)["kernel"]
    )
    assert loaded.report() == result.report()
    result.plot_details()


def test_controls_that_do_not_fit_get_one_sentence(poisson):
    _, _, _, run, _ = poisson
    with pytest.raises(ValueError, match="control 'odd' must have the structure of the first netw"):
        run(odd=lambda params: {"other": params["kernel"]})
    with pytest.raises(ValueError, match=r"control 'odd' must be shaped .* kernel is \(1, 16\)"):
        run(odd=lambda params: {"kernel": params["kernel"].T})
    with pytest.raises(ValueError, match="weights of each of the 2 networks, got 1"):
        run(odd=[{}])
    with pytest.raises(ValueError, match=r"belongs to other settings: otherwise"):
        run(halved=lambda params: params)


def test_networks_of_different_kinds_get_one_sentence(regression):
    (first, _), data = regression
    with pytest.raises(ValueError, match="network 1 must have the structure of the first network"):
        evaluate([first, {"weights": first["kernel"]}], data)
    with pytest.raises(ValueError, match=r"network 1 must be shaped .* kernel is \(8, 2\)"):
        evaluate([first, {"kernel": first["kernel"][:, :2]}], data)
    broken = first["kernel"].copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="kernel of network 1 holds 1 weights that are NaN"):
        evaluate([first, {"kernel": broken}], data)
    with pytest.raises(TypeError, match="train labels must be a vector of integers"):
        sweep.evaluate(sweep.Networks(linear, [first]), data)


DEVICES = """
import sys
import jax, numpy as np
from jaxcomp.experiments import sweep
from jaxcomp.experiments.sweep import engine, evaluator, limits

evaluator.MAX_CHUNK_VARIANTS = 4
limits._NUM_SLOPES, limits._GAP_BITS = 5, 0.2
seen = set()
score = engine.Scorer.score
def peek(*own):
    rows = score(*own)
    seen.add(jax.config.jax_default_device)
    return rows
engine.Scorer.score = peek
rng = np.random.default_rng(0)
def sample(n):
    x = rng.normal(size=(n, 8)).astype(np.float32)
    return x, x @ np.ones((8, 3)) + rng.normal(size=(n, 3))
data = sweep.Data(sample(40), sample(40), sample(40))
kernels = [rng.normal(size=(8, 3)).astype(np.float32) for _ in range(2)]
device = jax.devices()[-1]
params = [{"w": jax.device_put(kernel, device)} for kernel in kernels]
networks = sweep.Networks(lambda p, x: x @ p["w"], params)
grid = sweep.Grid(num_clusters=(2, 4, 8), diameter_penalty=0.0, num_bins=512)
result = sweep.evaluate(networks, data, sweep.Regression(), grid, quiet=True)
result.table.to_csv(sys.argv[1], index=False)
assert result.params("kmeans/none/K4")["w"].sharding.device_set == {device}
print(len(seen))
"""


@pytest.mark.slow
def test_eight_devices_give_the_bits_of_one(monkeypatch, tmp_path):
    tables = []
    for number in (1, 8):
        # Devices are counted when JAX starts: a process of its own.
        flags = f"--xla_force_host_platform_device_count={number}"
        monkeypatch.setenv("XLA_FLAGS", f"{flags} --xla_backend_optimization_level=0")
        file = tmp_path / f"{number}.csv"
        done = subprocess.run(
            [sys.executable, "-c", DEVICES, str(file)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert int(done.stdout) == number or 1 < int(done.stdout) <= number
        tables.append(file.read_bytes())
    assert tables[0] == tables[1]
