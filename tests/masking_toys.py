"""Texts for the tests of random masking."""

import torch

from conftest import WORDS

MASK = 4


def texts(tokenizer, count: int = 16, shortest: int = 3, longest: int = 12) -> list[dict]:
    """Tokenized texts of different lengths, labelled."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        words = [
            WORDS[w] for w in torch.randint(0, 12, (shortest + i % (longest - shortest + 1),), generator=generator)
        ]
        rows.append({**tokenizer(" ".join(words)), "labels": i % 2})
    return rows
