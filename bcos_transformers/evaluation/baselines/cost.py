"""What an explanation costs, counted in tokens that pass through the model forward or backward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from bcos_transformers.evaluation.baselines.base import AttributionMethod

_COUNTS: ContextVar[bool] = ContextVar("counts", default=True)


class CostMeter:
    """Counts the tokens that pass through models while the block runs; hooks are removed at its end.

    Every text that passes forward counts its tokens, padding included; where its gradient is taken back to the embeddings
    they count once more. Divided by the tokens of one forward pass of the same batch that is the cost in forward
    equivalents: `meter.tokens / batch["input_ids"].numel()`. Methods that take texts one by one give the model no padding,
    so compare costs on batches of texts of similar length. Passes that only measure what scores should sum to are not
    counted. A backward pass of several targets at once, as `model.explain` makes it, counts as one.

    Args:
        *watched: models, or methods, which say themselves what they run: attention runs a twin of its model.

    Attributes:
        tokens: so many so far.

    Raises:
        ValueError: a model whose base model gives no hidden states `(batch, tokens, hidden)`, once it runs.

    Example:
        >>> with CostMeter(method) as meter:
        ...     method.attribute(batch, target)
        >>> meter.tokens / batch["input_ids"].numel()
        2.0
    """

    def __init__(self, *watched: nn.Module | AttributionMethod) -> None:
        self.tokens = 0
        models = [
            model for one in watched for model in (one.models() if isinstance(one, AttributionMethod) else (one,))
        ]
        self._bases = list({id(base): base for base in map(_base, models)}.values())
        self._handles: list[Any] = []
        self._open = False

    def __enter__(self) -> "CostMeter":
        # The base model and not the model: `explain` of B-cos models does not go through the model's own hooks alone.
        hook = self._hook()
        self._handles = [base.register_forward_hook(hook) for base in self._bases]
        self._open = True
        return self

    def __exit__(self, *error: Any) -> None:
        self._open = False
        for handle in self._handles:
            handle.remove()

    def _hook(self) -> Callable[..., None]:
        def count(tokens: int) -> None:
            if self._open:
                self.tokens += tokens

        # A function and no method, so that a copy of a model that is being watched copies no meter.
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not _COUNTS.get():
                return
            hidden = output if torch.is_tensor(output) else output[0]
            if hidden.dim() != 3:
                raise ValueError(
                    f"{type(module).__name__} gives {tuple(hidden.shape)} instead of hidden states (batch, tokens, hidden), "
                    "so the tokens it reads cannot be counted."
                )
            tokens = hidden.shape[0] * hidden.shape[1]
            count(tokens)
            if hidden.requires_grad:
                hidden.register_hook(lambda gradient: count(tokens))

        return hook


@contextmanager
def uncounted() -> Iterator[None]:
    """Forward passes in this block belong to no explanation, so no meter counts them."""
    before = _COUNTS.set(False)
    try:
        yield
    finally:
        _COUNTS.reset(before)


def _base(model: Any) -> nn.Module:
    """What reads the tokens, inside of adapters and under the head."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(model, "base_model", model)
