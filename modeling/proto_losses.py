"""Distances, similarities, the last layer and losses of proto-lm (arXiv 2311.01732, section 3), for a whole batch at once."""

import torch
from torch import nn
from torch.nn import functional as F

from .bcos_losses import cross_entropy
from .bcos_state import is_explaining

FAR = float("inf")


class LastLayer(nn.Linear):
    """From similarities to logits, in the precision of the similarities, whatever that of the weights is."""

    def forward(self, similarities: torch.Tensor) -> torch.Tensor:
        """`(batch, prototypes)` to `(batch, num_labels)`."""
        bias = None if self.bias is None else self.bias.to(similarities.dtype)
        return F.linear(similarities, self.weight.to(similarities.dtype), bias)


def distances_and_similarities(
    embeddings: torch.Tensor, prototypes: torch.Tensor, distance: str, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far texts are from prototypes, and how similar they are to them.

    Args:
        embeddings: `(batch, hidden)`.
        prototypes: `(prototypes, hidden)`.
        distance: `"l2"`: ‖s − p‖ and 1 / (‖s − p‖ + ε); `"cosine"`: 1 − cos and cos.
        epsilon: ε.

    Returns:
        Distances and similarities, each `(batch, prototypes)` in at least float32.
    """
    wide = torch.promote_types(embeddings.dtype, torch.float32)
    embeddings, prototypes = embeddings.to(wide), prototypes.to(wide)
    with torch.autocast(embeddings.device.type, enabled=False):
        if distance == "cosine":
            # In explanation mode the norm is frozen with the rest: the similarity is linear in the embedding then.
            similarities = unit(embeddings, frozen=is_explaining()) @ unit(prototypes).T
            return 1 - similarities, similarities
        # By differences: by matrix products, small distances would be rounding. Its gradient at 0 is 0.
        distances = torch.cdist(embeddings, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
        return distances, 1 / (distances + epsilon)


def unit(vectors: torch.Tensor, frozen: bool = False) -> torch.Tensor:
    """`vectors` divided by their norms, which are constants of the gradient if `frozen`; one of zeros stays as it is."""
    norms = vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
    return vectors / (norms.detach() if frozen else norms)


def cohesion_and_separation(
    distances: torch.Tensor, own: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What pulls texts to the prototypes of their own class and pushes them from the others, one value a text.

    Args:
        distances: `(batch, prototypes)`.
        own: `(batch, prototypes)`, whether a prototype is of the text's class.
        count: K.

    Returns:
        `(batch,)` the mean distance to the K farthest prototypes of the own class; and `(batch,)` minus the mean distance
        to the K nearest prototypes of the other classes, 0 where there is no other class.
    """
    cohesion = distances.masked_fill(~own, -FAR).topk(count, dim=-1).values.mean(-1)
    if own.all():
        return cohesion, torch.zeros_like(cohesion)
    separation = -distances.masked_fill(own, FAR).topk(count, dim=-1, largest=False).values.mean(-1)
    return cohesion, separation


def task_loss(logits: torch.Tensor, labels: torch.Tensor, regression: bool) -> torch.Tensor:
    """Mean cross-entropy, or mean squared error: λ0's loss."""
    if not regression:
        return cross_entropy(logits, labels)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.mse_loss(logits.squeeze(-1), labels.to(logits.device, logits.dtype).view(-1))


def class_of_labels(labels: torch.Tensor, boundaries: torch.Tensor | None) -> torch.Tensor:
    """`(batch,)` classes of labels; for a regression, their bins: bin i holds the values in [b_(i-1), b_i).

    Values and boundaries are compared in float32, so that a value falls into one bin whether it comes as a Python number
    or from a batch.
    """
    if boundaries is None:
        return labels.view(-1)
    return torch.bucketize(labels.view(-1).float(), boundaries.float(), right=True)
