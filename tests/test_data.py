"""The embedded reviews."""

import pytest

from bcos_transformers.data import load_reviews, reviews_file


def test_embedded_reviews():
    rows = {split: load_reviews(split) for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in rows.items()} == {"train": 576, "validation": 96, "test": 168}
    everything = [row for part in rows.values() for row in part]
    assert len({row["text"].lower() for row in everything}) == 840
    assert len({row["topic"] for row in everything}) == 12
    for part in rows.values():
        assert sum(row["label"] for row in part) * 2 == len(part)
    for row in everything:
        assert row["rationale"]
        for begin, end in row["rationale"]:
            marked = row["text"][begin:end]
            assert marked
            assert marked == marked.strip()
    with pytest.raises(ValueError, match="split"):
        reviews_file("dev")
