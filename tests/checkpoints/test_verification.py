"""A compressed model that is whole is told so; one that is not is a sentence."""

import pytest
import random_codes_problems
from file_problems import small_tree

import jaxcomp
from jaxcomp.checkpoints import verify
from jaxcomp.compressed import to_bytes


def test_whole_and_damaged_models(tmp_path):
    path = tmp_path / "model.jxc"
    data = to_bytes(small_tree())
    path.write_bytes(data)
    told = []
    found = verify(path, report=lambda *step: told.append(step))
    assert found.num_arrays == 5
    assert found.size_bytes == len(data)
    assert set(found.kept) == {"bias", "steps/0"}
    assert found.checked == "all checksums and the SHA-256"
    with jaxcomp.decoder.File(data) as file:
        assert found.digest == file.digest.hex()
    assert [done for done, _, _ in told] == [0, 1, 2, 3, 4, 5]
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(jaxcomp.FormatError, match=r"the checksum of .* is wrong"):
        verify(path)


def test_random_codes(tmp_path):
    path = tmp_path / "model.jxr"
    path.write_bytes(random_codes_problems.file_bytes())
    found = verify(path)
    assert found.num_arrays == 2
    assert found.kept == ()
    assert found.checked == "the checksum, the check word and the SHA-256"
    path.write_bytes(random_codes_problems.file_bytes(digest=bytes(32)))
    with pytest.raises(jaxcomp.FormatError, match="the SHA-256 of its arrays is wrong"):
        verify(path)
