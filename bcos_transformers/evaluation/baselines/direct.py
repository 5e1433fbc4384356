"""The two ends of the scale: scores that know nothing, and the contributions of a B-cos model itself."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bcos_transformers.evaluation.baselines.base import AttributionMethod, Batch


class Random(AttributionMethod):
    """Standard normal scores for every token: what any method has to beat."""

    name = "random"
    row_by_row = True

    def _scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.randn(batch.real.shape, dtype=torch.float64), None


class Bcos(AttributionMethod):
    """The exact contributions of a B-cos model, `model.explain`; they sum to the logit.

    Raises:
        TypeError: a conventional model.
    """

    name = "bcos"
    complete = True

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> None:
        super().__init__(model, tokenizer, seed=seed)
        if not hasattr(model, "explain"):
            raise TypeError(
                f"{type(model).__name__} is not a B-cos model, so it has no contributions of its own. Convert it with "
                "bcos_transformers.from_pretrained_bcos and fine-tune it, or choose a post-hoc method."
            )

    def _scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        out = self.model.explain(**batch.inputs, target=batch.target[:, None])
        return out.contributions[:, 0], out.values[:, 0]
