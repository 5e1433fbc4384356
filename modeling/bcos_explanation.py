"""Exact explanations: one forward pass, and one backward pass per target, split each logit over the input tokens."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.utils import ModelOutput

from .bcos_attention import FrozenAttention
from .bcos_conversion import only_last_layer_is_marked
from .bcos_eval_mode import evaluation_mode
from .bcos_inputs import check_inputs
from .bcos_peft import tuner_layer_faults
from .bcos_state import EmbeddingRecorder, explanation_mode
from .bcos_targets import Quantities, explained_quantities

logger = logging.getLogger(__name__)

MAX_TARGETS = 1000


@dataclass
class BcosExplanation(ModelOutput):
    """Signed contributions of the input tokens to logits (arXiv 2502.12992, eq. 5).

    Shapes for sequence classification, masked LM and question answering; token classification has a further dimension
    `positions` after `batch` everywhere but in `logits`.

    Args:
        logits: the model's own logits; for question answering start and end logits, stacked: `(batch, tokens, 2)`.
        contributions: `(batch, targets, tokens)`, in at least float32; exactly 0 on padding. Their sum over the tokens
            is `values` up to `residual`.
        target: `(batch, targets)`, the explained class, output or token id; question answering: 0 start, 1 end, 2 span.
        values: `(batch, targets)`, the explained quantity: the logit, after contrast where one was asked for.
        residual: `(batch, targets)`, `values` minus the sum of the contributions: the proof of completeness.
        position: which position each logit was read from: `(batch,)` for language models, `(batch, positions)` for
            token classification (-1 fills up shorter rows, whose contributions are 0 there), `(batch, targets, 2)` for
            question answering (start and end; -1 where it plays no part). None for sequence classification.
        parts: with `parts=True`, contributions of each part of the input embedding (`"word"`, `"position"`,
            `"token_type"`), each shaped like `contributions`; they add up to it.
    """

    logits: torch.Tensor | None = None
    contributions: torch.Tensor | None = None
    target: torch.Tensor | None = None
    values: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    position: torch.Tensor | None = None
    parts: dict[str, torch.Tensor] | None = None


class BcosExplanationMixin:
    """Adds `.explain()` to a B-cos model."""

    explanation_task: str | None = None
    pools_first_token: bool = False
    pools_last_token: bool = False  # the last one whose id is not config.pad_token_id
    derives_positions_from_ids: bool = False

    def explain(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        target: Any = None,
        contrast: Any = None,
        position: Any = None,
        parts: bool = False,
        chunk_size: int = 16,
        allow_large: bool = False,
        **inputs: Any,
    ) -> BcosExplanation:
        """Splits logits exactly into signed contributions of the input tokens.

        Leaves the model as it was: training mode, gradients and `requires_grad` included. Safe to call from several
        threads. Works in the model's own dtype and on its own devices; in half precision `residual` tells the rounding.

        Args:
            input_ids: `(batch, tokens)`.
            attention_mask: `(batch, tokens)`, 1 for real tokens and 0 for padding. Causal language models take padding
                on either side; with padding on the left the position ids count real tokens only, as in `generate`.
            target: what to explain. None: the predicted class or token (regression, multi-label: every output;
                question answering: the predicted span). An int, a label name, `"all"`, or a tensor `(batch,)` or
                `(batch, targets)`. Question answering: `"start"`, `"end"`, `"span"`, or `"all"` three.
            contrast: None, `"mean"` (minus the mean of all logits), or a foil whose logit is subtracted: an int, a
                label name or a tensor `(batch,)`; for question answering a position, or a pair of them for a span.
            position: where the logit is read. Token classification: an int, a list or None (every real token).
                Masked LM: an int or a tensor `(batch,)`; None is the only mask token. Causal LM: the same, counting real
                tokens from either end; None is the last one. Question answering: an int, or `(start, end)` for a span;
                None is the prediction. Negative positions count back from the last real token.
            parts: also split the contributions into the parts of the embedding.
            chunk_size: how many targets one batched backward pass takes; bounds the memory.
            allow_large: permit more than 1,000 targets per text.
            **inputs: further arguments of the forward pass (`token_type_ids`, `position_ids`, `inputs_embeds`).
                Labels are ignored.

        Raises:
            TypeError: a model without a head, unknown arguments, or arguments of the wrong type.
            ValueError: wrong shapes or padding, an unknown target, too many targets, or logits that are not finite.
        """
        if self.explanation_task is None:
            raise TypeError(
                f"{type(self).__name__} has no head, so there is no logit to explain. "
                "Load it for a task, e.g. with AutoModelForSequenceClassification."
            )
        quantities = partial(explained_quantities, target=target, contrast=contrast, position=position)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        return self._explain(given, quantities, parts, chunk_size, allow_large)

    def _explain(
        self,
        inputs: dict[str, Any],
        quantities_of: Callable[..., Quantities],
        parts: bool,
        chunk_size: int,
        allow_large: bool,
    ) -> BcosExplanation:
        """Splits what `quantities_of(model, output, inputs, mask, recorder)` reads from the model's output."""
        if not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 1:
            raise ValueError(f"`chunk_size` must be an integer of at least 1, got {chunk_size!r}.")
        faults = tuner_layer_faults(self)
        if faults:
            raise ValueError(
                f"{type(self).__name__} cannot be explained exactly: {'; '.join(faults)}. LoRA (`LoraConfig`) goes "
                "inside of B-cos layers if peft is asked for it after this model's code was imported; other kinds of "
                "adapters have to be merged or unloaded first."
            )
        recorder = EmbeddingRecorder(self)
        with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(self):
            given, mask = check_inputs(self, inputs)
            if "inputs_embeds" in given:
                given["inputs_embeds"] = recorder.record("word", given["inputs_embeds"])
            first_token_only = self.pools_first_token and only_last_layer_is_marked(self)
            with FrozenAttention(), explanation_mode(recorder, first_token_only):
                # Not `self(...)`: a compiled model would be traced anew for a pass that records its embeddings.
                output = self._call_impl(**{**given, "return_dict": True})
            if recorder.leaf is None:
                raise ValueError(
                    f"The input embeddings of {type(self).__name__} are not B-cos embeddings (any more), so they cannot be "
                    "explained. Exchange embeddings by `model.set_input_embeddings` or `resize_token_embeddings` of the "
                    "whole model."
                )
            quantities = quantities_of(self, output, given, mask, recorder)
            count = quantities.values[0].numel()
            if count > MAX_TARGETS and not allow_large:
                raise ValueError(
                    f"{count} targets per text; pass allow_large=True if you mean it, or name fewer targets or positions."
                )
            explained = quantities.values if quantities.surrogate is None else quantities.surrogate
            contributions, parts_of = split_over_tokens(explained, recorder, mask, chunk_size, parts)
        values = quantities.values.detach().to(contributions.device, contributions.dtype)
        if not torch.isfinite(values).all():
            raise ValueError(
                "The explained logits are not finite, so there is nothing to split. Known causes: weights that are NaN, "
                "float16 overflow, or eager attention in float64 where padding leaves a token nothing to look at (use "
                "attn_implementation='sdpa')."
            )
        if not torch.isfinite(contributions).all():
            raise ValueError(
                f"The logits are finite but their contributions are not: the backward pass overflows {self.dtype}. "
                "Explain in bfloat16 or float32."
            )
        residual = values - contributions.sum(-1)
        self._warn_of_rounding(residual, contributions)
        return BcosExplanation(
            logits=quantities.logits.detach(),
            contributions=contributions,
            target=quantities.target,
            values=values,
            residual=residual,
            position=quantities.position,
            parts=parts_of if parts else None,
        )

    def _warn_of_rounding(self, residual: torch.Tensor, contributions: torch.Tensor) -> None:
        """Says once how far the sums are off, where it is more than a hundredth."""
        largest = contributions.abs().amax(-1).clamp_min(torch.finfo(contributions.dtype).tiny)
        share = (residual.abs() / largest).max().item()
        if share > 0.01 and not getattr(self, "_warned_of_rounding", False):
            self._warned_of_rounding = True
            logger.warning(
                "Contributions miss their logits by up to %.1f %% of the largest contribution. The model's dtype is %s. "
                "In half precision this is rounding; a model that a Trainer trained with bf16 or fp16 keeps autocast in its "
                "forward pass until it is loaded anew. Otherwise a module is not dynamic linear.",
                100 * share,
                self.dtype,
            )


def split_over_tokens(
    values: torch.Tensor,
    recorder: EmbeddingRecorder,
    mask: torch.Tensor,
    chunk_size: int,
    split: bool,
    keep_graph: bool = False,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Gradient · input, summed over the embedding dimension, of every value `(batch, ...)`.

    The word embeddings enter the network in a sum with the other parts, so the gradient with respect to them is the
    gradient with respect to the sum, and the other parts need no pass of their own.
    """
    leaf = recorder.leaf
    wide = torch.promote_types(leaf.dtype, torch.float32)
    inputs = {name: part.to(wide).to(leaf.device).expand_as(leaf) for name, part in recorder.parts.items()}
    if not split:
        inputs = {"all": sum(inputs.values())}
    flat = values.reshape(values.shape[0], -1)
    chunks: dict[str, list[torch.Tensor]] = {name: [] for name in inputs}
    for gradient in _gradients(flat, leaf, chunk_size, keep_graph):
        for name, part in inputs.items():
            chunks[name].append(torch.einsum("qbth,bth->bqt", gradient.to(wide), part))
    padding = ~mask.to(leaf.device)[:, None, :]
    shape = (*values.shape, leaf.shape[1])
    result = {name: torch.cat(chunk, dim=1).masked_fill(padding, 0.0).reshape(shape) for name, chunk in chunks.items()}
    return sum(result.values()), result


def _gradients(flat: torch.Tensor, leaf: torch.Tensor, chunk_size: int, keep_graph: bool):
    """Yields the gradients of the columns of `flat` `(batch, n)` as `(columns, batch, tokens, hidden)` blocks."""
    batch, count = flat.shape
    if count == 1:
        (gradient,) = torch.autograd.grad(flat, leaf, torch.ones_like(flat), retain_graph=keep_graph)
        yield gradient.unsqueeze(0)
        return
    for start in range(0, count, chunk_size):
        size = min(chunk_size, count - start)
        pick = torch.zeros(size, batch, count, dtype=flat.dtype, device=flat.device)
        pick[torch.arange(size), :, torch.arange(start, start + size)] = 1.0
        last = start + size == count
        (gradient,) = torch.autograd.grad(flat, leaf, pick, is_grads_batched=True, retain_graph=keep_graph or not last)
        yield gradient
