"""The commands on files, in one process; what they refuse."""

import json

import numpy as np
import pytest
import random_codes_problems
import safetensors.numpy
from command_line import assert_one_sentence, invoke
from file_problems import small_tree
from matplotlib.image import imread

from jaxcomp.cli import files
from jaxcomp.cli.files import MethodName
from jaxcomp.compressed.compress import DEFAULT
from jaxcomp.quantizers import METHODS, HessianRounding, KMeans

QUICK = ["--method", "round-to-nearest", "--quiet"]


def model():
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.normal(size=(12, 8)).astype(np.float32),
        "a.bias": np.zeros(8, np.float32),
    }


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(model(), path)
    return path


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.jxc"
    small_tree().save(path)
    return path


def test_several_files_there_and_back(source, tmp_path):
    small, back = tmp_path / "small.safetensors", tmp_path / "back.safetensors"
    done = invoke("compress", source, "-o", small, *QUICK, "--shard-size", "100", "--json")
    assert done.exit_code == 0, done.output
    index = json.loads(done.stdout)["target"]
    assert index == f"{small}.index.json"
    assert "a.weight" in invoke("inspect", index).stdout
    assert invoke("verify", index).exit_code == 0
    done = invoke("decompress", index, "-o", back, "--shard-size", "0.1kB", "--json")
    assert done.exit_code == 0, done.output
    names = (f"back-0000{number}-of-00002.safetensors" for number in (1, 2))
    assert json.loads(done.stdout)["files"] == [
        f"{back}.index.json",
        *(str(tmp_path / name) for name in names),
    ]
    assert invoke("diff", index, f"{back}.index.json").exit_code == 0


def test_there_and_back(source, tmp_path):
    small, back = tmp_path / "small.jxc", tmp_path / "back.safetensors"
    done = invoke("compress", source, "-o", small, *QUICK, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["size_bytes"] == small.stat().st_size
    assert told["num_weights"] == 96
    shown = invoke("inspect", small)
    assert "a.weight" in shown.stdout
    assert f"in {told['size_bytes']:,}" in shown.stdout
    assert json.loads(invoke("inspect", small, "--json").stdout)["entries"][0]["path"] == "a.bias"
    done = invoke("decompress", small, "-o", back)
    assert done.exit_code == 0, done.output
    # Weights that were compressed differ; those of the file and those it came from do not.
    same = invoke("diff", small, back)
    assert same.exit_code == 0, same.output
    assert same.stdout == "2 of 2 tensors are the same\n"
    other = invoke("diff", source, small, "--json")
    assert other.exit_code == 1
    kinds = {row["path"]: row["kind"] for row in json.loads(other.stdout)["tensors"]}
    assert kinds == {"a.weight": "values", "a.bias": "same"}
    checked = invoke("verify", small, source)
    assert checked.exit_code == 0
    assert "all checksums and the SHA-256 fit" in checked.stdout
    assert "a.weight  12x8  values  relative error 0." in checked.stdout
    assert "checking" in checked.stderr
    # The difference to a model is decompressed by that model.
    done = invoke("compress", source, "-o", small, *QUICK, "--reference", back)
    assert done.exit_code == 0, done.output
    assert_one_sentence(invoke("decompress", small, "-o", back), "holds differences to another")
    assert_one_sentence(invoke("verify", small, source, "-q"), "holds differences to another")
    checked = invoke("verify", small, source, "--reference", back)
    assert checked.exit_code == 0, checked.output
    # A kept tensor that is another is told by the exit code.
    safetensors.numpy.save_file(model() | {"a.bias": np.ones(8, np.float32)}, source)
    assert invoke("verify", small, source, "--reference", back).exit_code == 1


def test_random_codes_go_wherever_compressed_models_do(tmp_path):
    small, back, picture = (tmp_path / name for name in ("a.jxr", "a.safetensors", "a.png"))
    data = random_codes_problems.file_bytes()
    small.write_bytes(data)
    shown = invoke("inspect", small, "--plot", picture)
    assert shown.exit_code == 0, shown.output
    assert "list/0" in shown.stdout
    assert "4 blocks with an index of 7 bits" in shown.stdout
    assert picture.exists()
    told = json.loads(invoke("inspect", small, "--json").stdout)
    assert told["code"]["num_blocks"] == 4
    assert invoke("decompress", small, "-o", back).exit_code == 0
    assert invoke("diff", small, back).stdout == "2 of 2 tensors are the same\n"
    checked = invoke("verify", small, back)
    assert checked.exit_code == 0
    assert "2 arrays, the checksum, the check word and the SHA-256 fit" in checked.stdout
    small.write_bytes(data[:-1] + bytes([data[-1] ^ 16]))
    for command in (["inspect"], ["verify"], ["decompress", "-o", back], ["diff", back]):
        assert_one_sentence(invoke(*command, small), "damaged, cut or none .* checksum is wrong")


def test_options_reach_the_library(monkeypatch, source, tmp_path):
    seen = {}

    def compress_file(*arguments, **options):
        seen.update(options, arguments=arguments)
        raise ValueError("enough")

    monkeypatch.setattr("jaxcomp.compressed.compress_file", compress_file)
    hook = tmp_path / "data.py"
    hook.write_text(
        "def predict_fn(params, inputs): return inputs\n"
        "loss = 'squared_error'\n"
        "def batches(): return [(1, 2)]\n"
    )
    result = invoke(
        "compress", source, "-o", tmp_path / "a.jxc", "--size", "1.5KB", "--bits-per-weight", "3",
        "--ratio", "8", "--mse", "0.1", "--max-loss-increase", "0.2", "--method", "kmeans",
        "--scale", "channel", "--keep", "a*", "--keep", "b", "--lossless", "--convert-float8",
        "--effort", "fast", "--record", "--hook", hook, "--reference", source, "-q",
        "--shard-size", "2MB",
    )  # fmt: skip
    assert_one_sentence(result, "enough")
    assert seen.pop("arguments") == (source, tmp_path / "a.jxc", KMeans(scale="channel"))
    data = seen.pop("data")
    assert (data.loss, data.batches) == ("squared_error", [(1, 2)])
    assert seen == {
        "bits_per_weight": 3.0, "size_bytes": 1500.0, "ratio": 8.0, "max_mean_squared_error": 0.1,
        "max_loss_increase": 0.2, "keep": ("a*", "b"), "lossless": True, "convert_float8": True,
        "effort": "fast", "record": True, "reference": source, "shard_size": 2e6,
        "importance": None, "stream": None, "jobs": None,
    }  # fmt: skip
    # Without a method: that of the library, and with data the strongest.
    for more, method in ([], DEFAULT), (["--hook", hook], HessianRounding()):
        invoke("compress", source, "-o", tmp_path / "a.jxc", *more)
        assert seen["arguments"][2] == method


def test_all_methods_have_names():
    assert {name.name for name in MethodName} == {method.name for method in METHODS}
    assert all(name.value == name.name.replace("_", "-") for name in MethodName)


@pytest.mark.parametrize(
    ("text", "size"), [("21500", 21500), ("40KB", 40000), ("1.5 mb", 1.5e6), ("2KiB", 2048)]
)
def test_sizes(text, size):
    assert files._size(text) == size


def test_a_picture(small, tmp_path):
    dark = invoke("inspect", small, "--plot", tmp_path / "a.png", "--style", "dark")
    assert dark.exit_code == 0
    assert imread(tmp_path / "a.png")[0, 0, :3].max() < 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "SOURCE", "-o", "OUT", "--size", "much"], "'much' is no size; write 21500"),
        (["compress", "nowhere", "-o", "OUT"], "there is no nowhere; name a compressed model"),
        (["compress", "SOURCE", "-o", "SOURCE"], "is what is read; name another file"),
        (["compress", "SOURCE", "-o", "OUT", "--hook", "no.py"], "there is no file no.py"),
        (["decompress", "SMALL", "-o", "a.h5"], "tells no format"),
        (["inspect", "nowhere"], "there is no file nowhere"),
        (["inspect", "SOURCE"], "is no compressed model; make one by"),
        (["verify", "SOURCE"], "is no compressed model; make one by"),
        (["diff", "SOURCE", "nowhere"], "there is no nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments, message, source, small):
    names = {"SOURCE": source, "SMALL": small, "OUT": source.with_name("out.jxc")}
    before = sorted(source.parent.iterdir())
    assert_one_sentence(invoke(*(names.get(one, one) for one in arguments)), message)
    assert sorted(source.parent.iterdir()) == before


def test_stopped(source, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxcomp.compressed.compress_file", stopped)
    result = invoke("compress", source, "-o", source.with_name("a.jxc"))
    assert result.exit_code == 130
    assert result.stderr.startswith("stopped; no file was written.")


@pytest.mark.parametrize("command", ["compress", "decompress", "inspect", "verify", "diff"])
def test_help_has_an_example(command):
    result = invoke(command, "--help")
    assert f"jaxcomp {command}" in " ".join(result.stdout.split())
    assert "Example" in result.stdout
