"""The autograd functions of the B-cos layers: whole layers as one node, saving little and recomputing the rest.

Notation: `x` input `(..., in)`, `w` weight `(out, in)`, `u = x·wᵀ`, `n = 1/‖w‖` `(out,)`,
`m = 1/sqrt(‖x‖² + 1e-6)` `(..., 1)`, `c = u·n·m` the cosine, `f(c) = (|c| + 1e-6)^(B-1)` its power, and
`lin = u·n` (normalized weights) or `u`. The layer is `lin · f(c)` (arXiv 2205.10268, eq. 3).
"""

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

NORM_EPS = 1e-6  # added to ‖x‖²
COS_EPS = 1e-6  # added to |cos| before the power, unless B is 1 or 2
BLOCK_ROWS = 256


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """At least float32: norms and cosines are not computed in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _autocast(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The operands of the product in the dtype that autocast, if on, prescribes for a linear layer."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        return x.to(dtype), weight.to(dtype)
    return x, weight


def _inverse_weight_norm(weight: torch.Tensor) -> torch.Tensor:
    norm = torch.linalg.vector_norm(_wide(weight), dim=-1)
    # A row of zeros has no direction: its output and its gradient are zero, not NaN or huge.
    return norm.reciprocal().masked_fill_(norm == 0, 0.0)


def _inverse_input_norm(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(_wide(x), dim=-1, keepdim=True).square().add_(NORM_EPS).rsqrt_()


def _power(scaled: torch.Tensor, inverse_norm: torch.Tensor, b: float) -> torch.Tensor:
    """`f(c)` for `c = scaled · inverse_norm`, in new memory."""
    power = scaled.abs()
    if b == 2.0:
        return power.mul_(inverse_norm)
    power = power.mul_(inverse_norm).add_(COS_EPS)
    if b == 1.5:
        return power.sqrt_()
    if b == 1.25:
        return power.sqrt_().sqrt_()
    return power.pow_(b - 1.0)


def bcos_forward(x: torch.Tensor, weight: torch.Tensor, b: float, normalize_weights: bool) -> tuple:
    """Returns `lin`, `f(c)`, `n` and `m`, the last three None where B or the normalisation does not need them.

    On CPUs fresh memory costs more than arithmetic, hence the operations in place.
    """
    linear, inverse_w = _linear_part(x, weight, b, normalize_weights)
    if b == 1.0:
        return linear, None, inverse_w, None
    inverse_x = _inverse_input_norm(x)
    power = _power(linear, inverse_x if normalize_weights else inverse_x * inverse_w, b)
    return linear, power, inverse_w, inverse_x


def bcos_output(x: torch.Tensor, weight: torch.Tensor, b: float, normalize_weights: bool) -> torch.Tensor:
    """The layer's output where no gradient is wanted.

    Scaled in place and block by block, so that the power of the cosines never takes more than a block of memory.
    """
    x, weight = _autocast(x, weight)
    linear, inverse_w = _linear_part(x, weight, b, normalize_weights)
    if b != 1.0:
        inverse_x = _inverse_input_norm(x)
        scale = inverse_x if normalize_weights else inverse_x * inverse_w
        for rows, scales in _blocks(linear, scale):
            rows.mul_(_power(rows, scales, b))
    return linear.to(x.dtype)


def bcos_of_product(
    x: torch.Tensor, product: torch.Tensor, weight: torch.Tensor, b: float, normalize_weights: bool
) -> torch.Tensor:
    """The layer written out, for a `product` that is not simply `x·wᵀ`; differentiated by autograd."""
    inverse_w = _wide(weight).square().sum(-1).clamp_min(torch.finfo(_wide(weight).dtype).tiny).rsqrt()
    wide = _wide(product)
    linear = wide * inverse_w if normalize_weights else wide
    if b != 1.0:
        inverse_x = (_wide(x).square().sum(-1, keepdim=True) + NORM_EPS).rsqrt()
        cosine = (wide * inverse_w * inverse_x).abs()
        linear = linear * (cosine if b == 2.0 else (cosine + COS_EPS) ** (b - 1.0))
    return linear.to(product.dtype)


def frozen_weight_rows(x: torch.Tensor, rows: torch.Tensor, b: float, normalize_weights: bool) -> torch.Tensor:
    """Rows of the layer's dynamic matrix at `x` `(..., in)` that belong to the weights `rows` `(..., n, in)`."""
    wide_x, wide_rows = _wide(x).unsqueeze(-2), _wide(rows)
    inverse_w = _inverse_weight_norm(wide_rows).unsqueeze(-1)
    scaled = wide_rows * inverse_w if normalize_weights else wide_rows
    if b == 1.0:
        return scaled.to(rows.dtype)
    linear = (wide_rows * wide_x).sum(-1, keepdim=True) * inverse_w
    return (scaled * _power(linear, _inverse_input_norm(wide_x), b)).to(rows.dtype)


def frozen_weight_mean(x: torch.Tensor, weight: torch.Tensor, b: float, normalize_weights: bool) -> torch.Tensor:
    """Mean of all rows of the layer's dynamic matrix at `x` `(..., in)`, as `(..., 1, in)`."""
    _, power, inverse_w, _ = bcos_forward(x, weight, b, normalize_weights)
    scale = x.new_ones(*x.shape[:-1], len(weight)) if power is None else power
    if normalize_weights:
        scale = scale * inverse_w
    return (scale.to(weight.dtype) @ weight / len(weight)).unsqueeze(-2)


def _linear_part(
    x: torch.Tensor, weight: torch.Tensor, b: float, normalize_weights: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`lin` in new memory, and `n`, or None where neither B nor the normalisation needs it."""
    product = _wide(F.linear(x, weight))
    if b == 1.0 and not normalize_weights:
        return product, None
    inverse_w = _inverse_weight_norm(weight)
    return (product.mul_(inverse_w) if normalize_weights else product), inverse_w


def _blocks(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The same rows of every tensor, a block at a time, as views: temporary results stay in the cache."""
    size = None if torch.compiler.is_compiling() else BLOCK_ROWS
    rows = [tensor.view(-1, tensor.shape[-1]) for tensor in tensors]
    return zip(*([r] if size is None else r.split(size) for r in rows), strict=True)


class BcosLinearFunction(torch.autograd.Function):
    """The B-cos layer with its full gradient.

    Both corrections in the backward pass come from Euler's theorem: the output does not change when a normalized
    weight row is rescaled, and scales with the power B in the input, so they are inner products that cost no further
    pass over the output.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, b: float, normalize_weights: bool) -> torch.Tensor:
        ctx.dtypes = (x.dtype, weight.dtype)
        x, weight = _autocast(x, weight)
        linear, power, inverse_w, inverse_x = bcos_forward(x, weight, b, normalize_weights)
        ctx.b, ctx.normalize_weights = b, normalize_weights
        # `lin` is kept in the dtype of the product, so half precision keeps half the memory; `f(c)` is recomputed.
        kept = linear.to(x.dtype)
        ctx.save_for_backward(x, weight, kept, inverse_w, inverse_x)
        return kept if power is None else power.mul_(linear).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        # What is saved has no graph of its own; `once_differentiable` would forbid batched gradients and compilation.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("B-cos layers have no second derivatives: do not use create_graph=True.")
        x, weight, linear, inverse_w, inverse_x = ctx.saved_tensors
        b, normalized = ctx.b, ctx.normalize_weights
        product_dtype = linear.dtype
        grad, linear = _wide(grad), _wide(linear)
        needs_x, needs_w = ctx.needs_input_grad[:2]
        grad_x = grad_w = None

        if inverse_x is None:  # B = 1
            grad_linear, grad_frozen = grad, grad
        else:
            scale = inverse_x if normalized else inverse_x * inverse_w
            power = _power(linear, scale, b)
            grad_frozen = grad * power
            grad_linear = grad_frozen * b
            if b != 2.0:
                cosine_eps = linear.abs().mul_(scale).add_(COS_EPS)
                grad_linear = torch.addcdiv(grad_linear, grad_frozen, cosine_eps, value=-(b - 1.0) * COS_EPS)
        through = grad_linear if inverse_w is None or not normalized else grad_linear * inverse_w
        through = through.to(product_dtype)

        if needs_x:
            grad_x = through @ weight
            if inverse_x is not None:
                wide_x, wide_grad = _wide(x), _wide(grad_x)
                excess = (wide_x * wide_grad).sum(-1, keepdim=True) - (grad_frozen * linear).sum(-1, keepdim=True)
                grad_x = wide_grad - wide_x * (inverse_x.square() * excess)
            grad_x = grad_x.to(ctx.dtypes[0])
        if needs_w:
            grad_w = _wide(through.reshape(-1, through.shape[-1]).t() @ x.reshape(-1, x.shape[-1]))
            if inverse_w is not None and (normalized or inverse_x is not None):
                wide_w = _wide(weight)
                excess = (wide_w * grad_w).sum(-1, keepdim=True)
                if not normalized:
                    excess = excess - (grad_frozen * linear).reshape(-1, linear.shape[-1]).sum(0).unsqueeze(-1)
                grad_w = grad_w - wide_w * (inverse_w.square().unsqueeze(-1) * excess)
            grad_w = grad_w.to(ctx.dtypes[1])
        return grad_x, grad_w, None, None


class FrozenBcosLinearFunction(torch.autograd.Function):
    """The B-cos layer in explanation mode: same values, and linear in `x` with `n` and `f(c)` held constant.

    `first_token`: see `keep_first_token`.
    """

    @staticmethod
    def forward(
        ctx, x: torch.Tensor, weight: torch.Tensor, b: float, normalize_weights: bool, first_token: bool
    ) -> torch.Tensor:
        ctx.dtype, ctx.first_token = x.dtype, first_token
        x, weight = _autocast(x, weight)
        linear, power, inverse_w, _ = bcos_forward(x, weight, b, normalize_weights)
        out = (linear if power is None else linear.mul_(power)).to(x.dtype)
        ctx.save_for_backward(weight, inverse_w if normalize_weights else None)
        # Not saved by autograd, which would forbid `FrozenGateFunction` to multiply its gate into it.
        ctx.factor = keep_first_token(power, first_token)
        return out

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        weight, inverse_w = ctx.saved_tensors
        tokens = grad.shape[-2] if ctx.first_token else None
        grad = keep_first_token(grad, ctx.first_token)
        if ctx.factor is not None:
            grad = grad * ctx.factor
        if inverse_w is not None:
            weight = weight * inverse_w.unsqueeze(-1)
        grad_x = (grad.to(weight.dtype) @ weight).to(ctx.dtype)
        return pad_tokens(grad_x, tokens), None, None, None, None


class FrozenQueryKeyFunction(torch.autograd.Function):
    """A fused query, key and value projection in explanation mode: only the values, from `value_start` on, are linear."""

    @staticmethod
    def forward(
        ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, value_start: int
    ) -> torch.Tensor:
        ctx.dtype, ctx.value_start = x.dtype, value_start
        ctx.save_for_backward(weight[value_start:])
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        (weight,) = ctx.saved_tensors
        return (grad[..., ctx.value_start :].to(weight.dtype) @ weight).to(ctx.dtype), None, None, None


class FrozenLayerNormFunction(torch.autograd.Function):
    """Layer normalisation in explanation mode: same values, `1/std` held constant, centring differentiated."""

    @staticmethod
    def forward(
        ctx,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        normalized_shape: tuple[int, ...],
        eps: float,
        first_token: bool,
    ) -> torch.Tensor:
        ctx.dtype, ctx.dims, ctx.first_token = x.dtype, tuple(range(-len(normalized_shape), 0)), first_token
        if torch.is_autocast_enabled(x.device.type):
            out = F.layer_norm(x, normalized_shape, weight, None, eps)
            inverse_std = torch.rsqrt(_wide(x).var(ctx.dims, unbiased=False, keepdim=True) + eps)
        else:
            out, _, inverse_std = torch.native_layer_norm(x, normalized_shape, weight, None, eps)
        ctx.save_for_backward(weight, keep_first_token(inverse_std, first_token))
        return out

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        weight, inverse_std = ctx.saved_tensors
        tokens = grad.shape[-2] if ctx.first_token else None
        scaled = _wide(keep_first_token(grad, ctx.first_token))
        scaled = scaled * inverse_std if weight is None else (scaled * weight).mul_(inverse_std)
        grad_x = scaled.sub_(scaled.mean(ctx.dims, keepdim=True)).to(ctx.dtype)
        return pad_tokens(grad_x, tokens), None, None, None, None


class FrozenGateFunction(torch.autograd.Function):
    """An activation `x · gate(x)` in explanation mode: same values, the gate held constant.

    If `factor` is given, what the B-cos layer that made `x` will multiply its gradient with, the gate goes into it, and
    the gradient passes here untouched: one tensor less to keep, and one product less to compute.
    """

    @staticmethod
    def forward(
        ctx,
        x: torch.Tensor,
        activation: Callable[[torch.Tensor], torch.Tensor],
        gate_at_zero: float,
        first_token: bool,
        factor: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.first_token, ctx.merged = first_token, factor is not None
        out = activation(x)
        kept_out, kept_x = keep_first_token(out, first_token), keep_first_token(x, first_token)
        # Only 0/0 is NaN here: an input that is NaN makes the logits NaN, which `explain` refuses.
        if factor is None:
            ctx.save_for_backward((kept_out / kept_x).nan_to_num_(nan=gate_at_zero))
        else:
            for rows, outs, xs in _blocks(factor, kept_out, kept_x):
                rows.mul_((outs / xs).nan_to_num_(nan=gate_at_zero))
        return out

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        if ctx.merged:
            return grad, None, None, None, None
        (gate,) = ctx.saved_tensors
        tokens = grad.shape[-2] if ctx.first_token else None
        return pad_tokens(keep_first_token(grad, ctx.first_token) * gate, tokens), None, None, None, None


def keep_first_token(tensor: torch.Tensor | None, first_token: bool) -> torch.Tensor | None:
    """What the gradient of the first token needs of `tensor` `(batch, tokens, features)`.

    In the last layer of a model that classifies from its first token, the gradients of all other tokens are zero: there
    is nothing to remember for them and nothing to multiply.
    """
    return tensor[..., :1, :].clone() if first_token and tensor is not None else tensor


def pad_tokens(tensor: torch.Tensor, tokens: int | None) -> torch.Tensor:
    """Fills the tokens that `keep_first_token` left out with zeros; nothing to do if `tokens` is None."""
    return tensor if tokens is None else F.pad(tensor, (0, 0, 0, tokens - tensor.shape[-2]))
