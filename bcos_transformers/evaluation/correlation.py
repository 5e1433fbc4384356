"""Rank correlation."""

import torch


def spearman(one: torch.Tensor, other: torch.Tensor) -> float:
    """Spearman correlation of two vectors `(n,)`; tied values share their mean rank.

    Returns:
        Between −1 and 1; NaN where all values of a vector are the same.
    """
    if len(one.unique()) < 2 or len(other.unique()) < 2:
        return float("nan")
    return float(torch.corrcoef(torch.stack([_ranks(one), _ranks(other)]))[0, 1])


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks, tied values sharing their mean rank."""
    _, place, counts = values.unique(sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[place]
