"""A user's own file: what it has to define, and what is said if it does not."""

import pytest

from jaxcomp.cli.hook import read_hook

WHOLE = """
def predict_fn(params, inputs): return inputs * params
loss = "squared_error"
batches = [(1, 2), (3, 4)]
"""


def test_what_is_defined(tmp_path):
    path = tmp_path / "hook.py"
    path.write_text(WHOLE)
    data = read_hook(path)
    assert data.predict_fn(2, 3) == 6
    assert data.loss == "squared_error"
    assert data.batches == [(1, 2), (3, 4)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "failed: ZeroDivisionError: division by zero"),
        ("", "defines no predict_fn; define predict_fn"),
        (WHOLE.replace('"squared_error"', '"hinge"'), "defines no loss that is known"),
        (WHOLE + "batches = []", "defines no batches"),
        (WHOLE + "batches = [1]", "defines no batches"),
        (WHOLE + "batches = None", "defines no batches"),
    ],
)
def test_what_is_missing(text, message, tmp_path):
    path = tmp_path / "hook.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_hook(path)


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        read_hook(tmp_path / "hook.py")
