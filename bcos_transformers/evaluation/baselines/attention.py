"""Attention weights as attributions: their mean, and their rollout over the layers."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bcos_transformers.evaluation.baselines.base import AttributionMethod, Batch


class Attention(AttributionMethod):
    """Attention from where the head reads to every token, averaged over layers and heads; never negative.

    The head reads the first token of encoders, the last one of models whose attention looks back only, and all of them if
    the configuration says that the classifier pools by the mean. SDPA and other fast kernels give no weights, so a second
    model object with eager attention is built that shares every parameter and buffer with the model; the model is not
    touched.

    Raises:
        ValueError: a model that gives no attention weights, when it is used.
    """

    name = "attention"
    signed = False
    row_by_row = True  # eager attention within a window gives NaN where padding leaves a token nothing to look at

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> None:
        super().__init__(model, tokenizer, seed=seed)
        self._twin: PreTrainedModel | None = None

    def models(self) -> tuple[PreTrainedModel, ...]:
        if self._twin is None:
            self._twin = eager_twin(self.model)
        return (self._twin,)

    def _scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        layers = self._attentions(batch)
        return self._read_by_head(layers, torch.stack(layers).mean(0)), None

    def _attentions(self, batch: Batch) -> list[torch.Tensor]:
        """Of every layer, averaged over heads, `(1, tokens, tokens)` in at least float32."""
        (twin,) = self.models()
        with torch.no_grad():
            out = twin(**batch.inputs, output_attentions=True, return_dict=True)
        found = getattr(out, "attentions", None)
        if not found or any(layer is None for layer in found):
            raise ValueError(
                f"{type(self.model).__name__} gives no attention weights, so {self.name} has none to show."
            )
        wide = torch.promote_types(found[0].dtype, torch.float32)
        return [layer.to(batch.real.device, wide).mean(1) for layer in found]

    def _read_by_head(self, layers: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        """The row `(1, tokens)` of `weights` that belongs to what the head reads."""
        if getattr(self.model.config, "classifier_pooling", None) == "mean":
            return weights.mean(1)
        looks_back_only = all(not bool(layer.triu(1).any()) for layer in layers)
        return weights[:, -1 if looks_back_only else 0]


class AttentionRollout(Attention):
    """Attention followed through the layers with their residual connections (Abnar & Zuidema 2020, arXiv 2005.00928); never negative.

    Each layer's mean attention counts half and the token itself the other half; the product of the layers says which
    input tokens reach what the head reads.
    """

    name = "attention_rollout"

    def _scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        layers = self._attentions(batch)
        identity = torch.eye(batch.real.shape[1], dtype=layers[0].dtype, device=layers[0].device)
        flow = identity.expand_as(layers[0])
        for layer in layers:
            mixed = layer + identity
            flow = (mixed / mixed.sum(-1, keepdim=True)) @ flow
        return self._read_by_head(layers, flow), None


def eager_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A second object of the same model that computes attention step by step, in evaluation mode.

    Its parameters and buffers, those that are not saved included, are the model's own, now and after the model is moved
    or trained.
    """
    shared: dict[int, Any] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            shared[id(tensors)] = tensors
            shared.update((id(tensor), tensor) for tensor in tensors.values() if tensor is not None)
    twin = copy.deepcopy(model, shared)
    for config in {id(c): c for c in (getattr(m, "config", None) for m in twin.modules()) if c is not None}.values():
        config._attn_implementation = "eager"
    for module in twin.modules():
        module.training = False
    return twin
