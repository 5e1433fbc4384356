"""Comprehensiveness, sufficiency, log-odds and ERASER's AOPC: what hiding, or keeping, the top tokens does.

Sources: DeYoung et al. 2020, ERASER (arXiv 1911.03429, section 4.2; the mean over the five bins is that of the released
scorer); log-odds as usual for texts, a difference of log-probabilities, after Shrikumar et al. 2017 (arXiv 1704.02685);
the form over 10 %…90 % of the tokens is that of the B-cos LM paper (arXiv 2502.12992, section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bcos_transformers.evaluation.ranking import ranking, warn_of_constant_scores
from bcos_transformers.evaluation.rows import ChangedRow, Classifier, Row

PERCENTAGES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
ERASER_PERCENTAGES = (1, 5, 10, 20, 50)
LOG_ODDS_PERCENTAGE = 20


@dataclass(frozen=True)
class PerturbationScores:
    """Of one text; `p` is the probability of the class that was predicted for the whole text.

    Attributes:
        comprehensiveness: area under p(whole) − p(top tokens hidden) over the shares 0.1 … 0.9, by the trapezoid: 0.8 at
            most. The higher, the better.
        sufficiency: area under p(whole) − p(only top tokens left). The lower, the better; negative where the top tokens
            alone make the model surer.
        log_odds: log p(top 20 % hidden) − log p(whole). The lower, the better.
        aopc_comprehensiveness: ERASER's mean of p(whole) − p(top tokens hidden) over 1, 5, 10, 20 and 50 %.
        aopc_sufficiency: the same of the top tokens alone.
        probability: p(whole).
        comprehensiveness_curve: the nine differences.
        sufficiency_curve: the nine differences.
    """

    comprehensiveness: float
    sufficiency: float
    log_odds: float
    aopc_comprehensiveness: float
    aopc_sufficiency: float
    probability: float
    comprehensiveness_curve: tuple[float, ...]
    sufficiency_curve: tuple[float, ...]


def count_of(percentage: int, tokens: int) -> int:
    """How many tokens a percentage is, rounded down, at least one."""
    return max(1, percentage * tokens // 100)


def count_of_eraser(percentage: int, tokens: int) -> int:
    """How many tokens a percentage is, rounded up as in ERASER."""
    return -(-percentage * tokens // 100)


def area(differences: Sequence[float], percentages: Sequence[int] = PERCENTAGES) -> float:
    """Area under the differences over the shares (percentages / 100), by the trapezoid."""
    values = torch.tensor(differences, dtype=torch.float64)
    return float(torch.trapezoid(values, torch.tensor(percentages, dtype=torch.float64) / 100))


def perturbation_scores(
    classifier: Classifier,
    rows: Sequence[Row],
    attributions: Sequence[Sequence[float]],
    replacement: str = "mask",
    seed: int = 0,
) -> list[PerturbationScores]:
    """Scores the attributions of a classifier's predictions.

    Args:
        classifier: the model whose predictions are explained.
        rows: the texts.
        attributions: of each text, one score a token, special tokens included (these are never hidden).
        replacement: how a token is hidden, see `Classifier.probabilities`.
        seed: of the order of tokens with equal scores.

    Raises:
        ValueError: the numbers of texts, or of scores and tokens, differ; scores that are not finite.
    """
    check_lengths(rows, attributions)
    warn_of_constant_scores(attributions, rows)
    orders = [ranking(scores, row, seed) for scores, row in zip(attributions, rows, strict=True)]
    return scores_of_orders(classifier, rows, orders, replacement)


def scores_of_orders(
    classifier: Classifier, rows: Sequence[Row], orders: Sequence[Sequence[int]], replacement: str = "mask"
) -> list[PerturbationScores]:
    """The same for rankings: positions of the tokens that are no special ones, most important first."""
    needed: list[ChangedRow] = []
    for row, order in zip(rows, orders, strict=True):
        needed.append(ChangedRow(row))
        for hidden in _all_hidden(order):
            needed.append(ChangedRow(row, hidden))
    probabilities = classifier.probabilities(needed, replacement, "Perturbed texts")
    per_text = 1 + 2 * (len(PERCENTAGES) + len(ERASER_PERCENTAGES)) + 1
    result = []
    for i in range(len(rows)):
        mine = probabilities[i * per_text : (i + 1) * per_text]
        predicted = int(mine[0].argmax())
        result.append(_scores(mine[:, predicted].tolist()))
    return result


def check_lengths(rows: Sequence[Row], attributions: Sequence[Sequence[float]]) -> None:
    """Refuses attributions that are not one for every text.

    Raises:
        ValueError: see above.
    """
    if len(rows) != len(attributions):
        raise ValueError(f"{len(rows)} texts but {len(attributions)} attributions: one is needed for every text.")


def _all_hidden(order: Sequence[int]) -> list[frozenset[int]]:
    """What is hidden: the top tokens at every percentage, all but these, and the top ones of the log-odds."""
    counts = [count_of(p, len(order)) for p in PERCENTAGES]
    eraser = [count_of_eraser(p, len(order)) for p in ERASER_PERCENTAGES]
    hidden = [frozenset(order[:count]) for count in counts + eraser]
    hidden += [frozenset(order[count:]) for count in counts + eraser]
    return [*hidden, frozenset(order[: count_of(LOG_ODDS_PERCENTAGE, len(order))])]


def _scores(values: list[float]) -> PerturbationScores:
    whole, rest, n, m = values[0], values[1:], len(PERCENTAGES), len(ERASER_PERCENTAGES)
    differences = [whole - value for value in rest]
    comprehensiveness, eraser_hidden = differences[:n], differences[n : n + m]
    sufficiency, eraser_left = differences[n + m : 2 * n + m], differences[2 * n + m : 2 * (n + m)]
    logs = torch.tensor([rest[-1], whole], dtype=torch.float64).clamp_min(1e-300).log()
    return PerturbationScores(
        comprehensiveness=area(comprehensiveness),
        sufficiency=area(sufficiency),
        log_odds=float(logs[0] - logs[1]),
        aopc_comprehensiveness=sum(eraser_hidden) / m,
        aopc_sufficiency=sum(eraser_left) / m,
        probability=whole,
        comprehensiveness_curve=tuple(comprehensiveness),
        sufficiency_curve=tuple(sufficiency),
    )
