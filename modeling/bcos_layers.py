"""Dynamic-linear building blocks: every layer computes `W(x) · x` with no additive bias.

In explanation mode (`explanation_mode()`) the forward values stay bit for bit the same, but what depends on the input
inside `W(x)` is treated as a constant when gradients are taken, so that the whole network becomes one linear map of its
input embeddings and `gradient · input` is an exact split of the output.

Sources: B-cos networks (arXiv 2205.10268, eq. 3), B-cos LM (arXiv 2502.12992, section 3).
"""

import numbers
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from .bcos_functions import (
    BcosLinearFunction,
    FrozenBcosLinearFunction,
    FrozenGateFunction,
    FrozenLayerNormFunction,
    FrozenQueryKeyFunction,
    bcos_output,
    frozen_weight_mean,
    frozen_weight_rows,
)
from .bcos_state import STATE


class BcosLinear(nn.Linear):
    """Bias-free linear layer whose output is scaled by alignment: `ŵ·x · |cos(x, w)|^(B-1)`.

    Args:
        in_features: size of the input.
        out_features: size of the output.
        b: alignment pressure B ≥ 1; 1 is a linear layer.
        normalize_weights: use `ŵ = w/‖w‖` (True) or `ŵ = w` (False).

    Shapes: input `(..., in_features)`, output `(..., out_features)`.
    """

    tokenwise_in_last_layer: bool = False
    is_output_layer: bool = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        b: float = 1.5,
        normalize_weights: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=False, device=device, dtype=dtype)
        self.b = check_b(b)
        self.normalize_weights = bool(normalize_weights)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if _records_output(self, input):
            return bcos_output(input.detach(), self.weight.detach(), self.b, self.normalize_weights)
        return self.apply_weight(input, self.weight)

    def apply_weight(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The layer with another weight of the same shape, such as the layer's own with an adapter's update."""
        return _bcos_linear(self, input, weight)

    def frozen_rows(self, input: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """See `BcosValueLinear.frozen_rows`."""
        with torch.no_grad():
            if rows is not None:
                return frozen_weight_rows(input, self.weight[rows], self.b, self.normalize_weights)
            return frozen_weight_mean(input, self.weight, self.b, self.normalize_weights)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, b={self.b:g}, normalize_weights={self.normalize_weights}"


class BcosConv1D(Conv1D):
    """`BcosLinear` for GPT-2's transposed weights.

    Shapes: input `(..., nx)`, output `(..., nf)`; weight `(nx, nf)`.
    """

    tokenwise_in_last_layer: bool = False

    def __init__(self, nf: int, nx: int, b: float = 1.5, normalize_weights: bool = True) -> None:
        super().__init__(nf, nx)
        self.bias = None
        self.b = check_b(b)
        self.normalize_weights = bool(normalize_weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.apply_weight(x, self.weight)

    def apply_weight(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See `BcosLinear.apply_weight`."""
        return _bcos_linear(self, x, weight.t())

    def __repr__(self) -> str:
        return f"BcosConv1D(nf={self.nf}, nx={self.nx}, b={self.b:g}, normalize_weights={self.normalize_weights})"


class BcosQueryKeyLinear(nn.Linear):
    """Query or key projection. Its *output* is what explanation mode freezes.

    With queries and keys constant the attention matrix is constant whatever kernel computes it (eager, SDPA, flash,
    flex), and a bias on them does no harm to completeness (`config.qk_bias`).
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.apply_weight(input, self.weight)

    def apply_weight(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See `BcosLinear.apply_weight`."""
        if not STATE.active:
            return F.linear(input, weight, self.bias)
        with torch.no_grad():
            return F.linear(input, weight, self.bias)

    def used_bias(self) -> torch.Tensor | None:
        """The bias (`config.qk_bias`), or None."""
        return self.bias


class BcosValueLinear(nn.Linear):
    """Plainly linear layer: value projections, output layers of language models.

    Explanation mode only spares autograd the thought of its weight's gradient.
    """

    is_output_layer: bool = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if _records_output(self, input):
            input = input.detach()
        return self.apply_weight(input, self.weight)

    def apply_weight(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See `BcosLinear.apply_weight`."""
        return F.linear(input, weight.detach() if STATE.active else weight)

    def frozen_rows(self, input: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """Rows of the dynamic matrix at `input` `(..., hidden)`: their inner products with it are the outputs.

        Args:
            input: what the layer was given.
            rows: which ones, `(..., n)`; None is the mean of all.

        Returns:
            `(..., n, hidden)`, n being 1 for the mean; constant.
        """
        weight = self.weight.detach()
        return weight.mean(0, keepdim=True) if rows is None else weight[rows]


class BcosQueryKeyValueLinear(nn.Linear):
    """Fused projection: two thirds of its output are queries and keys, one third values.

    Explanation mode freezes the former and lets the latter through, as `BcosQueryKeyLinear` and `BcosValueLinear` do
    apart. Of a bias (`config.qk_bias`) only the part of queries and keys is used.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.apply_weight(input, self.weight)

    def apply_weight(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See `BcosLinear.apply_weight`."""
        return _query_key_value(input, weight, self.used_bias())

    def used_bias(self) -> torch.Tensor | None:
        """The bias with zeros in the place of the values, or None."""
        return _query_key_bias(self.bias)


class BcosQueryKeyValueConv1D(Conv1D):
    """`BcosQueryKeyValueLinear` for GPT-2's transposed weights.

    Shapes: input `(..., nx)`, output `(..., nf)`; weight `(nx, nf)`.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.apply_weight(x, self.weight)

    def apply_weight(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See `BcosLinear.apply_weight`."""
        return _query_key_value(x, weight.t(), self.used_bias())

    def used_bias(self) -> torch.Tensor | None:
        """See `BcosQueryKeyValueLinear.used_bias`."""
        return _query_key_bias(self.bias)


class BcosLayerNorm(nn.LayerNorm):
    """Layer normalisation without bias; explanation mode freezes `1/std`, while centring is linear and stays."""

    tokenwise_in_last_layer: bool = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not STATE.active:
            return super().forward(input)
        weight = None if self.weight is None else self.weight.detach()
        first = self.tokenwise_in_last_layer and STATE.first_token_only
        return FrozenLayerNormFunction.apply(input, weight, self.normalized_shape, self.eps, first)


class BcosRMSNorm(nn.Module):
    """Root-mean-square normalisation as in Llama (computed in at least float32); explanation mode freezes `1/rms`.

    Args:
        hidden_size: size of the last dimension.
        eps: added to the mean square.
    """

    tokenwise_in_last_layer: bool = False

    def __init__(self, hidden_size: int, eps: float = 1e-6, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        source, weight = (wide.detach(), self.weight.detach()) if STATE.active else (wide, self.weight)
        inverse_rms = torch.rsqrt(source.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return weight * (wide * inverse_rms).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


# The gate at 0, i.e. the limit of `activation(x) / x`, of transformers' activations of the form `x · gate(x)`.
GATE_AT_ZERO: dict[str, float] = {
    "gelu": 0.5,
    "gelu_new": 0.5,
    "gelu_fast": 0.5,
    "gelu_python": 0.5,
    "gelu_pytorch_tanh": 0.5,
    "gelu_python_tanh": 0.5,
    "quick_gelu": 0.5,
    "silu": 0.5,
    "swish": 0.5,
    "mish": 0.6,
    "relu": 0.0,
    "relu2": 0.0,
    "leaky_relu": 0.0,
    "linear": 1.0,
}


class GatedActivation(nn.Module):
    """An activation seen as `x · gate(x)`; explanation mode freezes the gate.

    Args:
        activation: the activation itself; must map 0 to 0.
        gate_at_zero: value of the gate where the input is exactly 0.
        follows_bcos_layer: the input comes from a B-cos layer whose output goes nowhere else.
    """

    tokenwise_in_last_layer: bool = False

    def __init__(
        self,
        activation: Callable[[torch.Tensor], torch.Tensor],
        gate_at_zero: float,
        follows_bcos_layer: bool = False,
    ) -> None:
        super().__init__()
        self.follows_bcos_layer = follows_bcos_layer
        self.activation = activation
        self.gate_at_zero = gate_at_zero

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not STATE.active:
            return self.activation(input)
        first = self.tokenwise_in_last_layer and STATE.first_token_only
        factor = getattr(input.grad_fn, "factor", None) if self.follows_bcos_layer else None
        return FrozenGateFunction.apply(input, self.activation, self.gate_at_zero, first, factor)


class FrozenActivation(nn.Module):
    """The activation of a gated MLP, `act(gate) · up`: explanation mode freezes all of it, `up` carries the linear path.

    Args:
        activation: any activation.
    """

    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.activation(input.detach() if STATE.active else input)


class BcosEmbedding(nn.Embedding):
    """Embedding whose output an explanation can record as one part of the input (`"word"`, `"position"`, …)."""

    part: str = "word"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        recorder = STATE.recorder
        if recorder is None or not recorder.listens_to(self):
            return super().forward(input)
        with torch.no_grad():
            embeddings = super().forward(input)
        return recorder.record(self.part, embeddings)


def check_b(b: float, name: str = "b") -> float:
    """Returns `b` as a float.

    Raises:
        ValueError: `b` is not a finite number of at least 1.
    """
    valid = isinstance(b, numbers.Real) and not isinstance(b, bool) and 1.0 <= b < float("inf")
    if not valid:
        raise ValueError(f"`{name}` must be a finite number of at least 1 (1 is a linear layer), got {b!r}.")
    return float(b)


def _records_output(layer: "BcosLinear | BcosValueLinear", input: torch.Tensor) -> bool:
    recorder = STATE.recorder
    if not layer.is_output_layer or recorder is None or not recorder.listens_to(layer):
        return False
    if hasattr(layer, "_hf_hook"):  # accelerate may have sent the weight back to disk when the recorder is asked
        return False
    recorder.record_output(layer, input)
    return True


def _bcos_linear(layer: "BcosLinear | BcosConv1D", x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if not STATE.active:
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return BcosLinearFunction.apply(x, weight, layer.b, layer.normalize_weights)
        return bcos_output(x, weight, layer.b, layer.normalize_weights)
    first = layer.tokenwise_in_last_layer and STATE.first_token_only
    return FrozenBcosLinearFunction.apply(x, weight.detach(), layer.b, layer.normalize_weights, first)


def _query_key_value(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if not STATE.active:
        return F.linear(x, weight, bias)
    return FrozenQueryKeyFunction.apply(x, weight.detach(), bias, 2 * (len(weight) // 3))


def _query_key_bias(bias: torch.Tensor | None) -> torch.Tensor | None:
    if bias is None:
        return None
    values = len(bias) // 3
    return F.pad(bias[:-values], (0, values))
