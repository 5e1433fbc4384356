"""LoRA inside B-cos layers: exact with an active adapter, merged without a difference, saved and loaded alone."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_remote_code import run
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.utils import hub

from bcos_transformers import assert_dynamic_linear, from_pretrained_bcos
from conftest import relative_residual
from contract import CHECKPOINTING, HEADS, ONE_HEAD, every_target, labels_for, public_logits, tiny_inputs, tiny_model

peft = pytest.importorskip("peft")
from peft import (
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftModel,
    get_peft_model,
)
from peft.tuners import lora

from adapter_toys import TASK_TYPES, base_of, fill_adapter, with_adapter


class TestExactness:
    @pytest.mark.parametrize(("name", "task"), HEADS)
    def test_active_adapter_and_merging(self, name, task):
        for fields, options in (
            ({}, {}),
            ({"b": 1.25, "normalize_weights": False, "qk_bias": True}, {"use_rslora": True, "lora_alpha": 5}),
        ):
            model = tiny_model(name, task, **fields)
            before = model.explain(**tiny_inputs(model), target=every_target(model))
            adapted = with_adapter(model, **options)
            inputs, target = tiny_inputs(model), every_target(model)
            logits = public_logits(adapted, inputs)
            out = adapted.explain(**inputs, target=target)
            assert torch.equal(out.logits, logits)
            assert relative_residual(out) < 1e-10
            assert (out.contributions - before.contributions).abs().max() > 1e-3
            assert_dynamic_linear(base_of(adapted))
            with adapted.disable_adapter():
                torch.testing.assert_close(public_logits(adapted, inputs), before.logits)
                torch.testing.assert_close(
                    adapted.explain(**inputs, target=target).contributions, before.contributions
                )
            merged = adapted.merge_and_unload()
            assert not any(isinstance(module, lora.LoraLayer) for module in merged.modules())
            torch.testing.assert_close(public_logits(merged, inputs), logits, rtol=1e-10, atol=1e-11)
            again = merged.explain(**inputs, target=target)
            torch.testing.assert_close(again.contributions, out.contributions, rtol=1e-9, atol=1e-11)
            assert_dynamic_linear(merged)

    @pytest.mark.parametrize("name", ["bert", "gpt2"])
    def test_the_update_is_inside_the_layer(self, name):
        """The adapted layer against its definition: the layer whose weight is W + s·BA."""
        task = "sequence-classification"
        adapted, plain = with_adapter(tiny_model(name, task)), tiny_model(name, task)
        with torch.no_grad():
            for module_name, module in base_of(adapted).named_modules():
                if isinstance(module, lora.LoraLayer):
                    a, b = (getattr(module, f"lora_{k}")["default"].weight for k in "AB")
                    delta = module.scaling["default"] * (b @ a)
                    weight = plain.get_submodule(module_name).weight
                    weight += delta if weight.shape == delta.shape and name != "gpt2" else delta.t()
        inputs = tiny_inputs(plain)
        torch.testing.assert_close(public_logits(adapted, inputs), public_logits(plain, inputs))

    def test_every_kind_of_layer_is_adapted(self):
        for name, count in (("bert", 6 * 2 + 1), ("gpt2", 4 * 2), ("modernbert", 4 * 3 + 1)):
            adapted = with_adapter(tiny_model(name, "sequence-classification"))
            kinds = [m for m in adapted.modules() if isinstance(m, lora.LoraLayer)]
            assert len(kinds) == count
            assert all(type(m).__name__ == "BcosLoraLinear" for m in kinds)

    def test_several_adapters(self):
        model = tiny_model("llama", "causal-lm")
        adapted = with_adapter(model, "first")
        adapted.add_adapter("second", LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], r=2))
        adapted.double()
        fill_adapter(adapted, "second", 9)
        inputs = tiny_inputs(model)
        found = {}
        for active in ("first", "second"):
            adapted.set_adapter(active)
            found[active] = adapted.explain(**inputs, target=5)
            assert relative_residual(found[active]) < 1e-10
        assert (found["first"].logits - found["second"].logits).abs().max() > 1e-3
        adapted.base_model.set_adapter(["first", "second"])
        both = adapted.explain(**inputs, target=5)
        assert relative_residual(both) < 1e-10
        torch.testing.assert_close(both.logits, public_logits(adapted, inputs))
        merged = adapted.merge_and_unload(adapter_names=["first", "second"])
        torch.testing.assert_close(merged.explain(**inputs, target=5).logits, both.logits)

    def test_merging_for_a_while(self):
        model = tiny_model("distilbert", "sequence-classification")
        adapted, inputs = with_adapter(model), tiny_inputs(model)
        wanted = adapted.explain(**inputs)
        adapted.merge_adapter()
        torch.testing.assert_close(adapted.explain(**inputs).contributions, wanted.contributions)
        adapted.unmerge_adapter()
        torch.testing.assert_close(adapted.explain(**inputs).contributions, wanted.contributions)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_base(self, dtype):
        model = tiny_model("bert", "sequence-classification", initializer_range=0.2).to(dtype)
        adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", r=3, task_type="SEQ_CLS")).eval()
        fill_adapter(adapted, "default", 5)
        inputs = tiny_inputs(model)
        out = adapted.explain(**inputs)
        assert torch.equal(out.logits, public_logits(adapted, inputs))
        assert (out.residual.abs() / out.contributions.abs().sum(-1)).max() < 0.1

    def test_an_adapter_on_the_output_layer(self):
        for head in (False, True):
            model = tiny_model("llama", "causal-lm", bcos_lm_head=head, tie_word_embeddings=False)
            adapted = with_adapter(model, target_modules=["lm_head", "o_proj"])
            out = adapted.explain(**tiny_inputs(model), target=every_target(model), contrast="mean")
            assert relative_residual(out) < 1e-10


class TestTraining:
    @pytest.mark.parametrize(("name", "task"), ONE_HEAD)
    def test_stock_trainer(self, name, task, tmp_path):
        torch.manual_seed(0)
        model = tiny_model(name, task, initializer_range=0.1).float()
        model.save_pretrained(tmp_path / "base")
        options = {"target_modules": "all-linear", "r": 4, "lora_dropout": 0.1, "task_type": TASK_TYPES[task]}
        adapted = get_peft_model(model, LoraConfig(**options))
        inputs = tiny_inputs(model)
        inputs |= labels_for(model, inputs)
        rows = [{key: value[i] for key, value in inputs.items()} for i in range(3)] * 4
        frozen = {n: p.clone() for n, p in adapted.named_parameters() if not p.requires_grad}
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=30,
            learning_rate=1e-2,
            report_to=[],
            use_cpu=True,
            seed=0,
            per_device_train_batch_size=6,
            save_strategy="steps",
            save_steps=30,
            disable_tqdm=True,
            **{CHECKPOINTING: name == "llama"},
        )
        adapted.eval()
        before = adapted(**inputs).loss
        Trainer(model=adapted, args=arguments, train_dataset=rows).train()
        adapted.eval()
        assert adapted(**inputs).loss < 0.9 * before
        assert all(torch.equal(p, frozen[n]) for n, p in adapted.named_parameters() if n in frozen)
        saved = json.loads((tmp_path / "run" / "checkpoint-30" / "adapter_config.json").read_text())
        assert saved["base_model_name_or_path"] == str(tmp_path / "base")
        out = adapted.explain(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        assert relative_residual(out) < 1e-4

    def test_dropout_acts_on_the_low_rank_path_alone(self):
        """Averaged over many masks the product is that without dropout, and W itself is never dropped."""
        model = tiny_model("bert", "sequence-classification", b=1.0, normalize_weights=False)
        adapted = with_adapter(model, lora_dropout=0.5)
        layer = base_of(adapted).bert.encoder.layer[0].intermediate.dense
        x = torch.randn(4, 16, dtype=torch.float64)
        wanted, plain = layer(x), layer.base_layer(x)
        layer.train()
        draws = torch.stack([layer(x) for _ in range(4000)])
        assert (draws.mean(0) - wanted).abs().max() < 0.1 * (wanted - plain).abs().max() + 0.05
        layer.lora_dropout["default"].p = 1.0
        torch.testing.assert_close(layer(x), plain)

    @pytest.mark.parametrize("normalize", [True, False])
    @pytest.mark.parametrize("b", [1.0, 1.5, 2.0])
    def test_gradients_with_and_without_dropout_agree_where_nothing_is_dropped(self, b, normalize):
        gradients = []
        for dropout in (0.0, 1e-12):
            model = tiny_model("gpt2", "sequence-classification", b=b, normalize_weights=normalize)
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            adapted = with_adapter(model, lora_dropout=dropout).train()
            inputs = tiny_inputs(model)
            adapted(**inputs, labels=torch.arange(3)).loss.backward()
            gradients.append({n: p.grad for n, p in adapted.named_parameters() if p.requires_grad})
        for n, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][n], gradient, rtol=1e-7, atol=1e-10)


class TestSaving:
    @pytest.mark.parametrize(("name", "task"), [case for case in ONE_HEAD if case[1] == "sequence-classification"])
    def test_adapter_alone_in_a_process_without_the_package(self, name, task, tmp_path):
        model = tiny_model(name, task).float()
        model.save_pretrained(tmp_path / "base")
        adapted = with_adapter(model).float()
        with torch.no_grad():
            for n, p in adapted.named_parameters():
                if "modules_to_save" in n:
                    p.mul_(1.5)
        adapted.save_pretrained(tmp_path / "adapter")
        assert sum(f.stat().st_size for f in (tmp_path / "adapter").iterdir()) < 40_000
        inputs = tiny_inputs(model)
        wanted = adapted.explain(**inputs, target="all")
        torch.save(
            {"inputs": inputs, "logits": wanted.logits, "contributions": wanted.contributions}, tmp_path / "w.pt"
        )
        code = """
from peft import AutoPeftModelForSequenceClassification
model = AutoPeftModelForSequenceClassification.from_pretrained("adapter", trust_remote_code=True).eval()
wanted = torch.load("w.pt")
out = model.explain(**wanted["inputs"], target="all")
torch.testing.assert_close(out.logits, wanted["logits"])
torch.testing.assert_close(out.contributions, wanted["contributions"])
assert type(model.get_base_model()).__module__.startswith("transformers_modules")
merged = model.merge_and_unload()
torch.testing.assert_close(merged.explain(**wanted["inputs"], target="all").contributions, wanted["contributions"])
print("equal")
"""
        result = run(code, tmp_path)
        assert "equal" in result.stdout, result.stderr[-2000:]
        again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter").eval()
        assert type(again.get_base_model()) is type(model)
        torch.testing.assert_close(again.explain(**inputs, target="all").contributions, wanted.contributions)

    def test_conversion_never_leads_back_to_the_conventional_weights(self, checkpoint, tmp_path):
        model = from_pretrained_bcos(checkpoint, task="sequence-classification", num_labels=2)
        adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="SEQ_CLS"))
        assert adapted.peft_config["default"].base_model_name_or_path is None
        with pytest.raises(ValueError, match="base model has not been saved.*get_base_model"):
            adapted.save_pretrained(tmp_path / "adapter")
        assert not list(tmp_path.rglob("adapter/*"))
        adapted.get_base_model().save_pretrained(tmp_path / "base")
        adapted.save_pretrained(tmp_path / "adapter")
        saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert saved["base_model_name_or_path"] == str(tmp_path / "base")

    def test_the_base_can_be_saved_from_beneath_its_adapters(self, tmp_path):
        model, plain = (
            tiny_model("roberta", "sequence-classification"),
            tiny_model("roberta", "sequence-classification"),
        )
        adapted = with_adapter(model)
        base_of(adapted).save_pretrained(tmp_path / "base")
        again = type(plain).from_pretrained(tmp_path / "base")
        assert again.state_dict().keys() == plain.state_dict().keys()
        assert all(
            torch.equal(a, b) for a, b in zip(again.state_dict().values(), plain.state_dict().values(), strict=True)
        )
        adapted.merge_adapter()
        with pytest.raises(ValueError, match="merged into the base weights"):
            base_of(adapted).save_pretrained(tmp_path / "merged")
        assert not (tmp_path / "merged").exists()

    def test_where_a_model_was_saved(self, tmp_path):
        model = tiny_model("bert", "sequence-classification")
        assert model.name_or_path == ""
        model.save_pretrained(tmp_path / "a")
        assert model.name_or_path == str(tmp_path / "a")
        model.save_pretrained(tmp_path / "b")
        assert model.name_or_path == str(tmp_path / "b")
        again = type(model).from_pretrained(tmp_path / "a")
        again.save_pretrained(tmp_path / "c")
        assert again.name_or_path == str(tmp_path / "a")  # still a place where these weights are

    def test_pushing_base_and_adapter(self, tmp_path, monkeypatch):
        """With the last step, the upload itself, replaced by a copy to a folder."""

        def upload(self, folder, repo_id, **kwargs):
            shutil.copytree(folder, tmp_path / repo_id)
            return SimpleNamespace(repo_url=SimpleNamespace(repo_id=repo_id))

        created = SimpleNamespace(create_repo=lambda name, **kwargs: SimpleNamespace(repo_id=f"org/{name}"))
        card = SimpleNamespace(save=lambda path: None)
        monkeypatch.setattr(hub, "hf_api", lambda: created)
        monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *args, **kwargs: card)
        monkeypatch.setattr(hub.PushToHubMixin, "_upload_modified_files", upload)
        with pytest.raises(ValueError, match="base model has not been saved"):
            with_adapter(tiny_model("bert", "sequence-classification")).push_to_hub("early")
        assert not (tmp_path / "org").exists()
        model = tiny_model("bert", "sequence-classification").float()
        model.push_to_hub("base")
        assert model.name_or_path == "org/base"
        assert {"model.safetensors", "config.json", "bcos_peft.py"} <= {
            f.name for f in (tmp_path / "org/base").iterdir()
        }
        adapted = with_adapter(model).float()
        adapted.push_to_hub("adapter")
        pushed = {f.name for f in (tmp_path / "org/adapter").iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json"} <= pushed
        assert "model.safetensors" not in pushed
        saved = json.loads((tmp_path / "org/adapter/adapter_config.json").read_text())
        assert saved["base_model_name_or_path"] == "org/base"
        inputs = tiny_inputs(model)
        base = type(model).from_pretrained(tmp_path / "org/base")
        again = PeftModel.from_pretrained(base, tmp_path / "org/adapter").eval()
        torch.testing.assert_close(again.explain(**inputs).contributions, adapted.explain(**inputs).contributions)

    def test_adapters_that_transformers_manages(self, tmp_path):
        model = tiny_model("bert", "sequence-classification")
        model.add_adapter(LoraConfig(target_modules="all-linear", r=3))
        fill_adapter(model, "default", 5)
        model.double()
        inputs = tiny_inputs(model)
        out = model.explain(**inputs, target="all")
        assert relative_residual(out) < 1e-10
        with pytest.raises(ValueError, match="base model has not been saved"):
            model.save_pretrained(tmp_path / "adapter")
        base = tiny_model("bert", "sequence-classification")
        base.save_pretrained(tmp_path / "base")
        base.add_adapter(LoraConfig(target_modules="all-linear", r=3))
        fill_adapter(base, "default", 5)
        base.save_pretrained(tmp_path / "adapter")
        again = PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "base"), tmp_path / "adapter").double()
        torch.testing.assert_close(again.eval().explain(**inputs, target="all").contributions, out.contributions)

    def test_vocabulary_can_still_grow(self):
        model = tiny_model("bert", "sequence-classification")
        adapted = with_adapter(model)
        adapted.resize_token_embeddings(64)
        assert relative_residual(adapted.explain(**tiny_inputs(model))) < 1e-10

    def test_the_base_beneath_trained_tokens(self, tmp_path):
        model = tiny_model("llama", "causal-lm")
        wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        options = {"trainable_token_indices": [5, 6], "target_modules": ["q_proj"]}
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
        base_of(adapted).save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path).state_dict()
        assert again.keys() == wanted.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in wanted.items())

    def test_asking_for_tags_is_harmless(self):
        adapted = with_adapter(tiny_model("bert", "sequence-classification"))
        assert hasattr(base_of(adapted), "model_tags")
        base_of(adapted).add_model_tags("tag")
        assert list(base_of(adapted).model_tags) == ["tag"]


def test_other_models_get_the_layers_of_peft():
    stock = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"]))
    assert type(stock.base_model.model[0]) is lora.Linear


def test_the_dispatch_is_wrapped_once():
    from bcos_transformers.modeling import bcos_peft

    before = lora.LoraModel._create_new_module
    bcos_peft._install()
    assert lora.LoraModel._create_new_module is before
    assert Path(bcos_peft.__file__).name == "bcos_peft.py"
