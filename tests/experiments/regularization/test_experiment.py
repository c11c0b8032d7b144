"""The experiment end to end on a small scale: numbers against NumPy, resume, files, the command."""

import json
import math
import shutil
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp
from typer.testing import CliRunner

from jaxcomp.cli import app
from jaxcomp.curvature import gauss_newton_diagonal
from jaxcomp.experiments import regularization, sweep
from jaxcomp.experiments.networks import training
from jaxcomp.experiments.regularization import (
    RegularizationConfig,
    RegularizationResult,
    experiment,
    figure,
)
from jaxcomp.experiments.regularization.files import write_rounded

CONFIG = RegularizationConfig(
    width=1 / 16,
    num_models=2,
    train_size=80,
    validation_size=60,
    epochs=4,
    batch_size=10,
    l2=(0.001, 0.1),
    l1=(0.02,),
    dropout=(0.2,),
    decimals=(1,),
    num_problems=4000,  # as in test_rounding.py, which compiles the same
)
OPTIONS = [
    "regularization", "--width", "0.0625", "--models", "2", "--train-size", "80",
    "--validation-size", "60", "--epochs", "4", "--batch-size", "10", "--l2", "0.001",
    "--l2", "0.1", "--l1", "0.02", "--dropout", "0.2", "--decimals", "1",
    "--num-problems", "4000",
    "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache, one_format):
    """A run, its result, and what was handed to `measure` for every variant.

    Pictures are drawn by the test of the command, which has the same run.
    """
    seen = {}

    def remember(predict_fn, variables, variant, samples, config):
        seen[variant.id] = (predict_fn, variables, samples)
        return measure(predict_fn, variables, variant, samples, config)

    out = tmp_path_factory.mktemp("runs") / "first"
    measure = experiment.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "measure", remember)
        patch.setattr(figure, "save_figures", lambda *_: seen.setdefault("pictures", []))
        result = regularization.run(CONFIG, out=out, cache_dir=cache, quiet=True)
    return out, result, seen


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(figure, "save_figures", lambda *_: [])


@pytest.fixture(autouse=True, scope="module")
def one_format():
    """Drawing is what small runs spend their time on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure, "FORMATS", ("png",))
        # Groups of one size: what trains them is compiled once.
        patch.setattr(training, "MODELS_PER_GROUP", CONFIG.num_models)
        yield


def logits_of(params, inputs):
    hidden = inputs.reshape(len(inputs), -1).astype(np.float64)
    for name in ("hidden_0", "hidden_1", "output"):
        hidden = hidden @ np.asarray(params[name]["kernel"], float) + np.asarray(
            params[name]["bias"], float
        )
        hidden = hidden if name == "output" else np.maximum(hidden, 0)
    return hidden


def losses_of(logits, labels):
    return logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]


def test_there_is_a_row_for_every_variant_and_network(finished):
    out, result, seen = finished
    ids = [variant.id for variant in CONFIG.variants()]
    assert list(result.table["variant"]) == [name for name in ids for _ in range(2)]
    assert list(result.table["model_seed"]) == [0, 1] * len(ids)
    for name in ("table.csv", "claims.json", "report.md", "rounding.csv"):
        assert (out / name).exists()
    assert "pictures" in seen
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["settings"] == CONFIG.to_dict()
    assert RegularizationConfig.from_dict(manifest["settings"]) == CONFIG


def test_a_result_is_told_in_five_lines(finished):
    _, result, _ = finished
    lines = repr(result).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("RegularizationResult: digits: 2 networks of ")
    by_name = {claim.name: claim for claim in result.claims}
    slope, described = by_name["fewer bits, fitted prior"], by_name["weights pay, L2"]
    assert f"{abs(slope.effect):.2f} bits a weight" in lines[1]
    assert f"{by_name['test loss, L2'].value:.3f}" in lines[2]
    assert f"{described.value:.2f} bits a label" in lines[3]
    assert f"labels alone {described.reference_value:.2f}" in lines[3]
    assert result.report().index("**description:**") < result.report().index("### Claims")
    assert result.manifest["status"] == "finished"
    broken = RegularizationResult(result.table.iloc[:, :1], result.rounding, [], {})
    assert repr(broken).startswith("RegularizationResult with a table of ")


def test_files_of_certificates_stand_beside_ideal_lengths(finished):
    _, result, seen = finished
    table = result.table
    share = 100 * (table["certificate_bytes"] / table["certificate_ideal_bytes"] - 1)
    assert f"step: {share.mean():+.1f} % ({share.min():+.1f} to {share.max():+.1f} %)." in (
        result.report()
    )
    # The bytes are those of a network that anybody can write again.
    row = table.loc[table["variant"] == "l1-0.02"].iloc[1]
    params = jax.tree.map(lambda leaf: np.asarray(leaf)[1], seen["l1-0.02"][1])["params"]
    exponent = -int(math.log2(row["certificate_step"]))
    assert row["certificate_bytes"] == len(write_rounded(params, exponent, effort="best"))
    heads = result.report().split("### Numbers")[1]
    assert "| cert. | file bytes | ideal bytes |" in heads


def test_numbers_are_those_of_numpy(finished):
    _, result, seen = finished
    for variant in ("none", "l2-0.1", "l1-0.02", "early-stopping"):
        _, variables, samples = seen[variant]
        rows = result.table.loc[result.table["variant"] == variant]
        for number, row in enumerate(rows.to_dict("records")):
            params = jax.tree.map(lambda leaf, m=number: np.asarray(leaf)[m], variables)["params"]
            train = samples.train(number)
            test = losses_of(logits_of(params, samples.test.inputs), samples.test.labels)
            own = losses_of(logits_of(params, train.inputs), train.labels)
            assert row["test_loss"] == pytest.approx(test.mean(), rel=1e-4)
            assert row["train_loss"] == pytest.approx(own.mean(), rel=1e-4)
            weights = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
            assert row["zero_share"] == np.mean(weights == 0)
            assert row["weight_rms"] == pytest.approx(np.sqrt(np.mean(weights.astype(float) ** 2)))
            # The labels of the description, at its step.
            step = row["description_step"]
            rounded = jax.tree.map(lambda leaf, d=step: np.rint(leaf / d) * d, params)
            bits = losses_of(logits_of(rounded, train.inputs), train.labels).sum() / math.log(2)
            assert row["description_label_bits"] == pytest.approx(bits, rel=1e-3)
            total = row["description_weight_bits"] + row["description_label_bits"]
            assert row["description_bits"] == pytest.approx(total)


def test_the_rate_is_that_of_the_penalty(finished):
    _, result, seen = finished
    predict_fn, variables, samples = seen["l2-0.1"]
    row = result.table.loc[result.table["variant"] == "l2-0.1"].iloc[1]
    own = jax.tree.map(lambda leaf: np.asarray(leaf)[1], variables)
    diagonal = gauss_newton_diagonal(predict_fn, own, tuple(samples.train(1))).mean
    h = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(diagonal["params"])])
    # n h / (n l2): the number of examples cancels.
    rate = 0.5 * np.log1p(h.astype(float) / 0.1).sum()
    assert row["rate_nats_implied"] == pytest.approx(rate, rel=1e-3)
    assert row["gap_bound"] == pytest.approx(math.sqrt(rate / (2 * 80)), rel=1e-3)


def test_what_each_kind_of_variant_is(finished):
    _, result, seen = finished
    table = result.table.groupby("variant", sort=False).mean(numeric_only=True)
    # The proximal steps reach zeros, weight decay does not.
    assert table.loc["l1-0.02", "zero_share"] > 0.4
    assert table.loc["l2-0.1", "zero_share"] < 0.02
    assert table.loc["l1-0.02", "live_weights"] <= table.loc["none", "live_weights"]
    assert table.loc["l1-0.02", "bytes_smaller"] < table.loc["none", "bytes_smaller"]
    assert table.loc["temperature", "test_loss"] == table.loc["none", "test_loss_tempered"]
    assert table.loc["temperature", "weight_rms"] == table.loc["none", "weight_rms"]
    assert table["bits_per_weight_implied"].notna().sum() == 3
    assert table.loc["none", "loss_change"] == 0
    # Networks of one number begin alike: with no time to differ they stay close.
    first = [seen[variant][1]["params"]["hidden_0"]["kernel"] for variant in ("none", "l2-0.001")]
    assert np.abs(np.subtract(*map(np.asarray, first))).mean() < 0.01


def test_a_finished_run_is_read_back(finished, cache, monkeypatch):
    out, result, _ = finished
    monkeypatch.setattr(experiment, "draw_samples", None)  # nothing is trained or measured again
    again = regularization.run(CONFIG, out=out, cache_dir=cache, quiet=True)
    pd.testing.assert_frame_equal(again.table, result.table)
    assert again.claims == result.claims
    assert again.report() == result.report()


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_an_interrupted_run_continues_to_the_same_bytes(finished, tmp_path, cache, monkeypatch):
    out, _, _ = finished
    measure, calls = experiment.measure, []

    def dies_at_every_fourth(*arguments):
        calls.append(arguments[2].id)
        if len(calls) % 4 == 0:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(experiment, "measure", dies_at_every_fourth)
    interruptions = 0
    while True:
        try:
            regularization.run(CONFIG, out=tmp_path / "cut", cache_dir=cache, quiet=True)
            break
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions >= 2
    # Nothing finished was measured twice.
    assert len(calls) == len(CONFIG.variants()) + interruptions
    for name in ("table.csv", "claims.json", "report.md"):
        assert (tmp_path / "cut" / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("status", "damaged"),
    [("running", ["variants/none.json", "losses/l1-0.02.npz"]), ("finished", ["table.parquet"])],
)
def test_what_is_damaged_is_made_again(tmp_path, finished, cache, status, damaged):
    out, result, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    manifest = json.loads((out / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "status": status}))
    for name in damaged:
        (copy / name).write_bytes((copy / name).read_bytes()[:-40])
    again = regularization.run(CONFIG, out=copy, cache_dir=cache, quiet=True)
    pd.testing.assert_frame_equal(again.table, result.table, check_exact=True)
    assert RegularizationResult.load(copy).claims == result.claims


def test_pictures_show_the_table(finished):
    _, result, _ = finished
    drawn = result.plot()
    means = result.table.loc[result.table["kind"] == "l2"].groupby("strength")["test_loss"].mean()
    lines = [np.asarray(line.get_ydata(), float) for line in drawn.axes[2].get_lines()]
    assert any(y.shape == means.shape and np.allclose(y, means) for y in lines)
    counts = result.rounding["distinct_models"].to_numpy(float)
    lines = [np.asarray(line.get_ydata(), float) for line in result.plot_rounding().axes[0].lines]
    assert any(y.shape == counts.shape and np.allclose(y, counts) for y in lines)


def test_directories_of_something_else_are_refused(finished, tmp_path):
    out, _, _ = finished
    with pytest.raises(ValueError, match="holds a regularization run, not a sweep"):
        sweep.run(sweep.preset("quick"), out=out, quiet=True)
    with pytest.raises(ValueError, match=r"other settings: seed \(0 there, 1 now\)"):
        regularization.run(regularization.preset(**(CONFIG.to_dict() | {"seed": 1})), out=out)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files and no manifest"):
        regularization.run(CONFIG, out=tmp_path)
    with pytest.raises(ValueError, match="holds no regularization run"):
        RegularizationResult.load(tmp_path)


def test_the_command(finished, cache, tmp_path, monkeypatch):
    out, _, _ = finished
    monkeypatch.setenv("JAXCOMP_CACHE_DIR", str(cache))
    # These options are the settings of the finished run, which is told again.
    shutil.copytree(out, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(figure, "save_figures", lambda *_: [])
        patch.setattr(experiment, "measure", None)
        first = CliRunner().invoke(app, [*OPTIONS, "--out", str(tmp_path / "run")])
    assert first.exit_code == 0, first.output
    assert "claims hold" in first.stdout
    assert "different models remain" in " ".join(first.stdout.split())
    again = CliRunner().invoke(app, ["plot", str(tmp_path / "run")])
    assert again.exit_code == 0, again.output
    assert again.stdout.split("files in")[0] == first.stdout.split("files in")[0]
    for name in ("regularization", "rounding"):
        assert (tmp_path / "run" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    told = CliRunner().invoke(app, ["regularization", "--help"]).stdout
    for word in ("--l2", "--l1", "--dropout", "--step", "--decimals", "--data-dir", "Ctrl-C"):
        assert word in told


def test_without_the_coder_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    found = CliRunner().invoke(app, [*OPTIONS, "--out", str(tmp_path / "run")])
    assert found.exit_code == 2
    assert found.stderr.strip() == (
        "jaxcomp: Coding weights needs constriction, which is not installed; install "
        "jaxcomp[coding]."
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "imagenet"], "unknown dataset 'imagenet': choose from digits, mnist"),
        (["--dataset", "mnist"], "no data folder was given"),
        (["--l2", "0"], "l2 must hold positive strengths, got (0.0,); no penalty is always part"),
        (["--l1", "nan"], "l1 must hold positive strengths, got (nan,)"),
        (["--dropout", "1"], "dropout must lie in [0, 1), got 1.0"),
        (["--step", "0"], "step must be positive and finite, got 0"),
        (["--step", "1e-9"], "step must be at least 2^-16 = 1.53e-05, got 1e-09"),
        (["--l2", "200"], "l2 must be below 2 (1 + momentum) / learning_rate = 190"),
        (["--l1", "0.01", "--l1", "0.01000000001"], "got more than one l1-0.01."),
        (["--models", "0"], "num_models must be at least 1, got 0"),
        (["--decimals", "9"], "decimals must lie between 0 and 5, got (9,)"),
        (["--num-problems", "5"], "num_problems must be at least 100, got 5"),
        (["--label-noise", "1.5"], "label_noise must lie in [0, 1), got 1.5"),
        (["--train-size", "5000"], "the training pool of digits has 1200"),
        (["--batch-size", "5000"], "batch of 5000 examples is larger"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXCOMP_DATA_DIR", raising=False)
    monkeypatch.setenv("JAXCOMP_CACHE_DIR", str(tmp_path))
    result = CliRunner().invoke(app, ["regularization", "--quiet", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_settings_of_data_sets_and_unknown_ones():
    assert regularization.preset("mnist").train_size == 6000
    assert regularization.preset("mnist", train_size=100).train_size == 100
    with pytest.raises(ValueError, match=r"unknown settings \['lr'\]"):
        regularization.preset(lr=0.1)
