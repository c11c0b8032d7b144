"""A run on scikit-learn's digits, to files that the command certifies."""

import json

import numpy as np
import pytest
from command_line import assert_one_sentence, invoke
from pictures import assert_nothing_is_cut

import jaxcomp
from jaxcomp import bounds
from jaxcomp.experiments import data
from jaxcomp.experiments.small_descriptions import DescriptionResult, preset, run
from jaxcomp.experiments.small_descriptions.experiment import layer_of

SMALL = {"models": 1, "num_steps": 40, "batch_size": 200, "features": 512}  # 4 x 4 windows, below 3


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("small") / "run"
    return run(preset("quick", penalties=(1.0, 8.0), **SMALL), out=out, quiet=True)


@pytest.fixture(scope="module")
def digits():
    loaded = data.load("digits")
    images = [part.astype(np.float32) / np.float32(16) for part in (loaded[1], loaded[3])]
    return (images[0], loaded[2]), (images[1], loaded[4])


def test_certificates_are_those_of_the_bytes(done, digits):
    train, test = digits
    best = done.best().iloc[0]
    stream = bytes.fromhex(best["stream"])
    files = done.directory / "files"
    assert (files / "model00.bin").read_bytes() == stream
    report = jaxcomp.certify(
        files / "model00.bin", done.network, train, test=test,
        fixed_architecture=files / "architecture.json",
    )  # fmt: skip
    row = report.rows[0]
    size = len(stream)
    # One of 1,024 candidates for the features, and of 108 for their constants.
    bits = 8 * size + np.log2(size * (size + 1)) + 10 + np.log2(108)
    expected = bounds.occam(row.error, bits, num_examples=1200, delta=0.05)
    assert row.bound == pytest.approx(float(expected), rel=1e-9)
    assert (best["bound"], best["train_error"]) == pytest.approx((row.bound, row.error), rel=1e-9)
    assert best["test_error"] == report.test_error
    assert best["bound"] == done.table["bound"].min() <= best["bound_before_refinement"]
    # What is decoded is what was certified.
    layer = layer_of(best["stream"], done.network)
    assert np.count_nonzero(layer.weights) == best["nonzero"]
    assert abs(layer.weights).max() <= 3
    assert layer.stream() == stream


def test_a_run_is_read_back_and_drawn(done):
    again = run(done.config, out=done.directory, quiet=True)
    assert again.table.equals(done.table)
    assert "Certificate: " in repr(again).replace("DescriptionResult", "Certificate")
    assert "data-free" in done.report()
    assert_nothing_is_cut(done.plot())
    assert DescriptionResult.load(done.directory).report() == done.report()


def test_command(done, tmp_path):
    files = done.directory / "files"
    certified = invoke(
        "certify", files / "model00.bin", "--data", "digits", "--hook", files / "hook.py",
        "--fixed-architecture", files / "architecture.json", "--plot", tmp_path / "a.png",
        "--json",
    )  # fmt: skip
    assert certified.exit_code == 0, certified.output
    row = json.loads(certified.stdout)["rows"][0]
    assert row["bound"] == pytest.approx(done.best()["bound"].iloc[0], rel=1e-9)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    refused = invoke("certify", files / "model00.bin", "--data", "digits", "--plot", "a.txt")
    assert_one_sentence(refused, "no name of a picture")
    assert_one_sentence(invoke("small-descriptions", "--most", "11"), r"most must lie in \[1, 10\)")
    drawn = invoke("plot", done.directory)
    assert drawn.exit_code == 0, drawn.output


@pytest.mark.slow  # compiles and trains once more; rows of differences are tested in the library
def test_transfer_holds_differences_to_a_prior(tmp_path, digits):
    config = preset("quick", transfer=True, penalties=(8.0,), **SMALL)
    found = run(config, out=tmp_path / "run", quiet=True)
    files = tmp_path / "run" / "files"
    report = jaxcomp.certify(
        files / "model00.bin", found.network, digits[0], prior=files / "prior.npz",
        prior_indices=[], fixed_architecture=files / "architecture.json",
    )  # fmt: skip
    row, of_prior = report.rows
    assert row.bound == pytest.approx(found.table["bound"].iloc[0], rel=1e-9)
    assert row.name.startswith("c")
    # A layer trained on these digits, drawn large, knows something of them.
    assert of_prior.error < 0.5
    assert DescriptionResult.load(tmp_path / "run").prior.stream() == found.prior.stream()
