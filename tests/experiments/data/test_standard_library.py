import pytest

from jaxcomp.experiments.data import standard_library


def test_sentences_are_spread_and_the_same_on_every_call():
    some = standard_library.sentences(5)
    assert some == standard_library.sentences(5)
    assert len(set(some)) == 5
    assert all(6 <= len(sentence.split()) <= 30 for sentence in some)


@pytest.mark.slow
def test_more_than_there_are():
    with pytest.raises(ValueError, match="asked for 1000000 sentences, but the docstrings have"):
        standard_library.sentences(1_000_000)
