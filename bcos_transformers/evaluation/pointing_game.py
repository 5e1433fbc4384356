"""SeqPG, the sequence pointing game: does positive attribution lie in the half of the input that has the class?

Two texts of different classes, each cut to the same number of tokens, are joined as one input; the explanation of each of
the two classes should point into its own half (arXiv 2502.12992, section 4, after the grid pointing game of
arXiv 2011.10777).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bcos_transformers.evaluation.ranking import check_scores
from bcos_transformers.evaluation.rows import ChangedRow, Classifier, Row, rows_of


@dataclass(frozen=True)
class PointingPair:
    """Two texts as one input: `[CLS] first second [SEP]`, or whatever special tokens the tokenizer adds.

    Attributes:
        input_ids: of the joined input.
        segments: 0 or 1 for tokens of the first or second text, None for special tokens.
        labels: class of each text.
    """

    input_ids: tuple[int, ...]
    segments: tuple[int | None, ...]
    labels: tuple[int, int]


def make_pairs(
    classifier: Classifier,
    rows: Sequence[Row],
    labels: Sequence[int],
    count: int = 100,
    min_probability: float = 0.8,
    min_tokens: int = 5,
    max_tokens: int = 60,
    seed: int = 0,
) -> list[PointingPair]:
    """Pairs of texts that the model classifies correctly and surely, also when they are cut to the pair's length.

    Make them with one model and reuse them for all that are compared.

    Args:
        classifier: the model that makes them.
        rows: the texts.
        labels: their classes.
        count: how many pairs at most.
        min_probability: what the model must give the right class.
        min_tokens: of each half; shorter texts are left out.
        max_tokens: of each half; longer ones are cut.
        seed: of the order in which texts are paired.

    Raises:
        ValueError: no two texts of different classes qualify; the message says how many there were of each class.
    """
    if len(rows) != len(labels):
        raise ValueError(f"{len(rows)} texts but {len(labels)} labels.")
    tokenizer = classifier.tokenizer
    probabilities = classifier.probabilities([ChangedRow(row) for row in rows], description="Choosing pairs")
    sure = [
        i
        for i, (row, label) in enumerate(zip(rows, labels, strict=True))
        if int(probabilities[i].argmax()) == label
        and float(probabilities[i, label]) >= min_probability
        and len(row.positions) >= min_tokens
    ]
    generator = torch.Generator().manual_seed(seed)
    left = [sure[i] for i in torch.randperm(len(sure), generator=generator).tolist()]
    pairs: list[PointingPair] = []
    while left and len(pairs) < count:
        first = left.pop(0)
        # Of the other classes' texts the one of the most similar length, so that little is cut off.
        others = [i for i in left if labels[i] != labels[first]]
        others.sort(key=lambda i: abs(len(rows[i].positions) - len(rows[first].positions)))
        for second in others[:5]:
            pair = _join(tokenizer, rows[first], rows[second], (labels[first], labels[second]), max_tokens)
            if _both_sure(classifier, pair, min_probability):
                left.remove(second)
                pairs.append(pair)
                break
    if not pairs:
        counts = {label: sum(labels[i] == label for i in sure) for label in sorted(set(labels))}
        raise ValueError(
            f"No pair of texts of different classes is classified correctly with a probability of {min_probability} or "
            f"more when cut to the same length; texts that qualify alone, by class: {counts}. Lower `min_probability`."
        )
    return pairs


def seqpg(attributions: Sequence[Sequence[Sequence[float]]], pairs: Sequence[PointingPair]) -> list[float]:
    """Share of positive attribution inside the right segment, averaged over the two classes of each pair.

    Special tokens count in neither. Where no token of the two texts has a positive score, the share is one half: the
    attribution points nowhere.

    Args:
        attributions: of each pair, scores for the first text's class and for the second text's, one a token.
        pairs: the pairs.

    Returns:
        One number a pair, between 0 and 1.

    Raises:
        ValueError: the numbers of attributions and pairs, or of scores and tokens, differ; scores that are not finite.
    """
    if len(attributions) != len(pairs):
        raise ValueError(f"{len(pairs)} pairs but {len(attributions)} attributions.")
    result = []
    for two, pair in zip(attributions, pairs, strict=True):
        if len(two) != 2:
            raise ValueError(f"An attribution of each of the pair's two classes is needed, got {len(two)}.")
        shares = []
        for segment, scores in enumerate(two):
            check_scores(scores, row_of(pair))
            inside, outside = (
                sum(max(s, 0.0) for s, part in zip(scores, pair.segments, strict=True) if part == which)
                for which in (segment, 1 - segment)
            )
            shares.append(inside / (inside + outside) if inside + outside > 0 else 0.5)
        result.append(sum(shares) / 2)
    return result


def row_of(pair: PointingPair) -> Row:
    """The joined input as a row; all its tokens are of one type."""
    return Row(pair.input_ids, tuple(segment is not None for segment in pair.segments))


def save_pairs(pairs: Sequence[PointingPair], path: str | Path) -> None:
    """Writes pairs as JSON lines."""
    text = "".join(json.dumps(asdict(pair)) + "\n" for pair in pairs)
    Path(path).write_text(text, encoding="utf-8")


def load_pairs(path: str | Path) -> list[PointingPair]:
    """Reads what `save_pairs` wrote."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [PointingPair(*(tuple(row[name]) for name in ("input_ids", "segments", "labels"))) for row in rows]


def _join(tokenizer: Any, first: Row, second: Row, labels: tuple[int, int], max_tokens: int) -> PointingPair:
    size = min(len(first.positions), len(second.positions), max_tokens)
    body = [[row.input_ids[i] for i in row.positions[:size]] for row in (first, second)]
    before, after = _special_tokens_around(tokenizer)
    segments = [None] * len(before) + [0] * size + [1] * size + [None] * len(after)
    return PointingPair((*before, *body[0], *body[1], *after), tuple(segments), labels)


def _special_tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Special tokens before and after a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    body = [i for i, mark in enumerate(special) if not mark] or [len(ids)]
    return ids[: body[0]], ids[body[-1] + 1 :]


def _both_sure(classifier: Classifier, pair: PointingPair, min_probability: float) -> bool:
    before, after = _special_tokens_around(classifier.tokenizer)
    halves = [
        [token for token, part in zip(pair.input_ids, pair.segments, strict=True) if part == which] for which in (0, 1)
    ]
    rows = rows_of(classifier.tokenizer, [[*before, *half, *after] for half in halves])
    probabilities = classifier.probabilities([ChangedRow(row) for row in rows])
    return all(
        int(given.argmax()) == label and float(given[label]) >= min_probability
        for given, label in zip(probabilities, pair.labels, strict=True)
    )
