"""Training, conversion, saving and construction checks of every architecture and task."""

import dataclasses
import re

import pytest
import torch
import transformers
from torch import nn

import bcos_transformers
from bcos_transformers import assert_dynamic_linear, from_pretrained_bcos
from bcos_transformers.modeling import bcos_conversion
from bcos_transformers.modeling.bcos_roles import ROLE_NAMES, ROLES
from bcos_transformers.registration import ARCHITECTURES
from conftest import relative_residual
from contract import (
    ALL,
    CHECKPOINTING,
    DECODERS,
    HEADS,
    ONE_HEAD,
    fill_biases,
    labels_for,
    tiny_config,
    tiny_inputs,
    tiny_model,
)

heads = pytest.mark.parametrize(("name", "task"), HEADS)
one_head = pytest.mark.parametrize(("name", "task"), ONE_HEAD)


class TestTraining:
    @heads
    def test_a_step_reaches_every_parameter_and_lowers_the_loss(self, name, task):
        model = tiny_model(name, task, initializer_range=0.1).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        inputs = tiny_inputs(model)
        inputs |= labels_for(model, inputs)
        loss = model(**inputs).loss
        loss.backward()
        unused = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
        assert all("pooler" in n for n in unused), unused
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        getattr(model, f"{CHECKPOINTING}_enable")()
        again = model(**inputs).loss
        again.backward()
        torch.testing.assert_close(again, loss)
        for n, p in model.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(p.grad, gradients[n])
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        optimizer.step()
        assert model(**inputs).loss < loss

    @one_head
    def test_compiles_without_graph_breaks(self, name, task):
        model = tiny_model(name, task).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        inputs = tiny_inputs(model, padded=False)
        inputs |= labels_for(model, inputs)
        loss = model(**inputs).loss
        loss.backward()
        wanted = {n: p.grad for n, p in model.named_parameters()}
        model.zero_grad()
        compiled = torch.compile(model, fullgraph=True, backend="eager")(**inputs).loss
        compiled.backward()
        torch.testing.assert_close(compiled, loss)
        for n, p in model.named_parameters():
            torch.testing.assert_close(p.grad, wanted[n])
        torch.compiler.reset()

    @pytest.mark.parametrize("name", DECODERS)
    def test_next_token_loss_is_that_of_transformers(self, name):
        model = tiny_model(name, "causal-lm").float()
        inputs = tiny_inputs(model)
        labels = labels_for(model, inputs)["labels"]
        out = model(**inputs, labels=labels)
        wanted = transformers.loss.loss_utils.ForCausalLMLoss(out.logits, labels, model.config.vocab_size)
        torch.testing.assert_close(out.loss, wanted)
        items = model(**inputs, labels=labels, num_items_in_batch=7).loss
        wanted = transformers.loss.loss_utils.ForCausalLMLoss(out.logits, labels, 60, num_items_in_batch=7)
        torch.testing.assert_close(items, wanted)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict:
    """A conventional checkpoint of every architecture, in several files, with biases that matter."""
    paths = {}
    for name, task in ONE_HEAD:
        torch.manual_seed(0)
        config = tiny_config(name, conventional=True)
        kind = "ForCausalLM" if task == "causal-lm" else "ForSequenceClassification"
        auto = getattr(transformers, f"AutoModel{kind}")
        model = auto.from_config(config)
        fill_biases(model)
        paths[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(paths[name], max_shard_size="8KB")
        assert len(list(paths[name].glob("*.safetensors"))) > 1
    return paths


def layers_on_disk(model) -> dict[str, str]:
    """A device map with the encoder or decoder layers on disk and everything else on the CPU."""
    layers = [n for n, _ in model.named_modules() if re.search(r"\.(layer|layers|h)\.\d+$", n)]
    around = {layers[0].rsplit(".", i)[0] for i in range(layers[0].count(".") + 1)} - {layers[0]} | {""}
    rest = [n for n, _ in model.named_modules() if n.rpartition(".")[0] in around and n not in {*layers, *around}]
    return dict.fromkeys(layers, "disk") | dict.fromkeys(rest, "cpu")


class TestConversion:
    @pytest.mark.parametrize(("name", "task"), ALL)
    def test_every_weight_arrives_and_every_bias_is_reported(self, sources, name, task):
        model = from_pretrained_bcos(sources[name], task=task)
        report = model.conversion_report
        conventional = transformers.AutoModel.from_pretrained(sources[name])
        theirs = dict(conventional.named_parameters())
        ours = dict(getattr(model, model.base_model_prefix, model).named_parameters())
        assert all(torch.equal(ours[n], theirs[n]) for n in ours if "pooler" not in n)
        dropped = {n for n in theirs if n.endswith("bias") and "pooler" not in n}
        assert {n.removeprefix(f"{model.base_model_prefix}.") for n in report.dropped_biases} >= dropped
        assert not any(n.endswith("bias") for n in model.state_dict())
        assert_dynamic_linear(model)

    @one_head
    def test_round_trip_through_several_files_and_offload(self, sources, name, task, tmp_path):
        model = from_pretrained_bcos(sources[name], b=1.25).double()
        inputs = tiny_inputs(model)
        wanted = model.explain(**inputs)
        model.save_pretrained(tmp_path / "saved", max_shard_size="16KB")
        auto = getattr(transformers, type(model)._auto_class)
        again = auto.from_pretrained(tmp_path / "saved", dtype=torch.float64)
        assert type(again) is type(model)
        assert torch.equal(again.explain(**inputs).contributions, wanted.contributions)
        device_map = layers_on_disk(again)
        offloaded = auto.from_pretrained(
            tmp_path / "saved", dtype=torch.float64, device_map=device_map, offload_folder=tmp_path / "offload"
        )
        assert any(parameter.is_meta for parameter in offloaded.parameters())
        out = offloaded.explain(**inputs)
        torch.testing.assert_close(out.contributions, wanted.contributions)
        assert relative_residual(out) < 1e-10

    @pytest.mark.parametrize("name", list(ARCHITECTURES))
    def test_a_role_left_out_is_caught_at_construction(self, name, monkeypatch):
        roles = ROLES[f"bcos-{name}"]
        for role in (*ROLE_NAMES, "embeddings", "biases"):
            entries = getattr(roles, role)
            for entry in entries:
                rest = tuple(e for e in entries if e != entry)
                monkeypatch.setitem(ROLES, f"bcos-{name}", dataclasses.replace(roles, **{role: rest}))
                ending = entry[0] if role == "embeddings" else entry
                owner = ending.rpartition(".")[0] if role == "biases" else ending
                caught = []
                for _, task in [case for case in ALL if case[0] == name]:
                    try:
                        tiny_model(name, task, norm_bias=True)
                    except ValueError as error:
                        caught.append(str(error))
                assert caught, f"{role}: {entry} is not needed"
                assert all("is not dynamic linear" in m and f"{owner}`" in m for m in caught), caught
        assert bcos_conversion.ROLES is ROLES

    def test_a_layer_exchanged_later_is_named(self):
        model = tiny_model("llama", "causal-lm")
        model.model.layers[1].mlp.down_proj = nn.Linear(24, 16)
        with pytest.raises(ValueError, match=r"`model.layers.1.mlp.down_proj` \(Linear\): has a bias"):
            assert_dynamic_linear(model)
        model.model.layers[1].mlp.down_proj = nn.Linear(24, 16, bias=False)
        with pytest.raises(ValueError, match="a linear layer that was not converted"):
            assert_dynamic_linear(model)

    @pytest.mark.parametrize(
        ("name", "fields", "message"),
        [
            ("roberta", {"is_decoder": True}, "is an encoder"),
            ("roberta", {"position_embedding_type": "relative_key"}, "absolute position embeddings only"),
            ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
            ("gpt2", {"b": 0.5}, "at least 1"),
            ("llama", {"quantization_config": {"quant_method": "bitsandbytes"}}, "cannot be quantized"),
            ("qwen3", {"b_per_layer": [1.5]}, "one value for each of the 3 layers"),
        ],
    )
    def test_configurations_that_cannot_be(self, name, fields, message):
        with pytest.raises(ValueError, match=message):
            tiny_config(name, **fields)

    def test_old_gpt2_checkpoints_call_their_causal_mask_a_bias(self, tmp_path):
        model = transformers.GPT2LMHeadModel(tiny_config("gpt2", conventional=True))
        state = dict(model.state_dict())
        state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
        model.save_pretrained(tmp_path, state_dict=state)
        report = from_pretrained_bcos(tmp_path).conversion_report
        assert "transformer.h.0.attn.bias" not in report.dropped_biases
        assert "transformer.h.0.attn.c_attn.bias" in report.dropped_biases
        assert report.new_parameters == []

    def test_public_names(self):
        for name in (*(f"BcosRobertaFor{t}" for t in ("MaskedLM", "QuestionAnswering")), "BcosGPT2LMHeadModel"):
            assert getattr(bcos_transformers, name).__name__ == name
        assert set(bcos_transformers.__all__) >= {"BcosQwen3Config", "BcosModernBertModel", "BcosDistilBertConfig"}
        assert bcos_transformers.BcosQwen3ForCausalLM.explanation_task == "causal-lm"
