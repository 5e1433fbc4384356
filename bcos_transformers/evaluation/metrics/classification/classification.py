"""Accuracy and macro-F1 as one `evaluate` module, loaded from its folder without a network."""

import evaluate
from sklearn.metrics import accuracy_score, f1_score

from bcos_transformers.evaluation.metric_results import metric_info

DESCRIPTION = "Accuracy and macro-averaged F1 of single-label classification, as fractions."


class Classification(evaluate.Metric):
    """`compute(predictions=[...], references=[...])` gives `{"accuracy": ..., "macro_f1": ...}`."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(DESCRIPTION, "predictions, references: class indices of equal number", "", "int64", "int64")

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "macro_f1": float(f1_score(references, predictions, average="macro")),
        }
