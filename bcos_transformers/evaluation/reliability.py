"""May the numbers be believed: completeness, stability, and whether the model understands masked inputs at all."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bcos_transformers.evaluation.correlation import spearman
from bcos_transformers.evaluation.rows import ChangedRow, Classifier, Row


def completeness_residuals(
    attributions: Sequence[Sequence[float]], explained: Sequence[float]
) -> list[tuple[float, float]]:
    """How far each attribution is from adding up to what it explains.

    Args:
        attributions: scores of each text.
        explained: what they should add up to, for instance the logit.

    Returns:
        Of each text |explained − Σ scores|, and that divided by the largest |score|.

    Raises:
        ValueError: the numbers differ, or a number is not finite.
    """
    if len(attributions) != len(explained):
        raise ValueError(f"{len(attributions)} attributions but {len(explained)} values that they should add up to.")
    result = []
    for scores, value in zip(attributions, explained, strict=True):
        if not all(map(math.isfinite, [*scores, value])):
            raise ValueError("Scores and explained values must be finite; some are NaN or infinite.")
        residual = abs(value - math.fsum(scores))
        largest = max(map(abs, scores), default=0.0)
        result.append((residual, residual / largest if largest else math.inf if residual else 0.0))
    return result


@dataclass(frozen=True)
class Stability:
    """How little an explanation depends on circumstances; of all texts.

    Attributes:
        largest_difference: largest |score − reference score| over the largest |reference score| of the text.
        lowest_correlation: lowest Spearman correlation of the tokens' ranks with the reference's.
    """

    largest_difference: float
    lowest_correlation: float


def stability(attributions: Sequence[Sequence[float]], references: Sequence[Sequence[float]]) -> Stability:
    """Compares explanations of the same texts under two circumstances.

    Raises:
        ValueError: the numbers of texts or tokens differ, there are none, or a score is not finite.
    """
    if len(attributions) != len(references):
        raise ValueError(f"{len(attributions)} explanations but {len(references)} to compare them with.")
    if not references:
        raise ValueError("There are no explanations to compare.")
    difference, correlation = 0.0, 1.0
    for i, (mine, reference) in enumerate(zip(attributions, references, strict=True)):
        if len(mine) != len(reference):
            raise ValueError(f"Text {i} has {len(mine)} scores and {len(reference)} to compare them with.")
        a, b = (torch.tensor(scores, dtype=torch.float64) for scores in (mine, reference))
        if not len(a) or not torch.isfinite(torch.stack([a, b])).all():
            raise ValueError(f"Text {i} needs scores, and finite ones; it has none, or some are NaN or infinite.")
        scale = b.abs().max().clamp_min(1e-300)
        difference = max(difference, float((a - b).abs().max() / scale))
        ranks = spearman(a, b)
        if math.isnan(ranks):  # all scores the same in one of them: alike if in both, else unrelated
            ranks = float(len(a.unique()) == len(b.unique()))
        correlation = min(correlation, ranks)
    return Stability(difference, correlation)


def explanations_under(model: Any, tokenizer: Any, rows: Sequence[Row], circumstance: str) -> list[list[float]]:
    """A B-cos model's explanations of its predictions, one circumstance changed; the model itself is not.

    Args:
        model: a B-cos classifier.
        tokenizer: its tokenizer.
        rows: the texts.
        circumstance: `"alone"` (one text a batch), `"batch"` (all texts in batches, padded), `"bfloat16"`, `"float64"`
            (a copy of the model in that dtype), `"eager"` or `"sdpa"` (a copy with that attention).

    Raises:
        ValueError: an unknown circumstance.
    """
    known = ("alone", "batch", "bfloat16", "float64", "eager", "sdpa")
    if circumstance not in known:
        raise ValueError(f"`circumstance` must be one of {known}, got {circumstance!r}.")
    # The class is the unchanged model's everywhere: rounding may turn a prediction that hangs in the balance.
    predicted = Classifier(model, tokenizer).probabilities([ChangedRow(row) for row in rows]).argmax(-1)
    targets = dict(zip(rows, predicted.tolist(), strict=True))
    if circumstance in ("bfloat16", "float64"):
        model = copy.deepcopy(model).to(getattr(torch, circumstance))
    elif circumstance in ("eager", "sdpa"):
        model = copy.deepcopy(model)
        model.set_attn_implementation(circumstance)
    classifier = Classifier(model, tokenizer, batch_tokens=1 if circumstance == "alone" else 4096)
    found: dict[Row, list[float]] = {}
    for batch in classifier.batches([ChangedRow(row) for row in sorted(dict.fromkeys(rows), key=len)]):
        out = model.explain(**classifier.inputs(batch), target=torch.tensor([[targets[one.row]] for one in batch]))
        for place, one in enumerate(batch):
            found[one.row] = out.contributions[place, 0, : len(one.row)].double().tolist()
    return [found[row] for row in rows]


@dataclass(frozen=True)
class MaskingValidity:
    """What a model makes of inputs of which a random share is hidden.

    Attributes:
        shares: of hidden tokens.
        accuracy: at each share, over `draws` random choices.
        calibration_error: expected calibration error at each share, ten bins of equal width.
        entropy_when_all_hidden: mean entropy of the prediction, all tokens hidden, over that of a uniform one: near 1
            for a model that knows that it sees nothing. NaN where the share 1 was not asked for.
    """

    shares: tuple[float, ...]
    accuracy: tuple[float, ...]
    calibration_error: tuple[float, ...]
    entropy_when_all_hidden: float


def masking_validity(
    classifier: Classifier,
    rows: Sequence[Row],
    labels: Sequence[int],
    shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    draws: int = 2,
    replacement: str = "mask",
    seed: int = 0,
) -> MaskingValidity:
    """Says whether perturbation metrics can be believed for a model.

    They compare probabilities of masked inputs. A model that was never shown such inputs is wrong, and sure, about them;
    then these metrics measure noise, and a random ranking scores almost as well as any.

    Raises:
        ValueError: the numbers of texts and labels differ, no texts, no draws, or a share outside [0, 1].
    """
    if len(rows) != len(labels):
        raise ValueError(f"{len(rows)} texts but {len(labels)} labels.")
    if not len(rows) or draws < 1:
        raise ValueError(f"At least one text and one draw are needed, got {len(rows)} texts and draws={draws}.")
    if any(not 0 <= share <= 1 for share in shares):
        raise ValueError(f"Shares must lie in [0, 1], got {list(shares)}.")
    accuracy, errors, entropy = [], [], float("nan")
    reference = torch.tensor(labels)
    for share in shares:
        repeats = draws if 0 < share < 1 else 1
        changed = [
            ChangedRow(row, _random_part(row, share, seed * 1009 + draw)) for draw in range(repeats) for row in rows
        ]
        probabilities = classifier.probabilities(changed, replacement, f"{share:.0%} hidden")
        sure, predicted = probabilities.max(-1)
        correct = predicted == reference.repeat(repeats)
        accuracy.append(float(correct.double().mean()))
        errors.append(expected_calibration_error(sure, correct))
        if share == 1.0:
            entropies = -(probabilities * probabilities.clamp_min(1e-300).log()).sum(-1)
            entropy = float(entropies.mean()) / math.log(probabilities.shape[-1])
    return MaskingValidity(tuple(shares), tuple(accuracy), tuple(errors), entropy)


def expected_calibration_error(confidence: torch.Tensor, correct: torch.Tensor, bins: int = 10) -> float:
    """Mean over texts of |accuracy − confidence| of their bin (Guo et al. 2017, arXiv 1706.04599, eq. 3)."""
    place = (confidence * bins).long().clamp_max(bins - 1)
    error = 0.0
    for i in range(bins):
        inside = place == i
        if inside.any():
            gap = (correct[inside].double().mean() - confidence[inside].mean()).abs()
            error += float(gap) * float(inside.double().mean())
    return error


def _random_part(row: Row, share: float, seed: int) -> frozenset[int]:
    positions = row.positions
    order = torch.randperm(len(positions), generator=row.generator(seed)).tolist()
    return frozenset(positions[i] for i in order[: round(share * len(positions))])
