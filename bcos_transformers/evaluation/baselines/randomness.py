"""Random numbers that depend on a seed and a text's key alone, and leave the global generators as they were."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def row_seed(seed: int, key: int) -> int:
    """A seed in [0, 2**63) for one text."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the generators that captum draws from, torch's on the CPU and numpy's, and sets them back afterwards.

    On a GPU captum draws nothing that matters (noise of standard deviation 0), but that moves its generator, which is
    set back too.
    """
    state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        np.random.set_state(state)
