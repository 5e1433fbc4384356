"""Confidence intervals by bootstrap."""

import math
from collections.abc import Hashable, Sequence

import torch


def bootstrap_interval(
    groups: Sequence[Sequence[float]], seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of the groups' means, and the ends of its percentile bootstrap interval.

    Values are drawn anew within their groups. One group makes it the interval of a plain mean.

    Raises:
        ValueError: an empty group, or none.
    """
    if not groups or not all(len(group) for group in groups):
        raise ValueError("Every group needs a value, and there must be a group.")
    generator = torch.Generator().manual_seed(seed)
    means = torch.zeros(resamples, dtype=torch.float64)
    center = 0.0
    for group in groups:
        values = torch.tensor(group, dtype=torch.float64)
        drawn = torch.randint(len(values), (resamples, len(values)), generator=generator)
        means += values[drawn].mean(-1) / len(groups)
        center += values.mean().item() / len(groups)
    return interval_of(torch.tensor(center, dtype=torch.float64), means, level)


def resampled_weights(
    groups: Sequence[Sequence[Hashable]], resamples: int = 2000, seed: int = 0
) -> list[torch.Tensor]:
    """Weights of the members of each group in resamples of what they stand for.

    Several groups may hold measurements of the same text: a text is drawn, or not, for all of them at once.

    Args:
        groups: of each group, what its members measure.
        resamples: how many.
        seed: of the draws.

    Returns:
        For each group `(resamples, members)`; the weights of a resample sum to 1, or are NaN where it has no member.
    """
    places = {one: place for place, one in enumerate(dict.fromkeys(one for group in groups for one in group))}
    drawn = torch.randint(len(places), (resamples, len(places)), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(resamples, len(places), dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    chosen = (counts[:, [places[one] for one in group]] for group in groups)
    return [weights / weights.sum(1, keepdim=True) for weights in chosen]


def interval_of(center: torch.Tensor, drawn: torch.Tensor, level: float = 0.95) -> tuple[float, float, float]:
    """A value with the percentile interval of its resamples; NaN ones are left out, and all three are NaN where it is."""
    drawn = drawn[~drawn.isnan()]
    if center.isnan() or not len(drawn):
        return math.nan, math.nan, math.nan
    low, high = drawn.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return float(center), low, high
