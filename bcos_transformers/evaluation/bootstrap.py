"""Confidence intervals by bootstrap."""

from collections.abc import Sequence

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
        drawn = resamples_of(len(values), resamples, generator)
        means += values[drawn].mean(-1) / len(groups)
        center += values.mean().item() / len(groups)
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return center, low, high


def resamples_of(count: int, resamples: int, generator: torch.Generator) -> torch.Tensor:
    """Indices `(resamples, count)`, drawn with replacement."""
    return torch.randint(count, (resamples, count), generator=generator)
