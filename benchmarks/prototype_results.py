"""What is measured of a run with prototypes, from the embeddings of the test texts: no further pass of the encoder."""

import dataclasses
from typing import Any

import torch
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, mean_squared_error

from bcos_transformers.evaluation.prototypes import prototype_faithfulness, share_of_prototypes_that_keep_accuracy
from bcos_transformers.modeling.proto_losses import distances_and_similarities

STAGES = ("joint", "projected", "final")
COUNTS = (1, 2, 5, 0.5)


def state_of(model: Any) -> dict[str, torch.Tensor]:
    """Prototypes and last layer as they are now."""
    bias = model.classifier.bias
    return {
        "prototypes": model.prototypes.detach().float().cpu().clone(),
        "weight": model.classifier.weight.detach().float().cpu().clone(),
        "bias": torch.zeros(model.config.num_labels) if bias is None else bias.detach().float().cpu().clone(),
    }


def measure(config: Any, pooled: torch.Tensor, labels: list, states: list[dict[str, torch.Tensor]]) -> dict:
    """Scores after each stage, and what the prototypes are worth.

    Args:
        config: the model's.
        pooled: `(texts, hidden)`.
        labels: one a text.
        states: prototypes and last layer after each of `STAGES`.
    """
    scores, final = {}, states[-1]
    for stage, state in zip(STAGES, states, strict=True):
        logits = _similarities(config, pooled, state) @ state["weight"].T + state["bias"]
        scores[stage] = (
            regression_scores(logits.squeeze(-1), labels)
            if config.is_regression
            else {"accuracy": 100 * accuracy_score(labels, logits.argmax(-1))}
        )
    counts = [count for count in COUNTS if isinstance(count, float) or count <= config.num_prototypes]
    faithful = prototype_faithfulness(
        final["weight"], _similarities(config, pooled, final), final["bias"], counts=counts
    )
    result = {"scores": scores, "faithfulness": [dataclasses.asdict(one) for one in faithful]}
    if not config.is_regression:
        joint, projected = states[0], states[1]
        kept = share_of_prototypes_that_keep_accuracy(
            pooled,
            torch.tensor(labels),
            joint["prototypes"],
            projected["prototypes"],
            joint["weight"],
            config.distance,
            config.epsilon,
            bias=joint["bias"],
        )
        result["share_that_keeps_accuracy"] = kept.share
        result["nearest_own"] = nearest_is_own(config, pooled, labels, final)
    return result


def nearest_is_own(config: Any, pooled: torch.Tensor, labels: list, state: dict[str, torch.Tensor]) -> float:
    """Percentage of texts whose nearest prototype is of their own class: how much the geometry alone says."""
    nearest = _similarities(config, pooled, state).argmax(-1) // config.prototypes_per_class
    return 100 * accuracy_score(labels, nearest)


def regression_scores(predicted: Any, labels: list) -> dict[str, float]:
    """Root mean squared error and rank correlation."""
    predicted = torch.as_tensor(predicted).float().tolist()
    error = mean_squared_error(labels, predicted) ** 0.5
    return {"rmse": error, "spearman": float(spearmanr(labels, predicted).statistic)}


def _similarities(config: Any, pooled: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    return distances_and_similarities(pooled, state["prototypes"], config.distance, config.epsilon)[1]
