"""Every kind of compressed model is told by its bytes, and used alike."""

import numpy as np
import pytest
import random_codes_problems as problem
from file_problems import golden_tree

from jaxcomp.compressed import to_bytes
from jaxcomp.decoder import FormatError, is_compressed, open_model, read_random_codes
from jaxcomp.decoder.files import HEADER_NAME
from jaxcomp.decoder.opening import CodesFile


def test_random_codes_are_opened_as_other_files(tmp_path):
    path = tmp_path / "any name"
    path.write_bytes(problem.file_bytes())
    with open_model(path) as file:
        assert isinstance(file, CodesFile)
        assert file.sources == (path,)
        assert file.paths == list(problem.PATHS)
        for entry in file.entries:
            np.testing.assert_array_equal(file.array(entry), problem.arrays()[entry.path])
        # Scales and indices, to the byte.
        assert sum(entry.length for entry in file.entries) == 4 * 2 + 4
        tree = file.tree()
    assert list(tree) == ["first", "list"]
    np.testing.assert_array_equal(tree["list"][0], problem.arrays()["list/0"])


def test_kinds_are_told_by_bytes(tmp_path):
    golden = golden_tree()
    kinds = {
        "a.jxr": problem.file_bytes(),
        "a.jxc": to_bytes(golden),
        "a.safetensors": to_bytes(golden, container="safetensors"),
        "a.index.json": b'{"weight_map": {"' + HEADER_NAME.encode() + b'": "a.safetensors"}}',
    }
    for name, data in kinds.items():
        (tmp_path / name).write_bytes(data)
        assert is_compressed(tmp_path / name), name
    for data in (b"", b"JX", b"\0" * 20):
        (tmp_path / "other").write_bytes(data)
        assert not is_compressed(tmp_path / "other")
    assert not is_compressed(tmp_path)
    assert type(open_model(kinds["a.jxc"])) is not CodesFile


def test_another_network_is_refused():
    wrong = problem.file_bytes(digest=bytes(32))
    with open_model(wrong) as file, pytest.raises(FormatError, match="SHA-256 of its arrays"):
        file.tree()
    with pytest.raises(FormatError, match="not those that were encoded"):
        read_random_codes(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tree": 5}, "its header is wrong"),
        ({"tree": ["array", 5]}, "its header is wrong"),
        ({"tree": ["array", "first/kernel"]}, "its tree has other arrays"),
        ({"layout": problem.LAYOUT._replace(shapes=((1,) * 40, (5,)))}, "too many axes"),
        (
            {"layout": problem.LAYOUT._replace(shapes=((1 << 27,), (5,)))},
            "more than the 268,435,456 that max_bytes allows",
        ),
    ],
)
def test_headers_of_others(changes, message):
    for read in (open_model, read_random_codes):
        with pytest.raises(FormatError, match=message):
            read(problem.file_bytes(**changes))
