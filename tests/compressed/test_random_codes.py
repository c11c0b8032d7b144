"""Files of random codes: of known length, read without JAX to the same bits, refused if damaged."""

import jax
import numpy as np
import pytest

import jaxcomp
from jaxcomp.compressed import (
    random_code_of_size,
    random_codes_size,
    random_codes_to_bytes,
    save_random_codes,
)
from jaxcomp.decoder import FormatError, is_random_codes, read_random_codes
from jaxcomp.training import decode, encode, initial_posterior, random_code


@pytest.fixture(scope="module")
def network():
    draw = np.random.default_rng(0)
    kernel = draw.normal(size=(20, 6)).astype(np.float32)
    return {"layers": [{"kernel": kernel, "bias": np.zeros(6, np.float32)}], "scale": np.float32(2)}


@pytest.fixture(scope="module")
def sent(network):
    code = random_code(network, index_bytes=30, block_bits=5, seed=9)
    coded = encode(code, initial_posterior(code, network), jax.random.key(0))
    return code, coded, random_codes_to_bytes(code, coded)


def test_a_file_is_the_network_that_was_encoded(network, sent, tmp_path):
    code, coded, data = sent
    assert len(data) == random_codes_size(code)
    file = read_random_codes(data, seed=9)
    expected = decode(code, coded)
    assert jax.tree.structure(file.tree()) == jax.tree.structure(network)
    for found, own in zip(jax.tree.leaves(file.tree()), jax.tree.leaves(expected), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, own)
    path = tmp_path / "small.jxr"
    assert save_random_codes(code, coded, path) == len(data) == path.stat().st_size
    assert is_random_codes(path)
    np.testing.assert_array_equal(read_random_codes(path).indices, file.indices)


def test_a_damaged_file_is_refused(sent):
    data = sent[2]
    for place in range(len(data)):
        wrong = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        with pytest.raises(FormatError):
            read_random_codes(wrong)
    for cut in (data[:3], data[:11], data[:-1], data + b"\0"):
        with pytest.raises(FormatError):
            read_random_codes(cut)


def test_a_file_is_no_compressed_tree(sent, tmp_path):
    path = tmp_path / "small.jxr"
    path.write_bytes(sent[2])
    for source in (sent[2], path):
        with pytest.raises(
            ValueError, match=r"random codes.*decoder.read_random_codes\(.*tree\(\)"
        ):
            jaxcomp.load(source)


def test_another_seed_is_refused(sent):
    code, coded, data = sent
    with pytest.raises(FormatError, match="not those of the seed 10"):
        read_random_codes(data, seed=10)
    other = code._replace(layout=code.layout._replace(seed=10))
    with pytest.raises(ValueError, match="those of another code"):
        random_codes_to_bytes(other, coded)
    with pytest.raises(ValueError, match="encode them all"):
        random_codes_to_bytes(code, coded._replace(indices=coded.indices.at[3].set(-1)))


def test_the_size_of_a_file_is_kept(network):
    for size in (180, 230):
        code = random_code_of_size(network, size, block_bits=7)
        assert size - 3 < random_codes_size(code) <= size
    with pytest.raises(ValueError, match="choose more than the 60 bytes given"):
        random_code_of_size(network, 60)
