"""The start of fine-tuning that gives outputs back their scale."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertForSequenceClassification

from bcos_transformers.calibration import match_output_scales
from bcos_transformers.modeling.bcos_layers import BcosConv1D, BcosLinear
from conftest import bcos_model, tiny_config
from contract import ONE_HEAD, labels_for, tiny_inputs, tiny_model


def bcos_layers(model) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, (BcosLinear, BcosConv1D)) and m.b > 1}


def squares(model, batches, weights) -> dict[str, list[float]]:
    """Sum of squares of outputs and of `w·x` with the given weights, by layer in the order of the forward pass."""
    found: dict[str, list[float]] = {}

    def note(name):
        def hook(module, args, output):
            weight = weights[name].t() if isinstance(module, BcosConv1D) else weights[name]
            sums = found.setdefault(name, [0.0, 0.0])
            sums[0] += output.square().sum().item()
            sums[1] += F.linear(args[0], weight).square().sum().item()

        return hook

    handles = [layer.register_forward_hook(note(name)) for name, layer in bcos_layers(model).items()]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    return found


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: layer.weight.detach().clone() for name, layer in bcos_layers(model).items()}


def batches_for(model) -> list[dict]:
    return [tiny_inputs(model, seed=seed, tokens=tokens) for seed, tokens in ((1, 9), (2, 7), (3, 8))]


@pytest.mark.parametrize(("name", "task"), ONE_HEAD)
@pytest.mark.parametrize("b", [1.5, 2.0])
def test_outputs_are_as_large_as_those_of_linear_layers(name, task, b):
    model = tiny_model(name, task, normalize_weights=False, b=b)
    before, batches = weights_of(model), batches_for(model)
    others = {n: p.detach().clone() for n, p in model.named_parameters()}
    apart = squares(model, batches, before)
    assert all(output < 0.9 * linear for output, linear in apart.values())
    factors = match_output_scales(model, batches)
    for layer, (output, linear) in squares(model, batches, before).items():
        assert abs((output / linear) ** 0.5 - 1) < 1e-10, layer
    assert list(factors) == list(apart)
    for layer, weight in weights_of(model).items():
        torch.testing.assert_close(weight, factors[layer] * before[layer], rtol=1e-12, atol=0)
        assert factors[layer] > 1
    scaled = {f"{layer}.weight" for layer in factors}
    assert all(torch.equal(p, others[n]) for n, p in model.named_parameters() if n not in scaled)
    if name == "gpt2":
        assert any(isinstance(layer, BcosConv1D) for layer in bcos_layers(model).values())


def test_in_the_order_of_the_forward_pass():
    model = tiny_model("bert", "sequence-classification", normalize_weights=False)
    factors = list(match_output_scales(model, batches_for(model)))
    names = ["attention.output.dense", "intermediate.dense", "output.dense"]
    layers = [f"bert.encoder.layer.{i}.{name}" for i in range(2) for name in names]
    assert factors == [*layers, "bert.pooler.dense", "classifier"]


def test_a_layer_with_b_of_one_is_linear_already():
    model = bcos_model(normalize_weights=False, b_per_layer=[1.0, 2.0])
    factors = match_output_scales(model, batches_for(model))
    assert not [name for name in factors if ".layer.0." in name]
    assert [name for name in factors if ".layer.1." in name]


def test_batches_may_come_from_a_generator_and_have_labels():
    factors = []
    for labelled in (False, True):
        model = tiny_model("bert", "sequence-classification", normalize_weights=False)
        given = ({**batch, **(labels_for(model, batch) if labelled else {})} for batch in batches_for(model))
        seen = []
        model.register_forward_pre_hook(lambda m, a, kwargs, seen=seen: seen.append(set(kwargs)), with_kwargs=True)
        factors.append(match_output_scales(model, given))
        assert all("labels" not in names for names in seen)
    assert factors[0] == factors[1]


def test_batches_are_left_as_they_were():
    model = tiny_model("bert", "sequence-classification", normalize_weights=False)
    batches = [{**batch, **labels_for(model, batch)} for batch in batches_for(model)]
    match_output_scales(model, batches)
    for batch, wanted in zip(batches, batches_for(model), strict=True):
        assert set(batch) == {*wanted, "labels"}
        assert all(torch.equal(batch[name], value) for name, value in wanted.items())


class TestMode:
    def test_dropout_is_off_meanwhile_and_every_module_gets_its_mode_back(self):
        model = tiny_model("bert", "sequence-classification", normalize_weights=False)
        wanted = match_output_scales(model, batches_for(model))
        model = tiny_model("bert", "sequence-classification", normalize_weights=False).train()
        model.bert.encoder.layer[0].eval()
        modes = [module.training for module in model.modules()]
        assert match_output_scales(model, batches_for(model)) == wanted
        assert [module.training for module in model.modules()] == modes
        assert len(set(modes)) == 2

    @pytest.mark.parametrize("place", ["embeddings", "classifier"])
    def test_after_an_error_too_and_no_weight_is_changed(self, place):
        """The second batch fails, before the first B-cos layer or in the last one."""
        model = tiny_model("bert", "sequence-classification", normalize_weights=False).train()
        before, batches = weights_of(model), batches_for(model)
        if place == "embeddings":
            batches[1]["input_ids"] = batches[1]["input_ids"] + 100
        else:
            batches[1] = tiny_inputs(model, rows=2)
            model.classifier.register_forward_pre_hook(lambda module, args: args[0][2])
        with pytest.raises(IndexError):
            match_output_scales(model, batches)
        assert all(module.training for module in model.modules())
        assert not any(module._forward_hooks for module in bcos_layers(model).values())
        assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())

    def test_nothing_is_left_behind(self):
        model = tiny_model("bert", "sequence-classification", normalize_weights=False)
        match_output_scales(model, batches_for(model))
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        out = model(**tiny_inputs(model), output_hidden_states=True)
        assert len(out.hidden_states) == 3
        assert out.logits.requires_grad


class Repeats(nn.Module):
    """A B-cos layer twice in a row, one behind it, and one that is never reached."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unused, self.twice, self.last = (
            BcosLinear(6, 6, 1.5, normalize_weights=False).double() for _ in range(3)
        )
        self.config = type("Config", (), {"normalize_weights": False})()

    def forward(self, x):
        return self.last(self.twice(self.twice(x)))


def test_layers_that_are_called_twice_or_never():
    model, x = Repeats(), torch.randn(50, 6, dtype=torch.float64)
    before = weights_of(model)
    factors = match_output_scales(model, [{"x": x}])
    assert list(factors) == ["twice", "last"]
    assert torch.equal(model.unused.weight, before["unused"])
    with torch.no_grad():
        first = model.twice(x)
        second = model.twice(first)
        for output, linear in (
            (first, F.linear(x, before["twice"])),
            (model.last(second), F.linear(second, before["last"])),
        ):
            torch.testing.assert_close(output.square().mean(), linear.square().mean(), rtol=1e-10, atol=0)


def test_outputs_of_zero_are_left_alone():
    model = Repeats()
    with torch.no_grad():
        model.twice.weight.zero_()
    assert match_output_scales(model, [{"x": torch.ones(2, 6, dtype=torch.float64)}]) == {"twice": 1.0, "last": 1.0}


class TestRefusals:
    def test_normalized_weights(self):
        model = bcos_model()
        with pytest.raises(ValueError, match="normalize_weights=True.*convert with False"):
            match_output_scales(model, batches_for(model))

    @pytest.mark.parametrize("batches", [[], iter(())])
    def test_no_batch(self, batches):
        with pytest.raises(ValueError, match="At least one batch of inputs is needed, got none"):
            match_output_scales(bcos_model(normalize_weights=False), batches)

    def test_conventional_model(self):
        with pytest.raises(ValueError, match="B-cos model is needed, got BertForSequenceClassification: convert it"):
            match_output_scales(BertForSequenceClassification(tiny_config()), [{}])
