"""Golden files pin the bytes: what was written once is read everywhere, for ever.

`python -c "import test_golden; test_golden.write()"` in this folder, with `tests` on the path,
writes them anew after a deliberate change of the format.
"""

import hashlib
import os
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from decoder_oracles import PlainStack
from file_problems import assert_same_bits, bits_of, golden_tree

from jaxcomp import decoder, load
from jaxcomp.compressed import to_bytes
from jaxcomp.decoder import arrays as decoder_arrays

FOLDER = Path(__file__).parent / "golden"
CONTAINERS = ("jxc", "safetensors", "bare")


def write():
    for container in CONTAINERS:
        (FOLDER / f"model.{container}").write_bytes(to_bytes(golden_tree(), container=container))


def golden(container):
    return (FOLDER / f"model.{container}").read_bytes()


def digest_of(values):
    hashed = hashlib.sha256()
    for one in values:
        hashed.update(np.ascontiguousarray(one).tobytes())
    return hashed.hexdigest()


@pytest.mark.parametrize("container", ["jxc", "safetensors"])
def test_golden_files_are_read(container):
    assert_same_bits(load(golden(container)).params(), golden_tree().params())


def test_golden_files_are_read_with_64_bits(x64):
    expected = golden_tree().params()
    assert_same_bits(load(golden("jxc")).params(), expected)
    assert load(golden("jxc")).params()["rest"][0]["count"].dtype == np.int64


def test_the_encoder_writes_golden_streams():
    # Other versions of zlib compress headers otherwise: what is in them is the same.
    tree = golden_tree()
    with decoder.File(to_bytes(tree)) as own, decoder.File(golden("jxc")) as other:
        assert own.identity == other.identity
        assert own.digest == other.digest
        for one, entry in zip(own.entries, other.entries, strict=True):
            assert one._replace(offset=0) == entry._replace(offset=0)
    assert to_bytes(tree, container="bare") == golden("bare")


def spec():
    with decoder.File(golden("jxc")) as file:
        return [(entry.dtype, entry.shape) for entry in file.entries]


def test_the_plain_decoder_reads_the_golden_stream(monkeypatch):
    own = decoder.decode_bare(golden("bare"), spec())
    monkeypatch.setattr(decoder_arrays, "Stack", PlainStack)
    for one, other in zip(decoder.decode_bare(golden("bare"), spec()), own, strict=True):
        assert bits_of(one) == bits_of(other)


def test_a_process_without_jax_reads_them():
    code = (
        "import sys\n"
        "for name in ('jax', 'ml_dtypes', 'scipy', 'jaxtyping', 'flax', 'optax'):\n"
        "    sys.modules[name] = None\n"
        "import hashlib, numpy as np\n"
        "from jaxcomp import decoder\n"
        "def leaves(node):\n"
        "    if isinstance(node, dict): node = [node[key] for key in sorted(node)]\n"
        "    if isinstance(node, np.ndarray): return [node]\n"
        "    is_inner = isinstance(node, (list, tuple))\n"
        "    return [leaf for part in node for leaf in leaves(part)] if is_inner else []\n"
        f"for name in ('jxc', 'safetensors'):\n"
        f"    tree = decoder.File({str(FOLDER)!r} + '/model.' + name).tree()\n"
        "    hashed = hashlib.sha256()\n"
        "    for one in leaves(tree): hashed.update(np.ascontiguousarray(one).tobytes())\n"
        "    print(hashed.hexdigest())\n"
        "print(sorted(n for n in sys.modules if n.startswith('jaxcomp')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(decoder.__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    arrays = [one for one in jax.tree.leaves(golden_tree().params()) if hasattr(one, "dtype")]
    # NumPy has no int4: numbers of four bits come in eight.
    arrays = [np.asarray(one) for one in arrays]
    expected = digest_of(one.astype("i1") if one.dtype.name == "int4" else one for one in arrays)
    own = done.stdout.splitlines()
    assert own[:2] == [expected] * 2
    modules = ("arrays", "contents", "files", "opening", "random_codes", "streams")
    assert own[2] == str(
        ["jaxcomp", "jaxcomp.decoder", *(f"jaxcomp.decoder.{name}" for name in modules)]
    )


def test_the_header_is_as_specified():
    data = golden("jxc")
    assert data[:4] == b"JXC\x01"
    length, checksum = np.frombuffer(data[4:12], "<u4").tolist()
    block = data[12 : 12 + length]
    assert zlib.crc32(block) == checksum
    inflater = zlib.decompressobj(-15)
    first, _ = inflater.decompress(block).split(b"\n")
    rest = inflater.unused_data
    hashed = hashlib.sha256(first)
    with decoder.File(data) as file:
        assert len(rest) == 32 + 4 * len(file.entries)
        for entry in file.entries:
            hashed.update(file.array(entry).tobytes())
    assert hashed.digest() == rest[:32]
