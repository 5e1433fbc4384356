"""Methods that take tokens away and watch the logit, through captum, on a vector that says which tokens are there."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bcos_transformers.evaluation.baselines.base import AttributionMethod, Batch, captum_attr, check_count
from bcos_transformers.evaluation.baselines.embedded import EmbeddedBatch, reference_token


class _Perturbation(AttributionMethod):
    """Methods that exchange tokens for the mask token; special tokens stay, and get a score of 0.

    Tokenizers without a mask token have their unknown token in its place, else padding, else the end of a text.

    Args:
        model: see `AttributionMethod`.
        tokenizer: see `AttributionMethod`.
        seed: see `AttributionMethod`.
        perturbations_per_eval: most variants of a text that one forward pass takes.
    """

    row_by_row = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        perturbations_per_eval: int = 32,
    ) -> None:
        super().__init__(model, tokenizer, seed=seed)
        reference_token(tokenizer, "mask")  # for its errors
        self.perturbations_per_eval = check_count("perturbations_per_eval", perturbations_per_eval, 1)

    def _scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        given = EmbeddedBatch(self.model, self.tokenizer, batch)
        places = batch.maskable[0].nonzero()[:, 0]
        scores = torch.zeros_like(given.embeddings[..., 0])
        if len(places):
            present = torch.ones(1, len(places), device=places.device)
            found = self._explain(_presence_function(given, places), present)
            scores[0, places] = found[0].to(scores)
        return scores, given.difference() if self.complete else None

    @abstractmethod
    def _explain(self, function: Callable[[torch.Tensor], torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        """Scores `(1, n)` of n tokens, where `function` gives logits `(rows,)` for presence vectors `(rows, n)`."""


class Occlusion(_Perturbation):
    """What the logit loses when a token alone is exchanged for the mask token.

    Args:
        model: see `AttributionMethod`.
        tokenizer: see `AttributionMethod`.
        seed: unused.
        perturbations_per_eval: most variants of a text that one forward pass takes.
    """

    name = "occlusion"

    def _explain(self, function: Callable[[torch.Tensor], torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        method = captum_attr().FeatureAblation(function)
        return method.attribute(present, 0.0, perturbations_per_eval=self.perturbations_per_eval)


class ShapleyValueSampling(_Perturbation):
    """What a token adds to the logit on average when tokens come back in random order (Strumbelj & Kononenko 2010).

    Sums to the logit minus that of the text without tokens, however few orders are drawn, up to float32.

    Args:
        model: see `AttributionMethod`.
        tokenizer: see `AttributionMethod`.
        seed: of the orders.
        n_permutations: orders a text; each costs a forward pass a token.
        perturbations_per_eval: most variants of a text that one forward pass takes.
    """

    name = "shapley_value_sampling"
    complete = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        n_permutations: int = 10,
        perturbations_per_eval: int = 32,
    ) -> None:
        super().__init__(model, tokenizer, seed=seed, perturbations_per_eval=perturbations_per_eval)
        self.n_permutations = check_count("n_permutations", n_permutations, 1)

    def _explain(self, function: Callable[[torch.Tensor], torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        method = captum_attr().ShapleyValueSampling(function)
        return method.attribute(
            present, 0.0, n_samples=self.n_permutations, perturbations_per_eval=self.perturbations_per_eval
        )


class _Surrogate(_Perturbation):
    """Methods that fit a linear model to the logits of random subsets of a text's tokens.

    Args:
        model: see `AttributionMethod`.
        tokenizer: see `AttributionMethod`.
        seed: of the subsets.
        n_samples: subsets a text.
        perturbations_per_eval: most of them that one forward pass takes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        n_samples: int = 200,
        perturbations_per_eval: int = 32,
    ) -> None:
        super().__init__(model, tokenizer, seed=seed, perturbations_per_eval=perturbations_per_eval)
        self.n_samples = check_count("n_samples", n_samples, 2)

    def _fit(self, method: Any, present: torch.Tensor) -> torch.Tensor:
        return method.attribute(
            present, 0.0, n_samples=self.n_samples, perturbations_per_eval=self.perturbations_per_eval
        )


class KernelShap(_Surrogate):
    """Shapley values as the weights of a linear model of random subsets (Lundberg & Lee 2017).

    The subsets of all and of no tokens weigh so much that the sum is, nearly, the difference of their logits.
    """

    name = "kernel_shap"
    complete = True

    def _explain(self, function: Callable[[torch.Tensor], torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        captum = captum_attr()
        if present.shape[1] == 1:  # captum has no distribution over subsets that are neither all nor none
            return captum.FeatureAblation(function).attribute(present, 0.0)
        return self._fit(captum.KernelShap(function), present)


class Lime(_Surrogate):
    """Weights of a sparse linear model that is fitted near the text (Ribeiro et al. 2016), with captum's defaults.

    Subsets are drawn token by token with probability one half and weigh by their cosine distance from the text; the
    model is a lasso (0.01).
    """

    name = "lime"

    def _explain(self, function: Callable[[torch.Tensor], torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        return self._fit(captum_attr().Lime(function), present)


def _presence_function(given: EmbeddedBatch, places: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Logits of a text of which only some tokens are there."""

    def function(presence: torch.Tensor) -> torch.Tensor:
        rows = len(presence)
        mixed = given.embeddings.repeat(rows, 1, 1)
        mixed[:, places] = torch.where(
            presence.bool()[..., None], given.embeddings[:, places], given.reference[:, places]
        )
        with torch.no_grad():
            return given.function(mixed, *(value.expand(rows, *value.shape[1:]) for value in given.arguments))

    return function
