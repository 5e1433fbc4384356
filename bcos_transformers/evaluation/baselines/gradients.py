"""Methods that follow the gradient of a logit with respect to the word embeddings, through captum."""

import warnings

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bcos_transformers.evaluation.baselines.base import AttributionMethod, Batch, captum_attr, check_count
from bcos_transformers.evaluation.baselines.embedded import EmbeddedBatch, reference_token
from bcos_transformers.extras import require


class Saliency(AttributionMethod):
    """Length of the gradient with respect to each token's embedding (Simonyan et al. 2014); never negative."""

    name = "saliency"
    signed = False

    def _scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        given = EmbeddedBatch(self.model, self.tokenizer, batch, baseline=None)
        method = captum_attr().Saliency(given.function)
        gradient = method.attribute(
            given.embeddings.requires_grad_(), additional_forward_args=given.arguments, abs=False
        )
        return gradient.norm(dim=-1), None


class InputXGradient(AttributionMethod):
    """Gradient times embedding, summed over its dimensions (Shrikumar et al. 2016).

    The sum would be the logit if the model were linear in its word embeddings; the residual tells how far it is from
    that.
    """

    name = "input_x_gradient"
    complete = True

    def _scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        given = EmbeddedBatch(self.model, self.tokenizer, batch, baseline=None)
        method = captum_attr().InputXGradient(given.function)
        scores = method.attribute(given.embeddings.requires_grad_(), additional_forward_args=given.arguments)
        return scores.sum(-1), given.function.logits


class _WithReference(AttributionMethod):
    """Methods that compare a text with a reference input, of which only special tokens and padding are the same.

    Args:
        model: see `AttributionMethod`.
        tokenizer: see `AttributionMethod`.
        seed: see `AttributionMethod`.
        baseline: what the reference has in the place of every other token: the `"mask"` token (of tokenizers without one
            the unknown token, else padding, else the end of a text), the `"pad"` token, or a `"zero"` embedding.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0, baseline: str = "mask"
    ) -> None:
        super().__init__(model, tokenizer, seed=seed)
        if baseline != "zero":
            reference_token(tokenizer, baseline)  # for its errors
        self.baseline = baseline

    def _embedded(self, batch: Batch) -> EmbeddedBatch:
        return EmbeddedBatch(self.model, self.tokenizer, batch, self.baseline)


class IntegratedGradients(_WithReference):
    """Gradients averaged along the straight line from the reference to the text (Sundararajan et al. 2017).

    Sums to the logit minus the reference's; the residual is the error of the numerical integral.

    Args:
        model: see `AttributionMethod`.
        tokenizer: see `AttributionMethod`.
        seed: unused.
        baseline: `"mask"`, `"pad"` or `"zero"`: what the reference is made of.
        n_steps: points on the line (Gauss-Legendre); None is 20.
        internal_batch_size: most rows a pass takes.
    """

    name = "integrated_gradients"
    complete = True
    usual_steps = 20

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        baseline: str = "mask",
        n_steps: int | None = None,
        internal_batch_size: int = 64,
    ) -> None:
        super().__init__(model, tokenizer, seed=seed, baseline=baseline)
        self.n_steps = check_count("n_steps", self.usual_steps if n_steps is None else n_steps, 1)
        self.internal_batch_size = check_count("internal_batch_size", internal_batch_size, 1)

    def _scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        scores = torch.zeros(batch.real.shape, dtype=torch.float64)
        explained = torch.zeros(len(batch), dtype=torch.float64)
        for begin in range(0, len(batch), self.internal_batch_size):
            end = min(begin + self.internal_batch_size, len(batch))
            given = self._embedded(batch.rows(begin, end))
            found = self._integrate(given, given.embeddings, given.reference, given.arguments)
            scores[begin:end, : found.shape[1]] = found.sum(-1).double().cpu()
            explained[begin:end] = given.difference().double().cpu()
        return scores, explained

    def _integrate(
        self, given: EmbeddedBatch, embeddings: torch.Tensor, reference: torch.Tensor, arguments: tuple
    ) -> torch.Tensor:
        method = captum_attr().IntegratedGradients(given.function)
        return method.attribute(
            embeddings,
            reference,
            additional_forward_args=arguments,
            n_steps=self.n_steps,
            internal_batch_size=max(self.internal_batch_size, len(embeddings)),
        ).detach()


class SequentialIntegratedGradients(IntegratedGradients):
    """Integrated gradients of one token at a time, all others kept as they are (Enguehard 2023, arXiv 2305.15853).

    A token's score is, up to the error of the integral, what the logit loses when that token alone is exchanged. These
    do not add up to a difference of logits.

    Args:
        model: see `AttributionMethod`.
        tokenizer: see `AttributionMethod`.
        seed: unused.
        baseline: `"mask"`, `"pad"` or `"zero"`: what a token is exchanged for.
        n_steps: points on each token's line (Gauss-Legendre); None is 10.
        internal_batch_size: most rows a pass takes.
    """

    name = "sequential_integrated_gradients"
    complete = False
    row_by_row = True
    usual_steps = 10

    def _scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        given = self._embedded(batch)
        scores = torch.zeros_like(given.embeddings[..., 0])
        places = batch.maskable[0].nonzero()[:, 0]
        for chunk in places.split(max(1, self.internal_batch_size // self.n_steps)) if len(places) else ():
            rows = torch.arange(len(chunk), device=chunk.device)
            text = given.embeddings.repeat(len(chunk), 1, 1)
            without = text.clone()
            without[rows, chunk] = given.reference[0, chunk]
            arguments = tuple(value.expand(len(chunk), *value.shape[1:]) for value in given.arguments)
            found = self._integrate(given, text, without, arguments)
            scores[0, chunk] = found[rows, chunk].sum(-1)
        return scores, None


class DeepLift(_WithReference):
    """Multipliers between a text and the reference (Shrikumar et al. 2017), by captum's rescale rule.

    The rule applies only to activations that are modules of `torch.nn` (`rescaled_modules()` names them): in a
    conventional BERT the tanh of the pooler, in many other models none. Attention, normalisation, and the activations that
    are classes of transformers or of this package are treated as their gradient at the text. So where no module is named
    this is gradient times difference from the reference, and the residual tells what is missing.

    Args:
        model: see `AttributionMethod`.
        tokenizer: see `AttributionMethod`.
        seed: unused.
        baseline: `"mask"`, `"pad"` or `"zero"`: what the reference is made of.

    Raises:
        ValueError: a model without a padding token: captum reads the text and the reference in one pass.
    """

    name = "deep_lift"
    complete = True

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0, baseline: str = "mask"
    ) -> None:
        super().__init__(model, tokenizer, seed=seed, baseline=baseline)
        if getattr(model.config, "pad_token_id", None) is None:
            raise ValueError(
                f"deep_lift gives {type(model).__name__} two rows at a time; set model.config.pad_token_id for that."
            )

    def rescaled_modules(self) -> list[str]:
        """Names of the model's modules that the rescale rule applies to."""
        rules = require("captum.attr._core.deep_lift", "eval").SUPPORTED_NON_LINEAR
        return [name for name, module in self.model.named_modules() if type(module) in rules]

    def _scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        given = self._embedded(batch)
        method = captum_attr().DeepLift(given.function)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", r"Setting forward, backward hooks and attributes on non-linear\s", UserWarning
            )
            scores = method.attribute(
                given.embeddings.requires_grad_(), given.reference, additional_forward_args=given.arguments
            )
        text, reference = given.function.logits.chunk(2)
        return scores.sum(-1), text - reference


class GradientShap(_WithReference):
    """Gradient at random points between the reference and the text, times their difference (Lundberg & Lee 2017).

    Sums to the logit minus the reference's in expectation.

    Args:
        model: see `AttributionMethod`.
        tokenizer: see `AttributionMethod`.
        seed: of the points.
        baseline: `"mask"`, `"pad"` or `"zero"`: what the reference is made of.
        n_samples: points a text.
    """

    name = "gradient_shap"
    complete = True
    row_by_row = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        baseline: str = "mask",
        n_samples: int = 5,
    ) -> None:
        super().__init__(model, tokenizer, seed=seed, baseline=baseline)
        self.n_samples = check_count("n_samples", n_samples, 1)

    def _scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        given = self._embedded(batch)
        method = captum_attr().GradientShap(given.function)
        scores = method.attribute(
            given.embeddings, given.reference, n_samples=self.n_samples, additional_forward_args=given.arguments
        )
        return scores.sum(-1), given.difference()
