"""The table as text."""

from jaxcomp.certificates import Report, Row

ROWS = (
    Row("a: data-free", "the file", "Of a file.", 60_000, 84.0, 10, 0.02, 0.050001, 0.06, {}),
    Row(
        "d: held out",
        "the file",
        "By labels.",
        100,
        0.0,
        0,
        0.0,
        0.055,
        0.07,
        {"x": 0.01, "y": 0.04},
    ),
)


def test_text():
    text = str(Report(ROWS, 0.05, 0.03, 100, ("A note.",)))
    lines = text.splitlines()
    assert lines[2].split() == [
        "a:",
        "data-free",
        "the",
        "file",
        "60,000",
        "10.5",
        "2.00%",
        "5.01%",
    ]
    assert "Best of these, all 2 at delta 0.05/2: a: data-free, 6.00%." in text
    assert "beside the certificates: 3.00% on 100 examples." in text
    assert lines[-2] == "d: held out: By labels. Delta, split beforehand: 0.01 (x) + 0.04 (y)."
    assert lines[-1] == "A note."


def test_one_row_that_says_nothing():
    text = str(Report((ROWS[0]._replace(bound=1.0),), 0.05))
    assert "says nothing" in text
    assert "Best of these" not in text
