"""The layers against slow twins that follow the definitions, in float64."""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from bcos_transformers.modeling.bcos_functions import bcos_of_product
from bcos_transformers.modeling.bcos_layers import (
    GATE_AT_ZERO,
    BcosConv1D,
    BcosLayerNorm,
    BcosLinear,
    BcosQueryKeyLinear,
    BcosQueryKeyValueConv1D,
    BcosQueryKeyValueLinear,
    BcosRMSNorm,
    FrozenActivation,
    GatedActivation,
)
from bcos_transformers.modeling.bcos_state import explanation_mode, is_explaining

B_VALUES = [1.0, 1.1, 1.25, 1.5, 2.0, 2.5]


def slow_bcos(x: torch.Tensor, weight: torch.Tensor, b: float, normalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and dynamic matrix W(x) of one input vector, unit by unit, from the definition."""
    rows, outputs = [], []
    for w in weight:
        cosine = (w @ x) / w.norm() / (x @ x + 1e-6).sqrt()
        power = 1.0 if b == 1 else cosine.abs() if b == 2 else (cosine.abs() + 1e-6) ** (b - 1)
        row = (w / w.norm() if normalize else w) * power
        rows.append(row)
        outputs.append(row @ x)
    return torch.stack(outputs), torch.stack(rows)


def pair(b: float, normalize: bool) -> tuple[BcosLinear, torch.Tensor]:
    torch.manual_seed(0)
    return BcosLinear(7, 4, b, normalize, dtype=torch.float64), torch.randn(3, 5, 7, dtype=torch.float64)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("b", B_VALUES)
class TestBcosLinear:
    def test_output_is_the_definition(self, b, normalize):
        layer, x = pair(b, normalize)
        expected = torch.stack([slow_bcos(v, layer.weight, b, normalize)[0] for v in x.view(-1, 7)]).view(3, 5, 4)
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)

    def test_gradient_is_that_of_the_definition(self, b, normalize):
        layer, x = pair(b, normalize)
        x.requires_grad_()
        expected = torch.stack([slow_bcos(v, layer.weight, b, normalize)[0] for v in x.view(-1, 7)]).view(3, 5, 4)
        out_grad = torch.randn(3, 5, 4, dtype=torch.float64)
        wanted = torch.autograd.grad(expected, (x, layer.weight), out_grad)
        got = torch.autograd.grad(layer(x), (x, layer.weight), out_grad)
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)

    def test_jacobian_in_explanation_mode_is_the_dynamic_matrix(self, b, normalize):
        layer, x = pair(b, normalize)
        vector = x[0, 0]
        with explanation_mode():
            matrix = torch.autograd.functional.jacobian(layer, vector)
            explained = layer(vector.requires_grad_())
        expected = slow_bcos(vector, layer.weight, b, normalize)[1]
        torch.testing.assert_close(matrix, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(matrix @ vector, explained, rtol=1e-12, atol=1e-12)

    def test_values_do_not_change_in_explanation_mode(self, b, normalize):
        layer, x = pair(b, normalize)
        with torch.no_grad():
            plain = layer(x)
        with explanation_mode():
            assert torch.equal(layer(x.requires_grad_()), plain)

    def test_half_precision_computes_norms_in_float32(self, b, normalize):
        layer, x = pair(b, normalize)
        exact = layer(x)
        half, small = layer.to(torch.float16), x.half()
        assert torch.isfinite(half(small)).all()
        torch.testing.assert_close(half(small).double(), exact, rtol=2e-2, atol=2e-2)
        large = (300 * x).half()  # ‖x‖² overflows float16
        assert torch.isfinite(half(large)).all()


def test_conv1d_is_the_transposed_linear_layer():
    torch.manual_seed(0)
    conv, linear = BcosConv1D(4, 7, 1.5).double(), BcosLinear(7, 4, 1.5, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.t())
    x = torch.randn(2, 7, dtype=torch.float64)
    assert conv.bias is None
    torch.testing.assert_close(conv(x), linear(x), rtol=1e-14, atol=1e-14)
    assert "bias" not in conv.state_dict()


def test_zero_rows_and_zero_inputs_give_zeros():
    layer = BcosLinear(3, 2, 1.5, dtype=torch.float64)
    with torch.no_grad():
        layer.weight[0].zero_()
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    out = layer(x)
    assert out[0, 0] == 0
    assert (out[1] == 0).all()
    out.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert layer.weight.grad.abs().max() < 10
    assert (layer.weight.grad[0] == 0).all()


@pytest.mark.parametrize("b", [0.5, -1, float("nan"), float("inf"), "high", None, True])
def test_bad_b_is_refused(b):
    with pytest.raises(ValueError, match="at least 1"):
        BcosLinear(2, 2, b)


def test_layer_norm_freezes_the_scale_and_keeps_the_centring():
    torch.manual_seed(0)
    norm = BcosLayerNorm(6, bias=False).double()
    nn.init.normal_(norm.weight)
    x = torch.randn(6, dtype=torch.float64)
    with explanation_mode():
        matrix = torch.autograd.functional.jacobian(norm, x)
    inverse_std = 1 / (x.var(unbiased=False) + norm.eps).sqrt()
    centring = torch.eye(6, dtype=torch.float64) - 1 / 6
    torch.testing.assert_close(matrix, norm.weight[:, None] * inverse_std * centring, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(matrix @ x, norm(x), rtol=1e-12, atol=1e-12)


def test_rms_norm_freezes_the_scale():
    torch.manual_seed(0)
    norm = BcosRMSNorm(6).double()
    nn.init.normal_(norm.weight)
    x = torch.randn(6, dtype=torch.float64)
    with explanation_mode():
        matrix = torch.autograd.functional.jacobian(norm, x)
    expected = torch.diag(norm.weight / (x.pow(2).mean() + 1e-6).sqrt())
    torch.testing.assert_close(matrix, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(matrix @ x, norm(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(GATE_AT_ZERO))
def test_gates(name):
    activation = ACT2FN[name]
    gate = GatedActivation(activation, GATE_AT_ZERO[name])
    x = torch.tensor([-3.0, -0.4, 0.0, 1e-9, 0.7, 2.0], dtype=torch.float64)
    with explanation_mode():
        matrix = torch.autograd.functional.jacobian(gate, x)
    torch.testing.assert_close(matrix @ x, activation(x), rtol=1e-12, atol=1e-15)
    step = 1e-7
    if name != "leaky_relu":  # whose gate jumps at 0
        limit = (activation(torch.tensor(step, dtype=torch.float64)) / step).item()
        assert abs(matrix[2, 2].item() - (limit if name not in ("relu", "relu2") else 0.0)) < 1e-6


def test_query_and_key_outputs_are_constant_in_explanation_mode():
    layer = BcosQueryKeyLinear(3, 2)
    x = torch.randn(4, 3, requires_grad=True)
    with explanation_mode():
        assert not layer(x).requires_grad
    assert layer(x).requires_grad


@pytest.mark.parametrize("kind", [BcosQueryKeyValueLinear, BcosQueryKeyValueConv1D])
def test_fused_projection_is_constant_in_queries_and_keys(kind):
    torch.manual_seed(0)
    layer = (kind(5, 6) if kind is BcosQueryKeyValueLinear else kind(6, 5)).double()
    nn.init.normal_(layer.bias)
    rows = layer.weight if kind is BcosQueryKeyValueLinear else layer.weight.t()
    x = torch.randn(5, dtype=torch.float64)
    bias = torch.cat((layer.bias[:4], torch.zeros(2)))  # values have none
    with explanation_mode():
        matrix = torch.autograd.functional.jacobian(layer, x)
        torch.testing.assert_close(layer(x), rows @ x + bias, rtol=1e-13, atol=1e-13)
    assert (matrix[:4] == 0).all()
    torch.testing.assert_close(matrix[4:], rows[4:], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(torch.autograd.functional.jacobian(layer, x), rows, rtol=1e-13, atol=1e-13)


def test_activation_of_a_gated_mlp_is_constant_in_explanation_mode():
    layer, x = FrozenActivation(nn.SiLU()), torch.randn(4, requires_grad=True)
    with explanation_mode():
        frozen = layer(x)
    assert not frozen.requires_grad
    assert layer(x).requires_grad
    assert torch.equal(frozen, nn.functional.silu(x))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("b", B_VALUES)
def test_single_rows_of_the_dynamic_matrix(b, normalize):
    layer, x = pair(b, normalize)
    matrices = torch.stack([slow_bcos(v, layer.weight, b, normalize)[1] for v in x.view(-1, 7)]).view(3, 5, 4, 7)
    rows = torch.tensor([3, 1]).expand(3, 5, 2)
    torch.testing.assert_close(layer.frozen_rows(x, rows), matrices[:, :, [3, 1]].detach(), rtol=1e-12, atol=1e-12)
    mean = layer.frozen_rows(x, None)
    torch.testing.assert_close(mean, matrices.mean(2, keepdim=True).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("b", B_VALUES)
def test_the_layer_written_out_is_the_definition(b, normalize):
    layer, x = pair(b, normalize)
    x.requires_grad_()
    outputs = [bcos_of_product(x, x @ layer.weight.t(), layer.weight, b, normalize), layer(x)]
    out_grad = torch.randn(3, 5, 4, dtype=torch.float64)
    gradients = [torch.autograd.grad(out, (x, layer.weight), out_grad) for out in outputs]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_explanation_mode_nests_and_survives_exceptions():
    assert not is_explaining()
    with explanation_mode():
        with pytest.raises(RuntimeError, match="inside"), explanation_mode():
            raise RuntimeError("inside")
        assert is_explaining()
    assert not is_explaining()


@pytest.mark.parametrize("explaining", [False, True])
def test_batched_gradients_equal_single_ones(explaining):
    layer, x = pair(1.5, True)
    x.requires_grad_()
    if explaining:
        with explanation_mode():
            out = layer(x).sum((0, 1))
    else:
        out = layer(x).sum((0, 1))
    eye = torch.eye(4, dtype=torch.float64)
    (batched,) = torch.autograd.grad(out, x, eye, is_grads_batched=True, retain_graph=True)
    single = torch.stack([torch.autograd.grad(out, x, row, retain_graph=True)[0] for row in eye])
    torch.testing.assert_close(batched, single, rtol=1e-13, atol=1e-13)


def test_autocast_takes_its_dtype_and_keeps_float32_parameters():
    layer = BcosLinear(8, 4)
    x = torch.randn(2, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), layer(x), rtol=3e-2, atol=3e-2)


def test_second_derivatives_are_refused_instead_of_wrong():
    layer, x = pair(1.5, True)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)


@pytest.mark.parametrize("normalize", [True, False])
def test_compiles_without_graph_breaks(normalize):
    layer, x = pair(1.5, normalize)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-12, atol=1e-12)
    compiled(x).sum().backward()
    got, layer.weight.grad = layer.weight.grad, None
    layer(x).sum().backward()
    torch.testing.assert_close(got, layer.weight.grad, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-12, atol=1e-12)
    with explanation_mode():  # the guard on the mode makes a second graph
        leaf = x.clone().requires_grad_()
        (frozen,) = torch.autograd.grad(compiled(leaf).sum(), leaf)
        (expected,) = torch.autograd.grad(layer(leaf).sum(), leaf)
    torch.testing.assert_close(frozen, expected, rtol=1e-12, atol=1e-12)
