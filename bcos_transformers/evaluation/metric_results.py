"""What the metric modules share: how they describe themselves, and means with confidence intervals as their results."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bcos_transformers.evaluation.bootstrap import bootstrap_interval
from bcos_transformers.extras import require


def metric_info(description: str, inputs: str, citation: str, predictions: str, references: str) -> Any:
    """What `evaluate` wants to know of a metric.

    Args:
        description: what it measures.
        inputs: what `compute` takes.
        citation: where it is from.
        predictions: kind of each prediction, such as `"float64"`; `"[float64]"` is a list of those.
        references: kind of each reference.

    Returns:
        An `evaluate.MetricInfo`.
    """
    datasets, evaluate = require("datasets", "eval"), require("evaluate", "eval")

    def feature(kind: str) -> Any:
        if kind.startswith("["):
            return datasets.Sequence(feature(kind[1:-1]))
        return datasets.Value(kind)

    features = {"predictions": feature(predictions), "references": feature(references)}
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=inputs,
        features=datasets.Features(features),
    )


def summarize(
    records: Sequence[Mapping[str, Any]], names: Sequence[str], seed: int = 0, resamples: int = 2000
) -> dict[str, Any]:
    """Means over the texts.

    Args:
        records: the numbers of each text.
        names: which of them are averaged; NaN, where a number is not defined, is left out.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        Of each name the mean, `<name>_interval` (the ends of its 95 % percentile bootstrap interval over texts), and
        `records`.

    Raises:
        ValueError: no texts.
    """
    if not records:
        raise ValueError("There are no texts to measure.")
    result: dict[str, Any] = {}
    for name in names:
        values = [record[name] for record in records if not math.isnan(record[name])]
        if not values:
            result[name], result[f"{name}_interval"] = math.nan, [math.nan, math.nan]
            continue
        center, low, high = bootstrap_interval([values], seed=seed, resamples=resamples)
        result[name], result[f"{name}_interval"] = center, [low, high]
    result["records"] = [dict(record) for record in records]
    return result
