"""Attention inside an explanation on CPUs: the kernel's own values, and a backward pass for the value path alone."""

from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Attention probabilities are rebuilt for so many texts at a time that they stay below this many numbers.
MAX_PROBABILITIES = 4_000_000


class FrozenAttention(TorchFunctionMode):
    """Replaces the gradient of `scaled_dot_product_attention` for the current thread while the block lasts.

    PyTorch's CPU kernel has one backward pass for queries, keys and values together, and repeats it for every target of
    a batched gradient. Queries and keys are constants in explanation mode: rebuilding the attention matrix and applying
    its transpose gives the gradient of the values in less time, once for all targets. (Those of a fused projection seem
    to need a gradient, which the projection would drop.)
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and _applies(*args, **kwargs):
            return _attend(*args, **kwargs)
        return func(*args, **kwargs)


def _applies(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False) -> bool:
    return value.requires_grad and query.device.type == "cpu" and dropout_p == 0.0 and query.dim() == 4


def _attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return _FrozenAttentionFunction.apply(query.detach(), key.detach(), value, attn_mask, is_causal, scale)


class _FrozenAttentionFunction(torch.autograd.Function):
    """Shapes: query `(batch, heads, queries, dim)`, key and value `(batch, heads, keys, dim)`."""

    @staticmethod
    def forward(ctx, query, key, value, mask, is_causal: bool, scale: float | None) -> torch.Tensor:
        ctx.is_causal, ctx.scale = is_causal, query.shape[-1] ** -0.5 if scale is None else scale
        ctx.save_for_backward(query, key, mask)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[Any, ...]:
        query, key, mask = ctx.saved_tensors
        texts = max(1, MAX_PROBABILITIES // (query.shape[1] * query.shape[2] * key.shape[2]))
        if mask is not None:
            mask = mask.expand(len(query), *mask.shape[1:])
        pieces = []
        for start in range(0, len(query), texts):
            part = slice(start, start + texts)
            probabilities = _probabilities(
                query[part], key[part], None if mask is None else mask[part], ctx.is_causal, ctx.scale
            )
            pieces.append(probabilities.transpose(-1, -2) @ grad[part].to(probabilities.dtype))
        grad_value = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return None, None, grad_value.to(grad.dtype), None, None, None


def _probabilities(query, key, mask, is_causal: bool, scale: float) -> torch.Tensor:
    """The attention matrix `(texts, heads, queries, keys)`; a query that may look nowhere attends to nothing."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(wide) * scale) @ key.to(wide).transpose(-1, -2)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype == torch.bool:
        return scores.masked_fill_(~mask, float("-inf")).softmax(-1).masked_fill_(~mask, 0.0)
    return (scores + mask).softmax(-1)
