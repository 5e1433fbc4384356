"""The embedded data set: small, written for this project, and with the words that carry the label marked."""

import json
from pathlib import Path

SPLITS = ("train", "validation", "test")
LABELS = ("negative", "positive")


def reviews_file(split: str) -> Path:
    """Path of the JSON-lines file of a split of the embedded reviews.

    Raises:
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {SPLITS}, got {split!r}.")
    return Path(__file__).parent / "reviews" / f"{split}.jsonl"


def load_reviews(split: str) -> list[dict]:
    """The embedded reviews: 840 English sentences about twelve kinds of things.

    Args:
        split: `"train"` (576), `"validation"` (96) or `"test"` (168); labels and topics are balanced in each.

    Returns:
        Rows with `text`, `label` (0 negative, 1 positive), `topic`, and `rationale`: character spans `[start, end)` of
        the words that carry the label.
    """
    with reviews_file(split).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
