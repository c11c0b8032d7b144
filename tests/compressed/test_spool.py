"""Models compressed tensor by tensor: the same bytes, and going on after a stop."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from command_line import assert_one_sentence, invoke

import jaxcomp
from jaxcomp.compressed import compress_file, selected, spool
from jaxcomp.quantizers import EntropyConstrained, RoundToNearest, TrellisCoded
from jaxcomp.storage import FolderLock

METHOD = EntropyConstrained(num_bins=64, num_symbols=16)
NAMES = ("a.weight", "b.weight", "c.weight")


@pytest.fixture
def model(tmp_path):
    """Return the index of three tensors of bfloat16 in two files."""
    rng = np.random.default_rng(0)
    weights = {
        name: (0.1 * (n + 1) * rng.normal(size=(60, 80))).astype(ml_dtypes.bfloat16)
        for n, name in enumerate(NAMES)
    }
    files = {
        "one.safetensors": {NAMES[0]: weights[NAMES[0]], "a.bias": np.ones(60, np.float32)},
        "two.safetensors": {name: weights[name] for name in NAMES[1:]},
    }
    for file, tensors in files.items():
        safetensors.numpy.save_file(tensors, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    places = {name: file for file, tensors in files.items() for name in tensors}
    index.write_text(json.dumps({"weight_map": places}))
    return index


@pytest.fixture
def importance(tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "importance.safetensors"
    values = {name: rng.uniform(size=(60, 80)).astype(np.float32) for name in NAMES}
    safetensors.numpy.save_file(values, path)
    return path


def counted(monkeypatch):
    """Return a list that grows by the paths of every tensor that is given its codes."""
    applied = []
    own = selected.Tensor.apply

    def apply(tensor, points):
        applied.append(tensor.paths[0])
        return own(tensor, points)

    monkeypatch.setattr(selected.Tensor, "apply", apply)
    return applied


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (RoundToNearest(4, scale="channel"), {"record": True, "keep": ("b*",)}),
        (METHOD, {"bits_per_weight": 2.5}),
        pytest.param(METHOD, {"size_bytes": 6000}, marks=pytest.mark.slow),
        pytest.param(METHOD, {"max_mean_squared_error": 1e-3}, marks=pytest.mark.slow),
        (TrellisCoded(least_weights=1000), {}),
    ],
)
def test_the_file_is_that_of_the_whole_model(model, method, options):
    streamed, whole = (
        compress_file(
            model, model.with_name(f"{name}.jxc"), method, stream=stream, jobs=3, **options
        )
        for name, stream in (("streamed", True), ("whole", False))
    )
    assert model.with_name("streamed.jxc").read_bytes() == model.with_name("whole.jxc").read_bytes()
    assert streamed.to_json().replace("streamed", "whole") == whole.to_json()
    assert not model.with_name("streamed.jxc.parts").exists()


def test_importances_from_a_file_of_their_own(model, importance):
    files = []
    for stream in (True, False):
        target = model.with_name(f"{stream}.safetensors")
        report = compress_file(
            model,
            target,
            RoundToNearest(),
            bits_per_weight=4.5,
            importance=importance,
            stream=stream,
            shard_size=2000,
        )
        files.append(
            b"".join(path.read_bytes() for path in sorted(model.parent.glob(f"{stream}-*")))
        )
        assert report.target.endswith("index.json")
    assert files[0] == files[1]
    safetensors.numpy.save_file({NAMES[0]: np.ones((60, 80), np.float32)}, importance)
    with pytest.raises(ValueError, match=r"has no leaf 'b\.weight'"):
        compress_file(model, target, METHOD, importance=importance, stream=True)


def test_it_goes_on_where_it_was_stopped(model, monkeypatch):
    target, other = model.with_name("small.jxc"), model.with_name("other.jxc")
    applied = counted(monkeypatch)
    own = selected.Tensor.apply

    def stopped(tensor, points):
        if tensor.paths[0] == NAMES[2]:
            raise KeyboardInterrupt
        return own(tensor, points)

    with monkeypatch.context() as patch:
        patch.setattr(selected.Tensor, "apply", stopped)
        with pytest.raises(KeyboardInterrupt):
            compress_file(model, target, RoundToNearest(4), stream=True, jobs=1)
    assert applied == list(NAMES[:2])
    assert not target.exists()
    # What is cut, as by a full disk, is made again.
    folder = target.with_name("small.jxc.parts")
    cut = sorted(folder.glob("*.found"))[0]
    cut.write_bytes(cut.read_bytes()[:-9])
    compress_file(model, target, RoundToNearest(4), stream=True, jobs=1)
    assert len(applied) <= 4
    assert applied[-1] == NAMES[2]
    assert not folder.exists()
    compress_file(model, other, RoundToNearest(4), stream=False)
    assert target.read_bytes() == other.read_bytes()


def test_another_budget_finds_the_curves_and_other_weights_do_not(model, monkeypatch):
    target = model.with_name("small.jxc")
    measured = []
    own = selected.Tensor.curves
    monkeypatch.setattr(
        selected.Tensor,
        "curves",
        lambda tensor, parameters=None: (
            measured.append((tensor.paths[0], np.array_equal(parameters, tensor.candidates())))
            or own(tensor, parameters)
        ),
    )
    for _ in range(2):
        with pytest.raises(ValueError, match="allow more"):
            compress_file(model, target, RoundToNearest(4), size_bytes=900, stream=True, jobs=1)
    whole = [(name, True) for name in NAMES]
    assert [one for one in measured if one[1]] == whole
    file = model.with_name("two.safetensors")
    os.utime(file, ns=(0, 0))  # as if it were another file
    compress_file(model, target, RoundToNearest(4), bits_per_weight=9, stream=True, jobs=1)
    assert [one for one in measured if one[1]] == [*whole, *whole[1:]]


def test_what_is_refused(model, tmp_path):
    target = tmp_path / "small.jxc"
    folder = tmp_path / "small.jxc.parts"
    folder.mkdir()
    lock = FolderLock(folder)
    assert lock.acquire()
    quick = ["-o", target, "--method", "round-to-nearest", "--stream", "--quiet"]
    assert_one_sentence(invoke("compress", model, *quick), "another process writes")
    lock.release()
    (folder / "mine.txt").write_text("not ours")
    assert_one_sentence(invoke("compress", model, *quick), "holds mine.txt")
    assert (folder / "mine.txt").exists()
    np.savez(tmp_path / "model.npz", w=np.ones((8, 8)))
    assert_one_sentence(invoke("compress", tmp_path / "model.npz", *quick), "no safetensors")
    for more in (["--reference", model], ["--convert-float8"]):
        assert_one_sentence(invoke("compress", model, *quick, *more), "needs all of the model")
    model.with_name("two.safetensors").unlink()
    assert_one_sentence(invoke("compress", model, *quick), "lacks two.safetensors")
    assert not target.exists()


def test_the_command(model, importance, tmp_path):
    target = tmp_path / "small.jxc"
    done = invoke(
        "compress", model, "-o", target, "--method", "round-to-nearest", "--stream", "--quiet",
        "--importance", importance, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["num_weights"] == 3 * 4800
    assert jaxcomp.inspect(target).size_bytes == target.stat().st_size


def test_values_of_all_kinds_are_given_back(tmp_path):
    own = spool.Spool(tmp_path, {}, lambda: None)
    value = [(1, 0.1, None, True, np.asarray([1.5], ml_dtypes.bfloat16)), [np.float32(2)]]
    found = [own.found("0" * 64, lambda: value), own.found("0" * 64, lambda: None)]
    for one in found:
        assert one[0][:4] == value[0][:4]
        assert one[0][4].dtype == ml_dtypes.bfloat16
        assert one[0][4].tobytes() == value[0][4].tobytes()
        assert one[1][0] == 2
