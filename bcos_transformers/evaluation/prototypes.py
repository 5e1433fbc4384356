"""How faithful the shares of prototypes are, and what projection costs: from similarities alone, without forward passes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bcos_transformers.evaluation.bootstrap import bootstrap_interval
from bcos_transformers.modeling.bcos_eval_mode import evaluation_mode
from bcos_transformers.modeling.proto_losses import distances_and_similarities
from bcos_transformers.prototypes.texts import NO_LIMIT, position_limit

COUNTS = (1, 2, 5)
Interval = tuple[float, float, float]


@dataclass(frozen=True)
class PrototypeFaithfulness:
    """What removing or keeping k prototypes does to predictions; each field a mean over texts and its 95 % interval.

    Attributes:
        count: k.
        comprehensiveness: drop of the prediction without the k prototypes that speak most for it; higher is better.
        sufficiency: drop with these k alone; lower is better.
        random_comprehensiveness: the same for k random prototypes, mean of several draws for each text.
        random_sufficiency: the same for k random prototypes.
    """

    count: int
    comprehensiveness: Interval
    sufficiency: Interval
    random_comprehensiveness: Interval
    random_sufficiency: Interval


@dataclass(frozen=True)
class ProjectionAccuracy:
    """What the projection of single prototypes does to accuracy.

    Attributes:
        share: share of the prototypes after whose projection, all others left as they were, accuracy is at most the
            tolerance lower than before.
        before: accuracy without any projection.
        accuracies: accuracy after the projection of each prototype alone.
    """

    share: float
    before: float
    accuracies: tuple[float, ...]


def prototype_faithfulness(
    weight: torch.Tensor,
    similarities: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    counts: Sequence[int | float] | None = None,
    draws: int = 10,
    seed: int = 0,
    resamples: int = 2000,
) -> list[PrototypeFaithfulness]:
    """Comprehensiveness and sufficiency of prototypes (arXiv 1911.03429, on prototypes instead of tokens).

    A prototype is removed by setting its similarity to 0, so that it adds nothing to any logit. For a classifier,
    prototypes are ranked by their share of the predicted class's logit, largest first, and the drop is that of the
    predicted class's probability. For a regression (one label), they are ranked by how far they move the value in the
    direction in which all of them together move it, and the drop is the absolute change of the value.

    Args:
        weight: `(labels, prototypes)`, of the last layer.
        similarities: `(texts, prototypes)`.
        bias: `(labels,)`, of the last layer.
        counts: the k: ints count prototypes, floats are shares of all prototypes (at least one). None: 1, 2 and 5, as
            far as there are so many.
        draws: how many times k random prototypes are drawn for each text.
        seed: of these draws and of the intervals.
        resamples: of the bootstrap over texts.

    Returns:
        One for each of `counts`, in their order.

    Raises:
        ValueError: shapes that do not fit, no text, values that are not finite, no `counts`, or a k that is not between
            1 and the number of prototypes.
    """
    weight, similarities, bias = _last_layer(weight, similarities, bias)
    if counts is None:
        counts = [count for count in COUNTS if count <= weight.shape[1]]
    counts = [_count(count, weight.shape[1]) for count in counts]
    if not counts:
        raise ValueError("`counts` is empty: name at least one number of prototypes.")
    if not isinstance(draws, int) or draws < 1:
        raise ValueError(f"`draws` must be an integer of at least 1, got {draws!r}.")
    logits = similarities @ weight.T + bias
    if len(weight) == 1:
        scores = weight * similarities * torch.sign((weight * similarities).sum(-1, keepdim=True))
    else:
        scores = weight[logits.argmax(-1)] * similarities
    best = _places(scores)
    generator = torch.Generator().manual_seed(seed)
    random = [torch.rand(similarities.shape, generator=generator, dtype=torch.float64) for _ in range(draws)]
    random = [_places(scores) for scores in random]
    results = []
    for count in counts:
        chosen = _drops(weight, similarities, bias, best < count)
        drawn = torch.stack([_drops(weight, similarities, bias, places < count) for places in random]).mean(0)
        intervals = [bootstrap_interval([drops.tolist()], seed, resamples) for drops in (*chosen, *drawn)]
        results.append(PrototypeFaithfulness(count, *intervals))
    return results


def faithfulness_of_texts(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    batch_size: int = 32,
    **options: Any,
) -> list[PrototypeFaithfulness]:
    """`prototype_faithfulness` of a model on texts: one forward pass for each text, whatever `options` ask for.

    Args:
        model: a `ProtoForSequenceClassification`; comes out as it was.
        tokenizer: its tokenizer.
        texts: the texts.
        max_length: tokens a text may have; at most what model and tokenizer permit, which is the default.
        batch_size: texts a forward pass.
        **options: see `prototype_faithfulness`.

    Raises:
        ValueError: no text, or see `prototype_faithfulness`.
    """
    pooled = pooled_embeddings(model, tokenizer, texts, max_length=max_length, batch_size=batch_size)
    config = model.config
    prototypes = model.prototypes.detach().cpu().double()
    similarities = distances_and_similarities(pooled.double(), prototypes, config.distance, config.epsilon)[1]
    weight, bias = model.last_layer(pooled.to(model.prototypes.device))
    return prototype_faithfulness(weight, similarities, bias, **options)


def pooled_embeddings(
    model: Any, tokenizer: Any, texts: Sequence[str], *, max_length: int | None = None, batch_size: int = 32
) -> torch.Tensor:
    """`(texts, hidden)` on the CPU: what a model with prototypes compares with them, in evaluation mode.

    Texts are cut to `max_length` tokens; at most what model and tokenizer permit, which is the default.

    Raises:
        ValueError: no text.
    """
    texts = list(texts)
    if not texts:
        raise ValueError("At least one text is needed, got none.")
    limits = (max_length, position_limit(model), tokenizer.model_max_length)
    max_length = min((n for n in limits if n is not None and n < NO_LIMIT), default=None)
    found = []
    with torch.inference_mode(), evaluation_mode(model):
        for begin in range(0, len(texts), batch_size):
            inputs = tokenizer(
                texts[begin : begin + batch_size],
                truncation=max_length is not None,
                max_length=max_length,
                padding=True,
                return_tensors="pt",
            )
            found.append(model.embed(**inputs.to(model.device))[0].cpu())
    return torch.cat(found)


def share_of_prototypes_that_keep_accuracy(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
    weight: torch.Tensor,
    distance: str = "l2",
    epsilon: float = 1e-4,
    *,
    bias: torch.Tensor | None = None,
    tolerance: float = 0.005,
) -> ProjectionAccuracy:
    """For how many prototypes projection costs next to no accuracy: each is projected alone, the others are left.

    Args:
        embeddings: `(texts, hidden)`, pooled; see `pooled_embeddings`.
        labels: `(texts,)` class indices.
        before: `(prototypes, hidden)`, before projection.
        after: `(prototypes, hidden)`, after it.
        weight: `(labels, prototypes)`, of the last layer before projection.
        distance: as in `ProtoConfig`.
        epsilon: as in `ProtoConfig`.
        bias: `(labels,)`, of the last layer.
        tolerance: how much lower accuracy may be, as a fraction.

    Raises:
        ValueError: shapes that do not fit, no text, values that are not finite, or a regression.
    """
    embeddings, before, after = (tensor.detach().cpu().double() for tensor in (embeddings, before, after))
    if before.shape != after.shape or before.dim() != 2 or embeddings.shape[1:] != before.shape[1:]:
        raise ValueError(
            "Prototypes before and after are (prototypes, hidden), embeddings (texts, hidden); got "
            f"{tuple(before.shape)}, {tuple(after.shape)} and {tuple(embeddings.shape)}."
        )
    labels = torch.as_tensor(labels).cpu()
    if len(weight) < 2 or labels.is_floating_point():
        raise ValueError("Accuracy is of classes; a regression has none.")
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(f"{len(embeddings)} texts need as many labels, got {tuple(labels.shape)}.")
    old = distances_and_similarities(embeddings, before, distance, epsilon)[1]
    new = distances_and_similarities(embeddings, after, distance, epsilon)[1]
    weight, old, bias = _last_layer(weight, old, bias)
    _, new, _ = _last_layer(weight, new, bias)

    def hits(similarities: torch.Tensor) -> int:
        return int(((similarities @ weight.T + bias).argmax(-1) == labels).sum())

    count, unprojected = len(labels), hits(old)
    found = []
    for prototype in range(len(before)):
        one = old.clone()
        one[:, prototype] = new[:, prototype]
        found.append(hits(one))
    allowed = tolerance * count + 1e-9  # counted in texts, where a difference of fractions would be rounded
    kept = sum(unprojected - hit <= allowed for hit in found)
    return ProjectionAccuracy(kept / len(found), unprojected / count, tuple(hit / count for hit in found))


def _last_layer(
    weight: torch.Tensor, similarities: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the logits are computed from, in float64 on the CPU."""
    weight, similarities = weight.detach().cpu().double(), similarities.detach().cpu().double()
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().cpu().double()
    if weight.dim() != 2 or similarities.dim() != 2 or similarities.shape[1] != weight.shape[1]:
        raise ValueError(
            "Weights are (labels, prototypes) and similarities (texts, prototypes), got "
            f"{tuple(weight.shape)} and {tuple(similarities.shape)}."
        )
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"The bias is one number for each of {len(weight)} labels, got {tuple(bias.shape)}.")
    if not len(similarities) or not weight.numel():
        raise ValueError(f"At least one text and one prototype are needed, got {tuple(similarities.shape)}.")
    for name, tensor in (("Weights", weight), ("Similarities", similarities), ("Biases", bias)):
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} must be finite, but some are NaN or infinite.")
    return weight, similarities, bias


def _count(count: int | float, prototypes: int) -> int:
    """A number of prototypes, given as such or as a share of all."""
    if isinstance(count, bool) or not isinstance(count, int | float) or not math.isfinite(count):
        raise ValueError(f"A number of prototypes is an int, or a float as their share, got {count!r}.")
    if isinstance(count, float):
        if not 0 < count <= 1:
            raise ValueError(f"A share of prototypes lies in (0, 1], got {count}; a number of them is an int.")
        return max(1, round(count * prototypes))
    if not 1 <= count <= prototypes:
        raise ValueError(f"Of {prototypes} prototypes, {count} cannot be removed or kept: 1 to {prototypes} can.")
    return count


def _places(scores: torch.Tensor) -> torch.Tensor:
    """`(texts, prototypes)`: the place of each prototype when the largest score comes first."""
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def _drops(weight: torch.Tensor, similarities: torch.Tensor, bias: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """`(2, texts)`: how far the prediction drops without the chosen prototypes, and with them alone."""
    logits = similarities @ weight.T + bias
    changed = [similarities.masked_fill(removed, 0.0) @ weight.T + bias for removed in (chosen, ~chosen)]
    if len(weight) == 1:
        return torch.stack([(logits - other).abs().squeeze(-1) for other in changed])
    predicted = logits.argmax(-1, keepdim=True)
    probability = logits.softmax(-1).gather(-1, predicted)
    return torch.stack([(probability - other.softmax(-1).gather(-1, predicted)).squeeze(-1) for other in changed])
