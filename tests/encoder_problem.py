"""A stand-in for the 91 MB of MiniLM: the same names, 24 wide, eight words."""

import numpy as np
from safetensors.numpy import save_file

WIDTH = 24
ROWS = (("word", 8), ("position", 32), ("token_type", 2))


def write_small_encoder(folder, num_layers):
    rng = np.random.default_rng(0)

    def matrix(*shape):
        return (0.1 * rng.standard_t(5, shape)).astype(np.float32)

    weights = {f"embeddings.{name}_embeddings.weight": matrix(rows, WIDTH) for name, rows in ROWS}
    norms = ["embeddings"]
    for layer in (f"encoder.layer.{number}" for number in range(num_layers)):
        own = ("query", "key", "value")
        dense = {f"{layer}.attention.self.{name}": (WIDTH, WIDTH) for name in own}
        dense[f"{layer}.attention.output.dense"] = (WIDTH, WIDTH)
        dense[f"{layer}.intermediate.dense"] = (2 * WIDTH, WIDTH)
        dense[f"{layer}.output.dense"] = (WIDTH, 2 * WIDTH)
        for name, shape in dense.items():
            weights[f"{name}.weight"], weights[f"{name}.bias"] = matrix(*shape), matrix(shape[0])
        norms += [f"{layer}.attention.output", f"{layer}.output"]
    for name in norms:
        weights[f"{name}.LayerNorm.weight"] = np.ones(WIDTH, np.float32)
        weights[f"{name}.LayerNorm.bias"] = np.zeros(WIDTH, np.float32)
    save_file(weights, folder / "model.safetensors")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", "return", "of"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
