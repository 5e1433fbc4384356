"""Agreement of explanations with people: rationales word by word, and the sentiment of a treebank's phrases.

Sources: token F1 at the rationale's length and AUPRC as in ERASER (arXiv 1911.03429, section 4.1), the latter as average
precision, which takes no straight lines between points (ERASER's released scorer reports both); the Stanford Sentiment Treebank (Socher et al.
2013) labels every phrase of a sentence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from bcos_transformers.evaluation.correlation import spearman


@dataclass(frozen=True)
class PlausibilityScores:
    """Of one text.

    Attributes:
        f1: token F1 of the top words, as many as the rationale has.
        auprc: area under the precision-recall curve, as average precision. 1 for everybody where all words are marked.
        mrr: reciprocal of the rank of the best-ranked word of the rationale.
    """

    f1: float
    auprc: float
    mrr: float


def plausibility_scores(scores: Sequence[float], rationale: Sequence[int | bool]) -> PlausibilityScores:
    """Compares the scores of words with a rationale.

    Words of equal score are ranked by expectation over their orders, as far as that has a closed form: F1 counts each
    tied word at the edge by its share, average precision takes tied words as one threshold (as scikit-learn does), and
    the rank is `greater + (tied + 1) / (tied rationale words + 1)`.

    Args:
        scores: one number a word.
        rationale: which words people marked.

    Raises:
        ValueError: the lengths differ, a score is not finite, or no word is marked.
    """
    if len(scores) != len(rationale):
        raise ValueError(f"{len(scores)} scores but a rationale of {len(rationale)} words.")
    if not all(map(math.isfinite, scores)):
        raise ValueError("Scores must be finite; some are NaN or infinite.")
    marked = [bool(mark) for mark in rationale]
    total = sum(marked)
    if not total:
        raise ValueError("The rationale marks no word, so nothing can agree with it. Leave the text out.")
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    groups = [list(group) for _, group in groupby(order, key=lambda i: scores[i])]
    return PlausibilityScores(
        f1=_f1(groups, marked, total),
        auprc=_average_precision(groups, marked, total),
        mrr=_reciprocal_rank(groups, marked),
    )


def _f1(groups: list[list[int]], marked: list[bool], total: int) -> float:
    hits, room = 0.0, total
    for group in groups:
        taken = min(room, len(group))
        hits += sum(marked[i] for i in group) * taken / len(group)
        room -= taken
    return hits / total  # precision and recall are the same: as many words are chosen as are marked


def _average_precision(groups: list[list[int]], marked: list[bool], total: int) -> float:
    seen, hits, result = 0, 0, 0.0
    for group in groups:
        new = sum(marked[i] for i in group)
        seen, hits = seen + len(group), hits + new
        result += new / total * hits / seen
    return result


def _reciprocal_rank(groups: list[list[int]], marked: list[bool]) -> float:
    greater = 0
    for group in groups:
        found = sum(marked[i] for i in group)
        if found:
            return 1 / (greater + (len(group) + 1) / (found + 1))
        greater += len(group)
    return 0.0


def treebank_rationale(token_labels: Sequence[int], label: int) -> list[bool]:
    """The words whose own sentiment in the treebank (0 very negative … 4 very positive) is that of the text.

    Args:
        token_labels: sentiment of each word.
        label: of the text: 1 positive, 0 negative.
    """
    return [sentiment > 2 if label == 1 else sentiment < 2 for sentiment in token_labels]


def phrase_correlation(scores: Sequence[float], spans: Sequence[tuple[int, int, int]]) -> float:
    """Spearman correlation of the summed scores of phrases with their sentiment in the treebank.

    Args:
        scores: of each word, for the positive class (of a negative prediction: their opposites).
        spans: phrases `(start, end, sentiment)` over words, `end` excluded. The whole sentence is left out.

    Returns:
        Between −1 and 1; NaN where all phrases, or all sums, are the same.

    Raises:
        ValueError: a span that is not inside of the text.
    """
    if any(not 0 <= start < end <= len(scores) for start, end, _ in spans):
        raise ValueError(f"Every span must lie inside of the {len(scores)} words.")
    kept = [(start, end, label) for start, end, label in spans if end - start < len(scores)]
    sums = torch.tensor([sum(scores[start:end]) for start, end, _ in kept], dtype=torch.float64)
    labels = torch.tensor([label for *_, label in kept], dtype=torch.float64)
    return spearman(sums, labels)
