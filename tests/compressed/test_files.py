"""Trees come back from files bit for bit, whatever is in them, and files are small."""

import json
import math
from collections import OrderedDict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from file_problems import DTYPES, any_bits, assert_same_bits, bits_of, kept, small_tree
from slow_cases import some_slow
from tree_problems import METHODS, nested_dict, weights

import jaxcomp
from jaxcomp import compress, decoder, inspect, load
from jaxcomp.compressed import to_bytes
from jaxcomp.compressed.files import FileSizes
from jaxcomp.quantizers import KMeans, RoundToNearest, Vector


@pytest.fixture(scope="module")
def tree():
    return small_tree()


@pytest.mark.parametrize("name", some_slow(METHODS, "optimal", "vector"))
def test_every_method(name):
    tree = compress({"kernel": weights(1), "bias": weights(2, (8,))}, METHODS[name])
    data = to_bytes(tree)
    found = load(data)
    assert_same_bits(found.params(), tree.params())
    assert found.layout.leaves[1].method.name == tree.layout.leaves[1].method.name
    assert found.report().size_bits == pytest.approx(tree.report().size_bits)
    with decoder.File(data) as file:
        for path, values in tree.params().items():
            assert bits_of(file.tree()[path]) == bits_of(values)
    bare = to_bytes(tree, container="bare")
    stored = decoder.decode_bare(bare, [("float32", (8,)), ("float32", (12, 8))])
    for found, expected in zip(stored, jax.tree.leaves(tree.params()), strict=True):
        assert bits_of(found) == bits_of(expected)


def test_sizes_are_known_without_the_file(tree):
    sizes = FileSizes()
    for one in (tree, compress(nested_dict(), METHODS["kmeans"])):
        data = to_bytes(one)
        assert sizes.of_tree(one) == len(data)
        entries = iter(inspect(data).entries)
        leaf, layout = one.leaves[0], one.layout.leaves[0]
        assert sizes.of_leaf(leaf, layout) == next(entries).size_bytes


@pytest.mark.parametrize("dtype", some_slow(["float16", "bfloat16", "float64"], "float16"))
@pytest.mark.parametrize(
    "method",
    [
        METHODS["uniform"],
        RoundToNearest(4),
        METHODS["kmeans by channel"],
        METHODS["trellis_coded"],
    ],
)
def test_weights_of_other_dtypes(method, dtype):
    values = np.asarray(weights(1)).astype(jnp.dtype(dtype))
    with pytest.warns() if dtype == "float64" else _nothing():
        tree = compress({"kernel": values}, method)
    data = to_bytes(tree)
    assert_same_bits(load(data).params(), tree.params())
    (stored,) = jax.tree.leaves(decoder.File(data).tree())
    assert stored.tobytes() == np.asarray(tree.params()["kernel"]).tobytes()


def _nothing():
    import contextlib

    return contextlib.nullcontext()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_kept_leaves_of_every_dtype(dtype):
    shapes = [(), (0,), (3, 0), (1,), (7,), (4, 5), (2, 3, 4), (300,)]
    tree = kept({str(place): any_bits(dtype, shape) for place, shape in enumerate(shapes)})
    data = to_bytes(tree)
    assert_same_bits(load(data).params(), tree.params())
    raw = sum(np.dtype(dtype).itemsize * math.prod(shape) for shape in shapes)
    if np.dtype(dtype).name in ("bool", "int2", "uint2", "int4", "uint4", "float4_e2m1fn"):
        raw = raw // 2
    for entry in inspect(data).entries:
        assert entry.size_bytes <= math.prod(entry.shape) * np.dtype(dtype).itemsize + 5
    assert sum(entry.size_bytes for entry in inspect(data).entries) <= raw + 5 * len(shapes)


def test_numbers_that_are_no_numbers():
    special = np.asarray([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3.4e38], np.float32)
    special = np.concatenate([special, np.asarray([0x7F800001], np.uint32).view(np.float32)])
    mostly_zero = np.zeros(500, np.float32)
    mostly_zero[7:16] = special
    tree = kept({"few": special, "sparse": mostly_zero})
    data = to_bytes(tree)
    assert_same_bits(load(data).params(), tree.params())
    assert inspect(data).entries[1].size_bytes < 80


def test_long_axes():
    long = np.zeros((3, 70_000), np.int8)
    long[1, ::1000] = 5
    tree = kept({"long": long, "tall": np.arange(66_000, dtype=np.uint16)[:, None]})
    assert_same_bits(load(to_bytes(tree)).params(), tree.params())


class Pair(NamedTuple):
    left: object
    right: object


def test_trees_of_every_kind():
    params = {
        "b": [np.arange(3), (np.arange(2.0), None, {})],
        "a": OrderedDict([("z", np.ones(2)), ("y", np.zeros(1, bool))]),
    }
    parts = [{3: params["b"]}, {(1, "x"): params["a"]}, [], {}, np.arange(3)]
    for part in (params, *parts, {"constants": ["a\n\x22é", True, -0.1]}):
        tree = kept(part)
        found = load(to_bytes(tree)).params()
        assert_same_bits(found, tree.params())
    with decoder.File(to_bytes(kept({"p": params["b"], "q": params["a"]}))) as file:
        plain = file.tree()
    assert list(plain) == ["p", "q"]
    assert isinstance(plain["p"][1], tuple)
    assert plain["p"][1][1] is None
    assert list(plain["q"]) == ["z", "y"]


def test_other_nodes_come_as_dicts_or_like_the_original():
    params = Pair(np.arange(3), {"call": print, "w": np.ones(2)})
    data = to_bytes(kept(params))
    with pytest.raises(ValueError, match=r"right/call.*pass like="):
        load(data)
    assert_same_bits(load(data, like=params).params(), params)
    assert load(data, like=params).params().right["call"] is print
    with pytest.raises(ValueError, match="like has no leaves"):
        load(data, like={"left": 1})
    found = load(to_bytes(kept(Pair(np.arange(3), np.ones(2))))).params()
    assert found.keys() == {"left", "right"}


def test_random_keys():
    params = {"key": jax.random.key(3), "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3)}
    found = load(to_bytes(kept(params))).params()
    for name in params:
        assert found[name].dtype == params[name].dtype
        assert bits_of(found[name]) == bits_of(params[name])


def test_tied_arrays_are_stored_once():
    table = np.asarray(weights(1))
    params = {
        "embed": table,
        "head": {"kernel": table.T, "again": table.reshape(4, 24)},
        "z": table,
    }
    for tree in (kept(params), compress(params, KMeans(5))):
        data = to_bytes(tree)
        assert len(inspect(data).entries) == 1
        found = load(data)
        assert_same_bits(found.params(), tree.params())
        assert found.layout.leaves[0].paths == ("embed", "head/again", "head/kernel", "z")
        plain = decoder.File(data).tree()
        assert bits_of(plain["head"]["kernel"]) == bits_of(tree.params()["head"]["kernel"])
        assert np.shares_memory(plain["head"]["kernel"], plain["z"])


STACKED = (
    KMeans(5),
    RoundToNearest(4),
    Vector(5),
    METHODS["trellis_coded"],
    KMeans(5, scale="channel", group_size=5),
)


# Golden files hold vectors, too.
@pytest.mark.parametrize("method", some_slow(STACKED, Vector(5)))
def test_stacks_of_layers(method):
    params = {"kernel": weights(1, (3, 12, 8))}
    tree = compress(params, method, stacked="*")
    data = to_bytes(tree)
    found = load(data)
    assert_same_bits(found.params(), tree.params())
    assert found.tensor("kernel").codebook is None or (
        bits_of(found.codebook("kernel")) == bits_of(tree.codebook("kernel"))
    )
    assert bits_of(decoder.File(data).tree()["kernel"]) == bits_of(tree.params()["kernel"])


def test_what_is_loaded_is_a_tree_like_any_other(tree, tmp_path):
    assert tree.save(tmp_path / "new" / "model.jxc") == (tmp_path / "new/model.jxc").stat().st_size
    found = load(tmp_path / "new" / "model.jxc")
    for path in ("coded", "rounded"):
        assert bits_of(found.codes(path)) == bits_of(tree.codes(path))
        assert bits_of(found.tensor(path).counts) == bits_of(tree.tensor(path).counts)
    assert bits_of(found.codebook("coded")) == bits_of(tree.codebook("coded"))
    rows = {layer.path: layer for layer in found.report()}
    assert rows["rounded"].parameter == 4
    assert rows["pruned"].parameter == 0.5
    for layer in tree.report():
        own = rows[layer.path]
        assert own.entropy_bits_per_weight == pytest.approx(layer.entropy_bits_per_weight)
        assert math.isnan(own.distortion)
        assert math.isnan(own.signal_to_noise_db)
    assert "nan" in str(found.report())
    # And can be written again: the same bytes.
    assert to_bytes(found) == to_bytes(tree)


def test_containers(tree, tmp_path):
    path = tmp_path / "model.safetensors"
    tree.save(path, made={"method": "mixed", "budget": [3, None]})
    assert_same_bits(load(path).params(), tree.params())
    listed = safetensors.numpy.load_file(path)
    assert set(listed) == {"jaxcomp.header", "coded", "rounded", "pruned", "bias", "steps/0"}
    with decoder.File(to_bytes(tree)) as file:
        for entry in file.entries:
            section = listed[entry.path].tobytes()
            assert section == to_bytes(tree)[entry.offset :][: entry.length]
    assert inspect(path).made == {"method": "mixed", "budget": [3, None]}
    spec = [("float32", (5,)), *[("float32", (12, 8))] * 3, ("int64", ())]
    bare = to_bytes(tree, container="bare")
    assert len(bare) < len(to_bytes(tree)) - 200
    arrays = decoder.decode_bare(bare, spec)
    for found, expected in zip(arrays, jax.tree.leaves(tree.params()), strict=False):
        assert bits_of(found) == bits_of(expected)
    for wrong in (spec[:-1], [*spec[:-1], ("int32", ())], spec[::-1]):
        with pytest.raises(jaxcomp.FormatError):
            decoder.decode_bare(bare, wrong)


def test_names_shapes_and_checks_cost_little():
    sizes = {}
    for layers in (1, 6):
        params = {
            f"encoder/layer_{n}": {
                f"{part}": {"kernel": np.zeros((96, 96), np.float32), "bias": np.zeros(96)}
                for part in ("query", "key", "value", "attention_output", "up", "down")
            }
            for n in range(layers)
        }
        sizes[layers] = inspect(to_bytes(kept(params))).overhead_bytes
    assert sizes[1] <= 300 + 25 * 6
    assert sizes[6] <= sizes[1] + 25 * 12 * 5
    lenet = {f"fc{n}.{part}": np.ones((2,)) for n in (1, 2, 3) for part in ("weight", "bias")}
    assert inspect(to_bytes(kept(lenet))).overhead_bytes <= 300


def test_inspect_lists_what_is_in_a_file(tree, tmp_path):
    tree.save(tmp_path / "model.jxc")
    contents = inspect(tmp_path / "model.jxc")
    by_path = {entry.path: entry for entry in contents.entries}
    assert by_path["coded"].method == "entropy_constrained"
    assert by_path["bias"].method == "kept"
    assert by_path["coded"].shape == (12, 8)
    assert by_path["coded"].bits_per_weight == 8 * by_path["coded"].size_bytes / 96
    shares = sum(entry.share for entry in contents.entries)
    assert shares * contents.size_bytes + contents.overhead_bytes == pytest.approx(
        (tmp_path / "model.jxc").stat().st_size
    )
    assert contents.original_bytes == 3 * 384 + 20 + 8
    text = str(contents)
    for word in ("coded", "12x8", "float32", "entropy_constrained", "ratio", "scalar"):
        assert word in text


def test_efforts(tree):
    rng = np.random.default_rng(0)
    params = {"mask": np.repeat(rng.random((100, 1)) < 0.5, 64, axis=1)}
    sizes = {
        effort: len(to_bytes(kept(params), effort=effort)) for effort in ("fast", "best", None)
    }
    assert sizes["best"] == sizes[None] < sizes["fast"] - 500
    with pytest.raises(ValueError, match="effort must be fast, best or None, got 'most'"):
        to_bytes(tree, effort="most")
    with pytest.raises(ValueError, match="container must be jxc, safetensors or bare, got 'zip'"):
        to_bytes(tree, container="zip")


def test_the_same_bytes_on_every_call(tree):
    assert to_bytes(tree) == to_bytes(small_tree())


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../b", "..", "c:\\x", "a\nb", "a\\..\\b"])
def test_names_that_would_be_paths_are_refused(name):
    with pytest.raises(ValueError, match=r"the tree cannot be stored: the name .* is a path"):
        to_bytes(kept({name: np.arange(3)}))


def test_the_name_of_the_header_is_taken():
    tree = kept({"jaxcomp.header": np.arange(3)})
    assert_same_bits(load(to_bytes(tree)).params(), tree.params())
    with pytest.raises(ValueError, match="has the name of the header"):
        to_bytes(tree, container="safetensors")


def test_dtypes_that_no_file_holds():
    with pytest.raises(TypeError, match=r"an array of \w+ cannot be stored"):
        to_bytes(kept({"wide": np.zeros(2, np.longdouble)}))


def test_traced_trees_are_refused():
    with pytest.raises(TypeError, match="files need arrays with known values"):
        jax.jit(lambda own: len(to_bytes(own)))(kept({"a": np.arange(3)}))


def test_a_failed_write_leaves_the_old_file(tree, tmp_path, monkeypatch):
    path = tmp_path / "model.jxc"
    tree.save(path)
    old = path.read_bytes()
    monkeypatch.setattr(
        "os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(OSError, match="could not be written"):
        tree.save(path, made={"a": 1})
    assert path.read_bytes() == old
    assert [one.name for one in tmp_path.iterdir()] == ["model.jxc"]


def test_nested_trees_of_codes():
    tree = compress(nested_dict(), KMeans(5))
    assert_same_bits(load(to_bytes(tree)).params(), tree.params())


def test_the_first_line_of_the_header_is_plain_json(tree):
    with decoder.File(to_bytes(tree)) as file:
        assert json.loads(file.identity) == file.header
        assert file.header["arrays"][1] == ["float32", 12, 8]
