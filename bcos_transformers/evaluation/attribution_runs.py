"""Attributions of many texts by one method, in batches, with what they cost."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from bcos_transformers.evaluation.baselines import CostMeter
from bcos_transformers.evaluation.pointing_game import PointingPair, row_of, seqpg
from bcos_transformers.evaluation.rows import ChangedRow, Classifier, Row


@dataclass(frozen=True)
class AttributionRun:
    """Attributions of texts.

    Attributes:
        scores: of each text, one score a token, special tokens included.
        residuals: |explained − Σ scores| over the largest |score| of each text; None where the method promises no sum.
        cost: what an explanation costs in forward passes of the same batch, a backward pass to the embeddings being one.
        seconds: wall-clock time for each text, on average.
    """

    scores: list[list[float]]
    residuals: list[float] | None
    cost: float
    seconds: float


def attribute_rows(
    method: Any, classifier: Classifier, rows: Sequence[Row], targets: Sequence[int], description: str = "Explaining"
) -> AttributionRun:
    """Explains each text's target.

    Args:
        method: an `AttributionMethod`.
        classifier: holds the method's model, and makes batches.
        rows: the texts.
        targets: class of each.
        description: of the progress bar.

    Raises:
        ValueError: a score that is not finite; the message names the method.
    """
    scores: list[list[float]] = [[] for _ in rows]
    residuals: list[float | None] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    tokens = seconds = forward = 0.0
    place = 0
    if order:
        # What a method imports and sets up at its first use is no cost of an explanation.
        first = classifier.inputs([ChangedRow(rows[order[0]])])
        target = torch.tensor([targets[order[0]]], device=first["input_ids"].device)
        method.attribute(first, target, keys=[rows[order[0]].key])
    with tqdm(total=len(rows), desc=description, unit="text", disable=_bar(classifier.progress), leave=False) as bar:
        for batch in classifier.batches([ChangedRow(rows[i]) for i in order]):
            inputs = classifier.inputs(batch)
            mine = order[place : place + len(batch)]
            place += len(batch)
            target = torch.tensor([targets[i] for i in mine], device=inputs["input_ids"].device)
            started = time.perf_counter()
            with CostMeter(method) as meter:
                found = method.attribute(inputs, target, keys=[one.row.key for one in batch])
            seconds += time.perf_counter() - started
            tokens += meter.tokens
            # Methods that take texts one by one see no padding.
            forward += sum(map(len, (one.row for one in batch))) if method.row_by_row else inputs["input_ids"].numel()
            if not torch.isfinite(found.scores).all():
                raise ValueError(f"{method.name} gives scores that are NaN or infinite.")
            for k, i in enumerate(mine):
                scores[i] = found.scores[k, : len(rows[i])].tolist()
                if found.residual is not None:
                    largest = max(map(abs, scores[i]))
                    residuals[i] = abs(float(found.residual[k])) / max(largest, 1e-30)
            bar.update(len(batch))
    known = [value for value in residuals if value is not None]
    return AttributionRun(
        scores,
        known if len(known) == len(rows) and rows else None,
        tokens / max(forward, 1),
        seconds / max(len(rows), 1),
    )


def play_pointing_game(method: Any, classifier: Classifier, pairs: Sequence[PointingPair]) -> list[float]:
    """SeqPG of a method on each pair, both classes of which it explains.

    Raises:
        ValueError: a score that is not finite.
    """
    rows = [row_of(pair) for pair in pairs for _ in range(2)]
    targets = [label for pair in pairs for label in pair.labels]
    scores = attribute_rows(method, classifier, rows, targets, f"{method.name}: pointing game").scores
    return seqpg([scores[2 * i : 2 * i + 2] for i in range(len(pairs))], pairs)


def _bar(progress: bool | None) -> bool | None:
    return None if progress is None else not progress
