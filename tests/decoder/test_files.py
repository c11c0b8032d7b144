"""Whatever is wrong with a file is a sentence: no crash, no wrong network, nothing too large."""

import hashlib
import io
import itertools
import json
import random
import re
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from file_problems import bits_of
from forgeries import Forgery, forged, framed, random_file

import jaxcomp
from jaxcomp.coding.arrays import write_parts
from jaxcomp.coding.streams import StackWriter
from jaxcomp.decoder import File, FormatError
from jaxcomp.decoder.arrays import Parts

GOLDEN = Path(__file__).parent / "golden"
DATA = (GOLDEN / "model.jxc").read_bytes()
TENSORS = (GOLDEN / "model.safetensors").read_bytes()


def read(data, **options):
    with File(data, **options) as file:
        return file.tree()


def leaves(node):
    """All leaves of a decoded tree."""
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list | tuple):
        return [leaf for part in node for leaf in leaves(part)]
    return [node]


def same(one, other):
    pairs = itertools.zip_longest(leaves(one), leaves(other))
    return all(bits_of(left) == bits_of(right) for left, right in pairs)


@pytest.fixture(scope="module")
def expected():
    return read(DATA)


def small_file():
    """A file of two arrays of a few bytes."""
    arrays = [np.asarray([1, -2, 3], np.int8), np.asarray([7, 200], np.uint8)]

    def change(file):
        tree = ["dict", [["a", ["array", "a"]], ["b", ["array", "b"]]]]
        file.first = {"tree": tree, "arrays": [["int8", 3], ["uint8", 2]]}
        file.sections = []
        hashed = hashlib.sha256(json.dumps(file.first, separators=(",", ":")).encode())
        for values in arrays:
            writer = StackWriter()
            write_parts(writer, Parts(values), values.dtype.name, values.shape, "fast")
            file.sections.append(writer.to_bytes())
            hashed.update(values.tobytes())
        lengths = [len(section) for section in file.sections]
        file.second = {"lengths": lengths, "methods": ["kept", "kept"], "codes": "pp"}
        file.digest = hashed.digest()

    return forged(DATA, change)


def test_truncation_at_every_byte():
    data = small_file()
    assert len(leaves(read(data))) == 2
    for length in range(len(data)):
        with pytest.raises(FormatError):
            read(data[:length])
    for length in range(0, len(TENSORS), 7):
        with pytest.raises(FormatError):
            read(TENSORS[:length])


def test_every_flip_of_a_bit():
    data = small_file()
    for place, bit in itertools.product(range(len(data)), range(8)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        with pytest.raises(FormatError):
            read(bytes(flipped))


def test_a_flip_in_safetensors_is_found_or_changes_nothing(expected):
    length = 8 + int.from_bytes(TENSORS[:8], "little")
    for place in [*range(0, length, 5), *range(length, len(TENSORS), 29)]:
        flipped = bytearray(TENSORS)
        flipped[place] ^= 1 << place % 8
        try:
            found = read(bytes(flipped))
        except FormatError:
            continue
        assert place < length  # a name in its metadata
        assert same(found, expected)


def test_swapped_sections():
    def swap(file):
        # Two of equal length: only their checksums tell them apart.
        file.sections[0], file.sections[1] = file.sections[1], file.sections[0]
        lengths = file.second["lengths"]
        lengths[0], lengths[1] = lengths[1], lengths[0]

    plain = forged(DATA, lambda file: None)
    data = forged(DATA, swap)
    checks = Forgery(plain)
    # With checksums of the sections in their old order, and with those of the new one.
    with pytest.raises(FormatError):
        read(data)
    start = len(plain) - sum(map(len, checks.sections))
    swapped = checks.sections.copy()
    swapped[2], swapped[3] = swapped[3], swapped[2]
    with pytest.raises(FormatError, match="checksum"):
        read(plain[:start] + b"".join(swapped))


@pytest.mark.parametrize("data", [DATA, TENSORS])
def test_bytes_after_the_end(data):
    with pytest.raises(FormatError, match=r"follows its last (section|tensor)"):
        read(data + b"\0")


def in_tree(node):
    return lambda file: file.first.update(tree=node)


def in_arrays(place, value):
    def change(file):
        file.first["arrays"][place] = value

    return change


def nested(depth):
    node = ["none"]
    for _ in range(depth):
        node = ["list", [node]]
    return node


def leaf(path):
    return ["array", path]


HOSTILE = {
    "huge": (in_arrays(0, ["float32", 1 << 40]), "its arrays have [0-9,]+ bytes, more than"),
    "huge axes": (in_arrays(0, ["float32", 1 << 47, 1 << 47]), "wrong dtypes or shapes"),
    "huge of nothing": (in_arrays(0, ["float32", 0, 1 << 47, 1 << 47]), "wrong dtypes or shapes"),
    "larger axes": (in_arrays(0, ["float32", 1 << 60, 0]), "wrong dtypes or shapes"),
    "negative": (in_arrays(0, ["float32", -1]), "wrong dtypes or shapes"),
    "no number": (in_arrays(0, ["float32", 1.5]), "wrong dtypes or shapes"),
    "truth": (in_arrays(0, ["float32", True]), "wrong dtypes or shapes"),
    "dtype": (in_arrays(0, ["object", 3]), "wrong dtypes or shapes"),
    "codes of integers": (in_arrays(0, ["int32", 40, 30]), "of no dtype of weights"),
    "many axes": (in_arrays(0, ["int8", *[1] * 33]), "an array has too many axes"),
    "other shape": (in_arrays(0, ["float32", 40, 31]), "does not end where|SHA-256|contexts"),
    "deep": (in_tree(nested(80)), "its tree is too deep"),
    "deeper": (in_tree(nested(400)), "its tree is too deep"),
    "no arrays": (in_tree(["none"]), "arrays of no path"),
    "twice": (in_tree(["list", [leaf("a"), leaf("a")]]), "two arrays have one path"),
    "twice a key": (in_tree(["dict", [["a", ["none"]], ["a", ["none"]]]]), "a name stands twice"),
    "absolute": (in_tree(leaf("/etc/passwd")), "the name '/etc/passwd' is a path"),
    "upwards": (in_tree(leaf("a/../../b")), "is a path"),
    "backslash": (in_tree(leaf("..\\b")), "is a path"),
    "drive": (in_tree(leaf("c:/b")), "is a path"),
    "control": (in_tree(leaf("a\x00b")), "is a path"),
    "key": (in_tree(["dict", [["../a", leaf("b")]]]), "is a path"),
    "kind": (in_tree(["function", "print"]), "its tree has an unknown kind of node"),
    "constant": (in_tree(["constant", [1], "int"]), "a constant is no number or text"),
    "no node": (in_tree(7), "its header is wrong"),
    "tie to later": (lambda file: file.first["ties"].update(tie=[99, None]), "no earlier array"),
    "tie to itself": (
        lambda file: file.first["ties"].update({"layers/coded": [0, None]}),
        "a tie leads to no earlier array",
    ),
    "tie of no path": (lambda file: file.first["ties"].update(x=[0, None]), "arrays of no path"),
    "view": (
        lambda file: file.first["ties"].update(tie=[1, [[0, 0], [1, 0], [10, 20]]]),
        "a view has wrong axes",
    ),
    "size of a view": (
        lambda file: file.first["ties"].update(tie=[1, [[0, 1], [1, 0], [11, 20]]]),
        "a view has a wrong shape",
    ),
    "lengths": (lambda file: file.second["lengths"].pop(), "arrays are missing"),
    "long section": (
        lambda file: file.second["lengths"].__setitem__(-1, 1 << 50),
        "follows its last section",
    ),
    "negative section": (
        lambda file: file.second["lengths"].__setitem__(0, -5),
        "a section has no length",
    ),
    "checks": (lambda file: file.sections.append(b""), "its checksums are missing"),
    "digest": (lambda file: setattr(file, "digest", bytes(32)), "the SHA-256 of its arrays"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers(name):
    change, message = HOSTILE[name]
    with pytest.raises(FormatError, match=message) as error:
        read(forged(DATA, change))
    # One sentence.
    assert re.fullmatch(r"The file is damaged, cut or none of jaxcomp: .*\.", str(error.value))
    assert "\n" not in str(error.value)


def test_names_twice_in_the_text_of_a_header():
    file = Forgery(DATA)
    text = file.text().replace(b'"methods":', b'"lengths":[],"methods":')
    with pytest.raises(FormatError, match="a name stands twice"):
        read(file.to_bytes(text))


OTHER_TEXT = (
    *(b"", b"\n", b"{}\n{}", b"[]\n[]", b'{"tree":1e999}\n{}', b"\xff\n\xff"),
    *(b"1" * 5000 + b"\n{}", b"[" * 100_000 + b"\n{}"),
)


@pytest.mark.parametrize("text", OTHER_TEXT, ids=range(len(OTHER_TEXT)))
def test_headers_of_other_text(text):
    with pytest.raises(FormatError):
        read(Forgery(DATA).to_bytes(text))


@pytest.mark.parametrize("name", ["methods", "key"])
def test_methods_that_do_not_fit_are_refused_by_load(name):
    def change(file):
        if name == "methods":
            file.second["methods"][0] = "kmeans2"
        else:
            file.first["keys"] = {"6": "no such generator"}

    with pytest.raises(FormatError, match=r"unknown|random keys|SHA-256"):
        jaxcomp.load(forged(DATA, change))


@pytest.mark.parametrize("method", ["kept", "round_to_nearest", "magnitude_pruning"])
def test_a_method_whose_codes_these_are_not(method):
    with pytest.raises(FormatError, match=r"is not what|has codes"):
        jaxcomp.load(forged(DATA, lambda file: file.second["methods"].__setitem__(0, method)))


def test_nothing_large_is_allocated():
    """Neither by a header that inflates to 200 MB, nor by arrays or sections that say they are."""
    deflate = zlib.compressobj(9, wbits=-15)
    bomb = deflate.compress(b" " * 200_000_000) + deflate.flush()
    huge = [
        framed(bomb),
        forged(DATA, in_arrays(0, ["float32", 1 << 26])),
        forged(DATA, in_arrays(7, ["int64", 1 << 24])),
        forged(DATA, lambda file: file.second["lengths"].__setitem__(0, 1 << 40)),
        b"\xff" * 7 + b"\0" + b"{}",
    ]
    tracemalloc.start()
    for data in huge:
        with pytest.raises(FormatError):
            read(data, max_bytes=1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40_000_000


def test_the_caller_may_set_the_limit(expected):
    stored = leaves([expected[name] for name in ("layers", "rest")])  # the tie is no array more
    total = sum(one.nbytes for one in stored if isinstance(one, np.ndarray))
    assert same(read(DATA, max_bytes=total), expected)
    with pytest.raises(FormatError, match=f"more than the {total - 1:,} that max_bytes allows"):
        read(DATA, max_bytes=total - 1)
    with pytest.raises(FormatError, match="max_bytes"):
        jaxcomp.load(DATA, max_bytes=10)
    assert jaxcomp.inspect(DATA).size_bytes == len(DATA)


SAFETENSORS = {
    "other dtype": (lambda t: t["rest/0/bias"].update(dtype="F32"), "its tensors are not U8"),
    "overlap": (lambda t: t["rest/0/bias"].update(data_offsets=[0, 9]), "its tensors overlap"),
    "shape": (lambda t: t["rest/0/bias"].update(shape=[1]), "its tensors overlap"),
    "no header": (lambda t: t.pop("jaxcomp.header"), "its tensors overlap"),
    "other name": (lambda t: t.update({"x": t.pop("rest/0/bias")}), "its header is wrong"),
    "more": (
        lambda t: t.update(x={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
        "follows",
    ),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_hostile_safetensors(name):
    change, message = SAFETENSORS[name]
    length = int.from_bytes(TENSORS[:8], "little")
    tensors = json.loads(TENSORS[8 : 8 + length])
    change(tensors)
    text = json.dumps(tensors).encode()
    with pytest.raises(FormatError, match=message):
        read(len(text).to_bytes(8, "little") + text + TENSORS[8 + length :])


def test_other_files(tmp_path):
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(3))
    for data in (b"", b"J", b"JXC\x02" + DATA[4:], stream.getvalue(), bytes(1000), b"{}" * 50):
        with pytest.raises(FormatError):
            read(data)
    with pytest.raises(FileNotFoundError):
        File(tmp_path / "none.jxc")


def test_random_damage(expected):
    """1,000 damaged files; `benchmarks/fuzz_files.py` reads as many as one likes."""
    rng = random.Random(0)
    small = small_file()
    whole = read(small)
    unchanged = 0
    for number in range(1000):
        data, right = (DATA, expected) if number % 4 == 0 else (small, whole)
        damaged = random_file(data, rng)
        try:
            found = read(damaged, max_bytes=1 << 20)
        except FormatError:
            continue
        unchanged += 1
        assert same(found, right)
    assert unchanged < 100


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (3, "its header is wrong"),
        (["short", [0]], "its reference has no SHA-256"),
        (["0" * 64, [50]], "its differences are no arrays"),
        (["0" * 64, [0, 0]], "its differences are no arrays"),
        (["0" * 64, [-1]], "its differences are no arrays"),
        (["0" * 64, [[]]], "its differences are no arrays"),
        (["0" * 64, [0]], "no weights|name its reference"),
    ],
)
def test_references_that_are_none(told, message):
    with pytest.raises(FormatError, match=message):
        read(forged(DATA, lambda file: file.first.update(reference=told)))
