"""The study and its command: what lies in the directory, and that a second call goes on."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from slow_cases import some_slow
from typer.testing import CliRunner

from jaxcomp import storage
from jaxcomp.cli import app
from jaxcomp.experiments.linear_regression import StudyConfig, StudyResult, figure, run
from jaxcomp.linear_regression import (
    CHANNELS,
    Setting,
    channel_gap_bound,
    channel_risks,
    relative_gap_bound,
)

SMALL = [
    "linear-regression", "--dim", "4", "-n", "14", "--datasets", "60", "--num-rates",
    "3", "--max-bits", "2", "--no-adaptive", "--decimals", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "run"
    result = CliRunner().invoke(app, [*SMALL, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out, result


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing takes longer than these studies; `finished` does it."""
    monkeypatch.setattr(figure, "save_figures", lambda *_, **__: [])


def test_what_is_left_behind(finished):
    out, result = finished
    assert "population risk of least squares" in result.stdout
    assert "60 of 60 (100 %)" in result.stderr
    for name in ("table.csv", "table.parquet", "information.csv", "claims.json", "report.md"):
        assert (out / name).stat().st_size > 0
    for name in ("risks", "information"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (out / f"{name}.svg").read_bytes()[:400]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["settings"]["num_examples"] == [14]
    assert len(list((out / "chunks").glob("*.npz"))) == 2


def test_the_table(finished):
    out, _ = finished
    table = StudyResult.load(out).table
    pd.testing.assert_frame_equal(table, pd.read_csv(out / "table.csv"), rtol=1e-12)
    assert table.groupby(["num_examples", "compressor"]).size().eq(3).all()
    rows = table[table["compressor"] == "uninformed_zero_mean"]
    setting = Setting(4, 14, 1.0, 2.0)
    rates = 4 * np.log(2) * np.array([0.0, 1.0, 2.0])
    expected = channel_risks(setting, rates, channel="uninformed_zero_mean")
    np.testing.assert_allclose(rows["theory_population_risk"], expected.population, rtol=1e-5)
    np.testing.assert_allclose(rows["rate_bits"], [0, 1, 2], atol=1e-6)
    bound = channel_gap_bound(setting, rates, channel="uninformed_zero_mean").bound
    np.testing.assert_allclose(rows["gap_bound"], bound, rtol=1e-5)
    designed = table[table["family"] == "designed"]
    paid = designed["rate_bits"] * 4 * np.log(2)
    expected = relative_gap_bound(paid.to_numpy(), 14.0)
    np.testing.assert_allclose(designed["relative_gap_bound"], expected, rtol=1e-4, atol=1e-6)
    assert np.isinf(table.loc[table["family"] == "control", "rate_bits"]).all()


def test_every_bound_holds(finished):
    out, _ = finished
    result = StudyResult.load(out)
    table = result.table.dropna(subset="relative_gap_bound")
    slack = 4 * table["relative_gap_se"] + 1e-6
    assert (table["relative_gap"] <= table["relative_gap_bound"] + slack).all()
    gap = result.table.dropna(subset="gap_bound")
    slack = 4 * gap["generalization_se"] + 1e-6
    assert (gap["generalization"] <= gap["gap_bound"] + slack).all()
    information = result.information
    slack = 4 * information["relative_gap_se"] + 1e-6
    assert (information["relative_gap"] <= information["relative_gap_bound"] + slack).all()
    assert (information["bits"] <= information["bits_upper"] * 1.01 + 0.05).all()
    for _, rows in information.groupby("num_examples"):
        assert rows.sort_values("penalty")["entropy_nats"].is_monotonic_decreasing


def test_claims_are_tested_on_the_half_nothing_was_chosen_on(finished):
    out, _ = finished
    result = StudyResult.load(out)
    halves = {}
    for chunk in (0, 1):
        arrays, metadata = storage.load_arrays(out / "chunks" / f"n000014-{chunk:04d}.npz")
        improvement = arrays["means"][5]  # QUANTITIES
        halves[chunk] = dict(zip(metadata["compressors"], improvement, strict=True))
    for claim in result.claims:
        if claim.num_examples == 14:
            place = halves[0][claim.compressor].argmax()
            assert claim.place == place
            assert claim.improvement == pytest.approx(halves[1][claim.compressor][place])
    assert {claim.compressor for claim in result.claims} > set(CHANNELS)


def test_a_result_is_told_in_five_lines(finished):
    out, shown = finished
    result = StudyResult.load(out)
    lines = repr(result).splitlines()
    assert len(lines) == 5
    assert lines[0] == "StudyResult: least squares, d = 4, n = 14; 60 data sets each"
    # d s2 / (n - d - 1) = 4 / 9 above the noise.
    assert lines[1].startswith("  theory: n = 14: population risk of least squares 1.444; ")
    by_family = result.table.groupby("family")["compressor"].unique()
    for line, family in ((lines[2], "designed"), (lines[3], "control")):
        best = max(
            (c for c in result.claims if c.compressor in by_family[family]),
            key=lambda claim: claim.improvement,
        )
        assert f" {best.compressor} " in line
        assert f"{best.improvement:+.3g}" in line
    assert shown.stdout.startswith("- **compressed:** least squares, d = 4")


def test_pictures_show_theory_and_simulation(finished):
    out, _ = finished
    result = StudyResult.load(out)
    figure = result.plot()
    axis = figure.axes[2]
    rows = result.table[result.table["num_examples"] == 14]
    for name in CHANNELS:
        wanted = rows.loc[rows["compressor"] == name, "theory_population_risk"].to_numpy()
        drawn = [np.asarray(line.get_ydata(), float) for line in axis.get_lines()]
        assert any(y.shape == wanted.shape and np.allclose(y, wanted) for y in drawn)
    assert "n = 14" in figure.get_suptitle()


@pytest.mark.usefixtures("no_pictures")
def test_the_same_command_goes_on_and_other_settings_are_refused(finished, tmp_path):
    out, first = finished
    again = CliRunner().invoke(app, [*SMALL, "--out", str(out)])
    assert again.exit_code == 0
    assert again.stdout == first.stdout
    assert again.stderr == ""
    other = CliRunner().invoke(app, [*SMALL, "--seed", "1", "--out", str(out)])
    assert other.exit_code == 2
    assert "belongs to other settings: seed (0 there, 1 now)" in other.stderr
    # One chunk from the finished run, the other damaged and drawn anew: the same table.
    half = tmp_path / "half"
    (half / "chunks").mkdir(parents=True)
    manifest = json.loads((out / "manifest.json").read_text()) | {"status": "running"}
    (half / "manifest.json").write_text(json.dumps(manifest))
    kept = "n000014-0000.npz"
    (half / "chunks" / kept).write_bytes((out / "chunks" / kept).read_bytes())
    (half / "chunks" / "n000014-0001.npz").write_bytes(b"cut")
    resumed = CliRunner().invoke(app, [*SMALL, "--quiet", "--out", str(half)])
    assert resumed.exit_code == 0
    assert (half / "table.csv").read_bytes() == (out / "table.csv").read_bytes()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "damaged", some_slow(["claims.json", "information.csv", "table.parquet"], "claims.json")
)
def test_what_is_damaged_is_refused_and_made_again(finished, tmp_path, damaged):
    out, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / damaged).write_bytes((copy / damaged).read_bytes()[:-5])
    refused = CliRunner().invoke(app, ["plot", str(copy)])
    assert refused.exit_code == 2
    assert f"({damaged} was damaged or changed after the run)" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    if damaged == "claims.json":
        again = CliRunner().invoke(app, [*SMALL, "--quiet", "--out", str(copy)])
        assert again.exit_code == 0, again.output
        assert (copy / damaged).read_bytes() == (out / damaged).read_bytes()


@pytest.mark.slow
def test_its_pictures_again(finished, tmp_path):
    out, first = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    before = {file.name: file.read_bytes() for file in copy.glob("*.png")}
    for name in before:
        (copy / name).unlink()
    again = CliRunner().invoke(app, ["plot", str(copy)])
    assert again.exit_code == 0, again.output
    assert {file.name: file.read_bytes() for file in copy.glob("*.png")} == before
    assert again.stdout.split("Tables and pict")[0] == first.stdout.split("Tables and pict")[0]


@pytest.mark.slow  # the library's simulation has a covariance of its own
@pytest.mark.usefixtures("no_pictures")
def test_correlated_inputs_meet_the_theory(tmp_path):
    options = ["--correlation", "0.6", "--out", str(tmp_path / "run")]
    told = CliRunner().invoke(app, [*SMALL, *options])
    assert told.exit_code == 0, told.output
    assert "for uncorrelated inputs" in told.stdout
    table = StudyResult.load(tmp_path / "run").table
    rows = table[table["compressor"].isin(CHANNELS)]
    # Of 60 data sets, at 3 rates of 5 channels; five standard errors.
    away = rows["population_risk"] - rows["theory_population_risk"]
    assert np.all(np.abs(away) <= 5 * rows["population_risk_se"] + 1e-6)


def test_help_teaches():
    told = CliRunner().invoke(app, ["linear-regression", "--help"]).stdout
    for word in (
        "--num-examples",
        "--signal",
        "--correlation",
        "--datasets",
        "--decimals",
        "--out",
        "Ctrl-C",
        "2B",
    ):
        assert word in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "57"], "num_examples must be at least dim + 8 = 58"),
        (["-n", "80", "-n", "80"], "num_examples must be different"),
        (["--dim", "1"], "dim must be at least 2, got 1"),
        (["--datasets", "1"], "num_datasets must be at least 4, got 1"),
        (["--num-rates", "65"], "num_rates must be at most 64, got 65"),
        (["--signal", "-1"], "signal must be finite and at least 0, got -1.0"),
        (["--noise-variance", "0"], "noise_variance must be positive and finite, got 0"),
        (["--decimals", "9"], "decimals must lie between 0 and 5"),
        (["--correlation", "1"], "correlation must lie between -1 and 1, got 1.0"),
        (["--correlation", "0.99999"], "covariance must be positive definite, got eigenvalues"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["linear-regression", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_directories_of_something_else_are_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files and no manifest"):
        run(StudyConfig(), out=tmp_path)
    with pytest.raises(ValueError, match="holds no study"):
        StudyResult.load(tmp_path / "nowhere")
