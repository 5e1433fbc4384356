"""Exact explanations by prototypes: a logit is a sum of shares, and over a B-cos encoder a share is a sum over tokens."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput

from .bcos_attention import FrozenAttention
from .bcos_eval_mode import evaluation_mode
from .bcos_explanation import split_over_tokens
from .bcos_inputs import check_inputs
from .bcos_peft import tuner_layer_faults
from .bcos_state import EmbeddingRecorder, explanation_mode
from .bcos_targets import class_indices, foil_indices, index_of_label
from .proto_losses import LastLayer


@dataclass
class ProtoExplanation(ModelOutput):
    """How much each prototype contributes to logits: weight × similarity (arXiv 2311.01732, section 3.1).

    Args:
        logits: `(batch, num_labels)`, the model's own.
        contributions: `(batch, targets, prototypes)`: the share of each prototype. Their sum and `bias` are `values` up to
            `residual`.
        target: `(batch, targets)`, the explained classes or outputs.
        values: `(batch, targets)`, the explained quantity: the logit, after contrast where one was asked for.
        bias: `(batch, targets)`, what the last layer's bias adds; 0 without one.
        residual: `(batch, targets)`, `values` minus `bias` minus the sum of the contributions.
        similarities: `(batch, prototypes)`.
        distances: `(batch, prototypes)`.
        token_attention: `(batch, tokens)`, the weight α of each token in the embedding that is compared; 0 on padding.
        token_contributions: `(batch, targets, prototypes, tokens)`: the shares split over the input tokens, exactly 0 on
            padding. With `top_k` its third dimension are the prototypes in `token_prototypes`. None where the shares do not
            split: over conventional encoders, and with `distance="l2"`.
        token_prototypes: `(batch, targets, top_k)`, which prototypes these are, largest absolute share first; None without
            `top_k`.
        input_contributions: `(batch, targets, tokens)`: all shares together split over the input tokens.
        token_residual: `(batch, targets)`, `values` minus `bias` minus the sum of `input_contributions`: rounding, which is
            larger than in `residual`, since it is that of the whole encoder.
    """

    logits: torch.Tensor | None = None
    contributions: torch.Tensor | None = None
    target: torch.Tensor | None = None
    values: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    similarities: torch.Tensor | None = None
    distances: torch.Tensor | None = None
    token_attention: torch.Tensor | None = None
    token_contributions: torch.Tensor | None = None
    token_prototypes: torch.Tensor | None = None
    input_contributions: torch.Tensor | None = None
    token_residual: torch.Tensor | None = None


class ProtoExplanationMixin:
    """Adds `.explain()` to a model with prototypes."""

    explanation_task = "sequence-classification"
    pools_first_token = False
    pools_last_token = False

    @property
    def derives_positions_from_ids(self) -> bool:
        return getattr(self.backbone, "derives_positions_from_ids", False)

    @property
    def splits_over_tokens(self) -> bool:
        """Whether the shares of prototypes are exact sums over the input tokens."""
        return self.config.is_bcos and self.config.distance == "cosine"

    def explain(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        target: Any = None,
        contrast: Any = None,
        tokens: bool | None = None,
        top_k: int | None = None,
        chunk_size: int = 16,
        **inputs: Any,
    ) -> ProtoExplanation:
        """Splits logits exactly into the shares of prototypes, and those over a B-cos encoder exactly over tokens.

        Leaves the model as it was. One forward pass; the split over tokens takes one backward pass for all prototypes
        together and one for each prototype that is split.

        Args:
            input_ids: `(batch, tokens)`.
            attention_mask: `(batch, tokens)`, 1 for real tokens and 0 for padding.
            target: None: the predicted class (regression: the output). An int, a label name, `"all"`, or a tensor
                `(batch,)` or `(batch, targets)`.
            contrast: None, `"mean"` (minus the mean of all logits), or a foil whose logit is subtracted: an int, a label
                name or a tensor `(batch,)`.
            tokens: split the shares over the input tokens; None does where it is possible.
            top_k: split only so many prototypes a target, those with the largest absolute shares.
            chunk_size: how many prototypes one batched backward pass takes; bounds the memory.
            **inputs: further arguments of the forward pass (`token_type_ids`, `inputs_embeds`, …). Labels are ignored.

        Raises:
            TypeError: unknown arguments, or arguments of the wrong type.
            ValueError: wrong shapes, an unknown target, or a split over tokens of a model that has none.
        """
        split = self._splits(tokens, top_k)
        faults = tuner_layer_faults(self.backbone) if split else []
        if faults:
            raise ValueError(
                f"Shares cannot be split over tokens exactly: {'; '.join(faults)}. Merge or unload the adapters, use LoRA "
                "with peft asked for it after this model's code was imported, or explain with tokens=False."
            )
        for name, value in (("chunk_size", chunk_size), ("top_k", top_k)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        recorder = EmbeddingRecorder(self) if split else None
        with torch.inference_mode(False), torch.set_grad_enabled(split), evaluation_mode(self):
            given, mask = check_inputs(self, given)
            if split and "inputs_embeds" in given:
                given["inputs_embeds"] = recorder.record("word", given["inputs_embeds"])
            if split:
                with FrozenAttention(), explanation_mode(recorder):
                    # Not `self(...)`: a compiled model would be traced anew for a pass that records its embeddings.
                    output = self._call_impl(**given, return_dict=True)
                if recorder.leaf is None:
                    raise ValueError(
                        "The input embeddings of the encoder are not B-cos embeddings (any more), so shares cannot be split "
                        "over tokens. Exchange embeddings by `model.set_input_embeddings` of the whole model."
                    )
            else:
                output = self._call_impl(**given, return_dict=True)
            explanation, weights = self._shares(output, target, contrast)
            if split:
                self._split(explanation, output.similarities, weights, recorder, mask, top_k, chunk_size)
        return explanation

    def last_layer(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights `(num_labels, prototypes)` and the bias `(num_labels,)`, 0 without one, that make logits of similarities.

        Of a layer that is offloaded, or carries adapters such as LoRA, they are what it makes of each prototype alone.

        Args:
            like: they are constants of its dtype and on its device, which is the model's.
        """
        layer = self.classifier
        hooks = layer._forward_hooks or layer._forward_pre_hooks or hasattr(layer, "_hf_hook")
        if type(layer) is LastLayer and not hooks:
            weight = layer.weight.detach().to(like)
            bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().to(weight)
            return weight, bias
        place = {"device": like.device, "dtype": like.dtype}
        with torch.no_grad(), evaluation_mode(self), torch.autocast(like.device.type, enabled=False):
            bias = layer(torch.zeros(1, self.config.num_prototypes, **place))[0]
            weight = (layer(torch.eye(self.config.num_prototypes, **place)) - bias).T
        return weight.to(like), bias.to(like)

    def _splits(self, tokens: bool | None, top_k: int | None) -> bool:
        if tokens is None:
            tokens = self.splits_over_tokens or top_k is not None
        if tokens and not self.config.is_bcos:
            raise ValueError(
                f"Shares split over the tokens of B-cos encoders only; this one is a {self.config.backbone_config.model_type} "
                "model. Build the prototypes over a B-cos encoder with distance='cosine', or explain with tokens=False."
            )
        if tokens and not self.splits_over_tokens:
            raise ValueError(
                f"With distance={self.config.distance!r} a similarity is not linear in what the tokens contribute, so it does "
                "not split over them. Use distance='cosine', or explain with tokens=False."
            )
        return tokens

    def _shares(self, output: Any, target: Any, contrast: Any) -> tuple[ProtoExplanation, torch.Tensor]:
        """The explanation without its split over tokens, and `(batch, targets, prototypes)` weights."""
        logits, similarities = output.logits.detach(), output.similarities.detach()
        labels = index_of_label(self.config)
        target = class_indices(
            "all" if target is None and self.config.is_regression else target, logits, "target", labels
        )
        foil = foil_indices(contrast, logits, labels)
        weight, bias = self.last_layer(similarities)
        values, weights, biases = logits.gather(-1, target), weight[target], bias[target]
        if isinstance(foil, str):
            values, weights, biases = (
                values - logits.mean(-1, keepdim=True),
                weights - weight.mean(0),
                biases - bias.mean(),
            )
        elif foil is not None:
            values, weights, biases = values - logits.gather(-1, foil), weights - weight[foil], biases - bias[foil]
        contributions = weights * similarities[:, None, :]
        explanation = ProtoExplanation(
            logits=logits,
            contributions=contributions,
            target=target,
            values=values,
            bias=biases,
            residual=values - biases - contributions.sum(-1),
            similarities=similarities,
            distances=output.distances.detach(),
            token_attention=output.token_attention.detach(),
        )
        return explanation, weights

    def _split(
        self,
        explanation: ProtoExplanation,
        similarities: torch.Tensor,
        weights: torch.Tensor,
        recorder: EmbeddingRecorder,
        mask: torch.Tensor,
        top_k: int | None,
        chunk_size: int,
    ) -> None:
        """Adds what the tokens contribute; `similarities` are in the graph of explanation mode."""

        def split(values: torch.Tensor) -> torch.Tensor:
            return split_over_tokens(values, recorder, mask, chunk_size, False, keep_graph=True)[0]

        explanation.input_contributions = split((weights * similarities[:, None, :]).sum(-1))
        if not torch.isfinite(explanation.input_contributions).all():
            raise ValueError(
                f"The logits are finite but what tokens contribute to them is not: the backward pass overflows {self.dtype}. "
                "Explain in bfloat16 or float32."
            )
        explanation.token_residual = explanation.values - explanation.bias - explanation.input_contributions.sum(-1)
        if top_k is None:
            explanation.token_contributions = weights[..., None] * split(similarities)[:, None]
            return
        chosen = explanation.contributions.abs().topk(min(top_k, weights.shape[-1]), dim=-1).indices
        explanation.token_prototypes = chosen
        picked = similarities[:, None, :].expand_as(weights).gather(-1, chosen)
        explanation.token_contributions = split(weights.gather(-1, chosen) * picked)
