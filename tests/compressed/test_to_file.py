"""Checkpoints to files: budgets are met by the bytes that are there."""

import json
import math

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import jaxcomp
from jaxcomp.checkpoints import open_checkpoint
from jaxcomp.compressed import CalibrationData, compress_file, to_file
from jaxcomp.quantizers import EntropyConstrained, HessianRounding, RoundToNearest

METHOD = EntropyConstrained(num_bins=64, num_symbols=16)
SHAPE = (60, 80)


def model(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "one.weight": rng.laplace(size=SHAPE).astype(np.float32),
        "one.bias": rng.normal(size=60).astype(np.float32),
        "two.weight": (0.1 * rng.normal(size=SHAPE)).astype(np.float32),
        "steps": np.asarray(3),
    }


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(model(), path)
    return path


def read(path):
    with open_checkpoint(path) as checkpoint:
        return checkpoint.tree()


@pytest.mark.parametrize(
    ("budget", "used", "is_large"),
    [
        ({"size_bytes": 4000}, lambda report: report.contents.size_bytes / 4000, False),
        ({"bits_per_weight": 2.5}, lambda report: report.bits_per_weight / 2.5, True),
        pytest.param(
            {"ratio": 12}, lambda report: 12 / report.ratio, False, marks=pytest.mark.slow
        ),
    ],
)
def test_budgets_are_met_from_below_and_used_up(budget, used, is_large, source, monkeypatch):
    if is_large:  # counted by the quick codes first, which need more
        monkeypatch.setattr(to_file, "MOST_WEIGHTS_OF_BEST", 0)
    target = source.with_name("small.jxc")
    report = compress_file(source, target, METHOD, record=True, **budget)
    assert 0.985 <= used(report) <= 1
    name, value = next(iter(budget.items()))
    assert report.budget is not None
    assert report.budget[:2] == (name, value)
    assert report.contents.size_bytes == target.stat().st_size
    # What the file says of itself, and what it holds.
    contents = jaxcomp.inspect(target)
    assert contents.made["method"] == "entropy_constrained"
    assert contents.made["budget"] == [name, value]
    found, original = read(target), model()
    total = 0.0
    for entry, stated in zip(report.contents.entries, contents.entries, strict=True):
        error = np.mean((found[entry.path].astype(np.float64) - original[entry.path]) ** 2)
        if entry.method == "kept":
            assert error == 0
            assert math.isnan(entry.mean_squared_error)
        else:
            assert entry.mean_squared_error == pytest.approx(error, rel=1e-3)
            assert stated.mean_squared_error == pytest.approx(error, rel=1e-2)
            total += error / 2
    assert report.mean_squared_error == pytest.approx(total, rel=1e-3)


def test_a_squared_error(source):
    report = compress_file(
        source, source.with_name("small.jxc"), METHOD, max_mean_squared_error=0.02
    )
    assert 0.018 <= report.mean_squared_error <= 0.02


def test_what_the_report_says(source):
    report = compress_file(
        source, source.with_name("small.safetensors"), RoundToNearest(4), keep=["two*"]
    )
    assert report.kept == {
        "less than two axes": ("one.bias",), "not floating": ("steps",),
        "as asked for": ("two.weight",),
    }  # fmt: skip
    assert report.num_weights == 4800
    text = str(report)
    for words in (
        "ratio",
        "4,800 weights in 1 tensors",
        "kept as they are, as asked for: 1",
        "MSE",
    ):
        assert words in text
    told = json.loads(report.to_json())
    assert told["num_weights"] == 4800
    assert told["entries"][0]["mean_squared_error"] is None
    assert set(safetensors.numpy.load_file(report.target)) == {*model(), "jaxcomp.header"}
    lossless = compress_file(source, source.with_name("all.jxc"), lossless=True)
    assert set(lossless.kept) == {"lossless"}
    for name, values in model().items():
        assert read(lossless.target)[name].tobytes() == values.tobytes()
    assert "nan" not in str(lossless)


def test_channels_of_pytorch_are_the_first_axis(source):
    method = RoundToNearest(4, scale="channel")
    first = compress_file(source, source.with_name("a.jxc"), method)
    values = model()
    np.savez(source.with_name("flax.npz"), kernel=values["one.weight"])
    last = compress_file(source.with_name("flax.npz"), source.with_name("b.jxc"), method)
    trees = jaxcomp.load(first.target), jaxcomp.load(last.target)
    assert trees[0].tensor("one.weight").scales.shape == (60,)
    assert trees[1].tensor("kernel").scales.shape == (80,)


def test_float8_is_kept_or_converted(tmp_path):
    values = {"w": np.random.default_rng(0).normal(size=(8, 8)).astype(ml_dtypes.float8_e4m3fn)}
    safetensors.numpy.save_file(values, tmp_path / "a.safetensors")
    kept = compress_file(tmp_path / "a.safetensors", tmp_path / "kept.jxc", RoundToNearest(4))
    assert kept.kept == {"fewer than 16 bits": ("w",)}
    assert read(kept.target)["w"].tobytes() == values["w"].tobytes()
    done = compress_file(
        tmp_path / "a.safetensors", tmp_path / "b.jxc", RoundToNearest(4), convert_float8=True
    )
    assert done.num_weights == 64
    assert read(done.target)["w"].dtype == ml_dtypes.bfloat16


def test_a_budget_of_the_loss(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=SHAPE).astype(np.float32)
    inputs = rng.normal(size=(40, 60)).astype(np.float32)
    np.savez(tmp_path / "model.npz", w=weights)
    data = CalibrationData(
        lambda params, x: x @ params["w"], "squared_error", [(inputs, inputs @ weights)]
    )
    report = compress_file(
        tmp_path / "model.npz", tmp_path / "a.jxc", METHOD, data=data, max_loss_increase=200.0
    )
    assert report.losses is not None
    before, after = report.losses
    assert before < 1e-6 < after <= 200
    found = read(report.target)["w"].astype(np.float64)
    loss = np.mean(np.sum((inputs @ (found - weights)) ** 2, axis=1))
    assert after == pytest.approx(loss, rel=1e-3)
    # The smallest that keeps to it: a few percent fewer bits do not.
    assert after > 140


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_bytes": 9, "ratio": 2}, "one budget at a time, got size_bytes and ratio"),
        ({"ratio": -1}, "ratio must be positive and finite, got -1"),
        ({"lossless": True, "ratio": 2}, "lossless has no budget, got ratio"),
        ({"max_loss_increase": 1}, "a budget of the loss needs data; give a hook"),
        ({"method": HessianRounding()}, "hessian_rounding needs data; give a hook, or choose ano"),
        ({"keep": ["three*"]}, r"the pattern 'three\*' in keep matches no tensor"),
        ({"keep": ["*"], "ratio": 2}, "is a budget of compressed tensors, but all are kept"),
        (
            {"size_bytes": 400},
            "size_bytes is 400, but the header and the leaves that are kept take",
        ),
    ],
)
def test_what_cannot_be_done(options, message, source):
    target = source.with_name("small.jxc")
    with pytest.raises(ValueError, match=message):
        compress_file(source, target, **{"method": METHOD} | options)
    assert not target.exists()
    with pytest.raises(ValueError, match="is what is read; name another file"):
        compress_file(source, source)


def test_losses_of_data():
    logits = np.float32([[2.0, 0.0], [0.0, 1.0]])
    labels = np.asarray([0, 0])
    named = CalibrationData(
        lambda params, x: x * params, "softmax_cross_entropy", [(logits, labels)]
    )
    own = CalibrationData(
        lambda params, x: x * params,
        lambda outputs, label: -jax.nn.log_softmax(outputs)[label],
        [(logits[:1], labels[:1]), (logits[1:], labels[1:])],
    )
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2
    assert named.loss_of(np.float32(1)) == pytest.approx(expected, rel=1e-6)
    assert own.loss_of(np.float32(1)) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="the loss on the data is nan; check predict_fn"):
        named.loss_of(np.float32(math.nan))
