"""What is decoded is the network of the file, bit for bit, and what is charged decodes to it."""

import json
from contextlib import ExitStack

import jax
import numpy as np
import pytest
import safetensors.numpy
from certificate_problems import problem
from file_problems import assert_same_bits

import jaxcomp
from jaxcomp.bounds import self_delimiting_bits
from jaxcomp.certificates import architecture_of
from jaxcomp.certificates.architecture import read_architecture
from jaxcomp.certificates.decoded import decode, weights_of
from jaxcomp.checkpoints import decompress, open_checkpoint
from jaxcomp.compressed import random_codes_to_bytes, to_bytes
from jaxcomp.decoder import read_random_codes
from jaxcomp.training import encode, initial_posterior, random_code


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return problem(tmp_path_factory.mktemp("decoded"))


@pytest.fixture
def fixed(case, tmp_path):
    def write(source, **more):
        path = tmp_path / "architecture.json"
        path.write_text(json.dumps(json.loads(architecture_of(source)) | more))
        return read_architecture(path)

    return write


def test_file(case):
    found = decode(case.file)
    size = case.file.stat().st_size
    assert_same_bits(found.params, jaxcomp.load(case.file).params())
    assert found.size_bits == 8 * size + float(self_delimiting_bits(size))
    assert decode(case.file.read_bytes())[1:] == found[1:]


def test_file_of_random_codes(fixed, case, tmp_path):
    network = {"b": np.zeros(3, np.float32), "w": np.ones((4, 3), np.float32)}
    code = random_code(network, index_bytes=6, block_bits=4)
    coded = encode(code, initial_posterior(code, network), jax.random.key(0))
    data = random_codes_to_bytes(code, coded)
    found = decode(data)
    assert_same_bits(found.params, read_random_codes(data).tree())
    assert found.size_bits == 8 * len(data) + float(self_delimiting_bits(len(data)))
    with pytest.raises(ValueError, match="has no bare stream"):
        decode(data, architecture=fixed(case.file))
    path = tmp_path / "small.jxr"
    path.write_bytes(data)
    with ExitStack() as stack:
        assert_same_bits(weights_of(stack, path, None), found.params)
    assert fixed(path).arrays == (("b", "float32", (3,)), ("w", "float32", (4, 3)))


def test_file_of_differences(case, tmp_path):
    back = tmp_path / "back.safetensors"
    with open_checkpoint(case.prior) as prior:
        found = decode(case.differences, prior=prior)
        decompress(case.differences, back, reference=prior)
    assert_same_bits(found.params, safetensors.numpy.load_file(back))
    assert found.holds_differences


def test_fixed_architecture(case, fixed):
    architecture = fixed(case.file)
    found = decode(case.file, architecture=architecture)
    stream = to_bytes(jaxcomp.load(case.file), container="bare", effort="best")
    assert found.size_bytes == len(stream) < case.file.stat().st_size
    assert_same_bits(found.params, jaxcomp.load(case.file).params())
    # The stream itself is enough.
    bare = decode(stream, architecture=architecture)
    assert_same_bits(bare.params, jax_free(found.params))
    assert bare.size_bits == found.size_bits
    # A choice that was not fixed is charged.
    chosen = decode(case.file, architecture=fixed(case.file, choices={"levels": 4, "d": 8}))
    assert chosen.size_bits == pytest.approx(found.size_bits + 5)


def jax_free(params):
    return {name: np.asarray(values) for name, values in params.items()}


def test_fixed_architecture_of_differences(case, fixed):
    architecture = fixed(case.differences)
    with open_checkpoint(case.prior) as prior:
        found = decode(case.differences, prior=prior, architecture=architecture)
        whole = decode(case.differences, prior=prior)
    assert_same_bits(found.params, whole.params)
    assert found.size_bytes < whole.size_bytes
    assert found.holds_differences


def test_another_architecture(case, fixed):
    with pytest.raises(ValueError, match="which are not those of the architecture"):
        decode(case.file, architecture=fixed(case.file, arrays=[["fc1.bias", "float32", [6]]]))
    with pytest.raises(ValueError, match="describes no architecture"):
        fixed(case.file, choices={"d": 0})
    with pytest.raises(ValueError, match="describes no architecture"):
        fixed(case.file, arrays=[["fc1.bias", "float32", [-6]]])


def test_empty_file_needs_a_prior():
    with pytest.raises(ValueError, match="the prior itself: give a prior"):
        decode(b"")
