"""From the scores of an attribution to the order in which tokens are hidden or kept."""

import logging
import math
from collections.abc import Sequence

import torch

from bcos_transformers.evaluation.rows import Row

logger = logging.getLogger(__name__)


def ranking(scores: Sequence[float], row: Row, seed: int = 0) -> list[int]:
    """Positions of the tokens that are no special ones, from the highest score to the lowest.

    Ties are broken by an order drawn for the text from `seed` and its token ids, so that a method that gives many tokens
    the same score gains nothing by where they stand.

    Args:
        scores: one number a token, special tokens included.
        row: the text.
        seed: of the order of ties.

    Raises:
        ValueError: the number of scores is not that of tokens, or one of them is not finite.
    """
    check_scores(scores, row)
    positions = row.positions
    drawn = torch.randperm(len(positions), generator=row.generator(seed * 1_000_003)).tolist()
    tie = dict(zip(positions, drawn, strict=True))
    return sorted(positions, key=lambda position: (-scores[position], tie[position]))


def check_scores(scores: Sequence[float], row: Row) -> None:
    """Refuses scores that do not belong to the text.

    Raises:
        ValueError: see `ranking`.
    """
    if len(scores) != len(row):
        raise ValueError(
            f"{len(scores)} scores for a text of {len(row)} tokens. A score is needed for every token, special tokens "
            "included, and none for padding."
        )
    bad = [i for i, score in enumerate(scores) if not math.isfinite(score)]
    if bad:
        raise ValueError(
            f"Scores must be finite; at the positions {bad[:10]} they are {[scores[i] for i in bad[:10]]}."
        )


def warn_of_constant_scores(attributions: Sequence[Sequence[float]], rows: Sequence[Row]) -> int:
    """Counts the texts all of whose tokens got the same score, and warns of them: their order is a random one."""
    constant = sum(
        len(row.positions) > 1 and len({scores[i] for i in row.positions}) == 1
        for scores, row in zip(attributions, rows, strict=True)
    )
    if constant:
        logger.warning(
            "In %d of %d texts every token has the same score; their tokens are ranked in a random order.",
            constant,
            len(rows),
        )
    return constant
