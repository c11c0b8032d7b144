"""The commands: a sweep and its pictures, what they refuse, and a run that survives."""

import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from command_line import SMALL, assert_one_sentence, environment, invoke

from jaxcomp.experiments.manifest import FORMAT_VERSION
from jaxcomp.experiments.sweep import evaluator, limits, pictures

# Stops that a test can hit: a checkpoint after every step, and many small chunks of variants.
SLICED = """
import sys
from jaxcomp import cli
from jaxcomp.experiments.networks import training
from jaxcomp.experiments.sweep import evaluator, limits
training.SEGMENT_SECONDS = training.CHECKPOINT_SECONDS = 0.0
evaluator.MAX_CHUNK_VARIANTS = 4
limits._NUM_SLOPES, limits._GAP_BITS = 5, 0.2
cli.main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCOMP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXCOMP_DATA_DIR", raising=False)
    monkeypatch.setattr(evaluator, "MAX_CHUNK_VARIANTS", 4)  # one program for all tests
    monkeypatch.setattr(limits, "_NUM_SLOPES", 5)  # fine ones take half of the time of a sweep
    monkeypatch.setattr(limits, "_GAP_BITS", 0.2)


def test_a_sweep_and_its_pictures_again(tmp_path, monkeypatch):
    only_png = functools.partial(pictures.save_figures, formats=("png",))
    out = tmp_path / "run"
    monkeypatch.setattr(pictures, "save_figures", lambda *_, **__: [])  # drawn once, below
    first = invoke(*SMALL, "--out", out)
    assert first.exit_code == 0, first.output
    assert "raw loss" in first.stdout
    assert not (out / "sweep.png").exists()
    before = (out / "table.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "save_figures", only_png)
        again = invoke("plot", out)
    assert again.exit_code == 0
    drawn = list(out.glob("*.png"))
    stems = {"bound", "limit", "predicted-rise", "sweep", "sweep-details"}
    assert {file.stem for file in drawn} == stems
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in drawn)
    assert (out / "table.csv").read_bytes() == before
    resumed = invoke(*SMALL, "--out", out)
    assert resumed.exit_code == 0
    told = [line for line in resumed.stdout.splitlines() if "pictures: " not in line]
    assert told == first.stdout.splitlines()
    plain = invoke("sweep", "--config", out / "manifest.json", "--quiet", "--json", "--out", out)
    found = json.loads(plain.stdout)
    assert (found["kind"], found["manifest"]["settings"]["num_models"]) == ("sweep", 2)
    assert len(found["table"]) == len(before.splitlines()) - 1
    assert found["claims"][0]["low"] <= found["claims"][0]["effect"]
    other = invoke(*SMALL, "--seed", "1", "--out", out)
    assert other.exit_code == 2
    assert "belongs to other settings: seed (0 there, 1 now)" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "--dataset", "imagenet"], "unknown dataset 'imagenet': choose from digits"),
        (["sweep", "--model", "resnet"], "unknown model 'resnet': choose from mlp, vgg"),
        (["sweep", "--importance", "hessian"], "unknown importance 'hessian': choose from none"),
        (["sweep", "--method", "lloyd"], "unknown method 'lloyd': choose from kmeans, optimal"),
        (["sweep", "--allocation", "fair"], "unknown allocation 'fair': choose from equal, opt"),
        (["sweep", "--penalty-form", "cubic"], "unknown penalty_form 'cubic': choose from mono"),
        (["sweep", "--num-clusters", "0"], "num_clusters must lie between 1"),
        (["sweep", "--diameter-penalty", "nan"], "diameter_penalty must lie in"),
        (["sweep", "--label-noise", "1.5"], "label_noise must lie in"),
        (["sweep", "--seed", "-1"], "seed must be at least 0, got -1"),
        (["sweep", "--train-size", "5000", "--no-replacement"], "5,?000"),
        (["sweep", "--validation-size", "5000"], "5000 leaves nothing to train on"),
        (["sweep", "--dataset", "mnist"], "no data folder was given; .*JAXCOMP_DATA_DIR.*download"),
        (["sweep", "--dataset", "mnist", "--data-dir", "nowhere"], "there is no folder nowhere"),
        (["sweep", "--dataset", "cifar10", "--data-dir", "."], "was not found in the folder"),
        (["sweep", "--model", "vgg"], "32 x 32"),
        (["plot", "nowhere"], "nowhere holds no run"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(invoke(*arguments), message)


def _idx(*shape, values=b"", magic=b"\0\0\x08"):
    sizes = b"".join(size.to_bytes(4, "big") for size in shape)
    return magic + bytes([len(shape)]) + sizes + (values or bytes(math.prod(shape)))


_IMAGES, _LABELS = _idx(20, 28, 28), _idx(20)
_RECORDS = bytes(2 * 3073)


@pytest.mark.parametrize(
    ("dataset", "contents", "message"),
    [
        ("mnist", [_IMAGES], "not complete: .* lacks train-labels-idx1-ubyte"),
        ("mnist", [_IMAGES[:-1], _LABELS] * 2, "train-images-idx3-ubyte is cut or damaged"),
        ("mnist", [_IMAGES, b"\x89PNG"] * 2, "not an IDX file of bytes .* starts with 89 50 4e"),
        ("mnist", [_LABELS, _IMAGES] * 2, "has 1 dimensions instead of 3"),
        ("mnist", [_IMAGES, _idx(19)] * 2, "has 20 images but 19 labels"),
        ("mnist", [_IMAGES, _idx(20, values=bytes(19) + b"\x0c")] * 2, "has the label 12 at"),
        ("cifar10", [_RECORDS, _RECORDS[:-1]], "test_batch.bin has 6145 bytes, which is not a"),
        ("cifar10", [b"\x0a" + _RECORDS[1:], _RECORDS], "has the label 10 at example 0"),
    ],
)
def test_data_that_cannot_be_used(dataset, contents, message, tmp_path):
    names = {
        "mnist": [
            "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
            "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
        ],
        "cifar10": ["data_batch_1.bin", "test_batch.bin"],
    }[dataset]  # fmt: skip
    for name, content in zip(names, contents, strict=False):
        (tmp_path / name).write_bytes(content)
    result = invoke(*SMALL, "--dataset", dataset, "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert_one_sentence(result, message)


def test_output_directories_that_cannot_be_used(tmp_path):
    (tmp_path / "letter").write_text("dear")
    result = invoke(*SMALL, "--out", tmp_path / "letter" / "run")
    assert_one_sentence(result, "letter/run cannot be written .*; change its permissions or choose")
    assert_one_sentence(invoke(*SMALL, "--out", tmp_path), "holds other files and no manifest")
    assert_one_sentence(invoke("plot", tmp_path), "there is no manifest.json in it")
    assert_one_sentence(invoke("plot", tmp_path / "letter"), "holds no run")
    for foreign in ("[1]", '{"name": "an app"}', '{"settings": 3, "status": "finished"}'):
        (tmp_path / "manifest.json").write_text(foreign)
        for arguments in (("plot", tmp_path), (*SMALL, "--out", tmp_path)):
            assert_one_sentence(invoke(*arguments), "manifest.json was written by something else")
    (tmp_path / "manifest.json").write_text('{"settings": ')
    assert_one_sentence(invoke("plot", tmp_path), "manifest.json could not be read as JSON")
    other = {
        "kind": "poem",
        "format_version": FORMAT_VERSION,
        "settings": {"what": "else"},
        "status": "running",
        "times": {},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(other))
    assert_one_sentence(invoke("plot", tmp_path), "holds a poem, which this version cannot draw")
    other["kind"] = "sweep"
    (tmp_path / "manifest.json").write_text(json.dumps(other))
    assert_one_sentence(invoke("plot", tmp_path), "not finished: run the same command again")
    told = r"belongs to other settings: allocation \(None there, .* now\), .* and \d+ more"
    assert_one_sentence(invoke(*SMALL, "--out", tmp_path), told)


def test_a_loss_that_is_not_finite_is_said(tmp_path):
    result = invoke(*SMALL, "--learning-rate", "1e12", "--out", tmp_path / "run")
    assert_one_sentence(result, "loss of model 0.* is not finite in epoch 1 of 2; choose a learn")


def test_methods_and_allocations_reach_the_sweep(monkeypatch, tmp_path):
    seen = []

    def run(config, *_, **__):
        seen.append(config)
        raise ValueError("enough")

    monkeypatch.setattr("jaxcomp.experiments.sweep.run_in_team", run)
    methods = [["--method", name] for name in ("optimal", "entropy_constrained", "vector")]
    allocations = [["--allocation", name] for name in ("equal", "optimal")]
    arguments = [word for pair in (*methods, *allocations) for word in pair]
    assert_one_sentence(invoke(*SMALL, *arguments, "--out", tmp_path / "run"), "enough")
    assert seen[0].method == ("optimal", "entropy_constrained", "vector")
    assert seen[0].allocation == ("equal", "optimal")


@pytest.mark.slow
def test_a_run_killed_in_training_and_in_scoring_continues_to_the_same_table(
    tmp_path, monkeypatch, programs_of_processes
):
    monkeypatch.setattr(pictures, "save_figures", lambda *_, **__: [])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert invoke(*SMALL, "--out", whole).exit_code == 0
    # What was compiled so far, in a folder where a killed process harms nobody.
    programs = tmp_path / "programs"
    shutil.copytree(
        programs_of_processes["JAX_COMPILATION_CACHE_DIR"], programs, copy_function=_linked
    )
    variables = programs_of_processes | {"JAX_COMPILATION_CACHE_DIR": str(programs)}
    networks = tmp_path / "networks"  # trained again: nothing comes from the cache
    monkeypatch.setenv("JAXCOMP_CACHE_DIR", str(networks))
    _kill_when(lambda: list(networks.glob("networks/*.checkpoint.npz")), variables, "--out", cut)
    assert [path.suffixes for path in networks.glob("networks/*.npz")] == [[".checkpoint", ".npz"]]
    _kill_when(lambda: list((cut / "variants").glob("*.json")), variables, "--out", cut)
    chunks = len(list((cut / "variants").glob("*.json")))
    assert 1 <= chunks < len(list((whole / "variants").glob("*.json")))
    assert json.loads((cut / "manifest.json").read_text())["status"] == "running"
    assert invoke(*SMALL, "--out", cut).exit_code == 0
    for name in ("table.csv", "claims.json", "report.md"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert not list(cut.glob("**/*.tmp"))


def _linked(source, target):
    """Link a file, or copy it to another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _kill_when(condition, variables, *arguments):
    """Start the sweep and kill it, as `kill -9` does, as soon as the condition is true."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLICED, *SMALL, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment() | variables,
    )
    try:
        while not condition():
            assert process.poll() is None, "the sweep ended before it could be killed"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
