"""What decides the numbers of a faithfulness benchmark."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bcos_transformers.evaluation.baselines import METHODS
from bcos_transformers.evaluation.rows import REPLACEMENTS

SEARCH = "search"  # the pseudo-method whose rankings bound what a method could reach
KNOWN = (*METHODS, SEARCH)


@dataclass(frozen=True)
class BenchmarkSettings:
    """What decides the numbers of a cell.

    Attributes:
        max_length: longer texts are cut to so many tokens; None cuts where the model must.
        limit: so many texts at most, chosen at random by `seed`.
        replacement: how a token is hidden, `"mask"` or `"attention"`.
        pairs: pairs of the pointing game; 0 leaves it out.
        min_probability: of the right class for a text to be in a pair.
        search_budget: forward passes a text of the search for the best ranking.
        seed: of everything that is drawn.
        batch_tokens: tokens a forward pass.
        method_options: options of methods by their name.

    Raises:
        ValueError: a number out of range, or options of an unknown method.
    """

    max_length: int | None = None
    limit: int | None = None
    replacement: str = "mask"
    pairs: int = 100
    min_probability: float = 0.8
    search_budget: int = 400
    seed: int = 0
    batch_tokens: int = 4096
    method_options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {"max_length": 1, "limit": 1, "pairs": 0, "search_budget": 1, "batch_tokens": 1, "seed": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            optional = name in ("max_length", "limit") and value is None
            if not optional and (not isinstance(value, int) or isinstance(value, bool) or value < smallest):
                raise ValueError(f"`{name}` must be an integer of at least {smallest}, got {value!r}.")
        if not 0 <= self.min_probability <= 1:
            raise ValueError(f"`min_probability` must lie in [0, 1], got {self.min_probability!r}.")
        if self.replacement not in REPLACEMENTS:
            raise ValueError(f"`replacement` must be one of {REPLACEMENTS}, got {self.replacement!r}.")
        check_methods(self.method_options)


def check_methods(methods: Iterable[str]) -> None:
    """Refuses names that no method has.

    Raises:
        ValueError: see above; the message names those that there are.
    """
    unknown = [method for method in methods if method not in KNOWN]
    if unknown:
        raise ValueError(f"Unknown methods {', '.join(map(repr, unknown))}; there are: {', '.join(KNOWN)}.")
