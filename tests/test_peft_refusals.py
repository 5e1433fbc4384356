"""Adapters that cannot be explained exactly are refused by name."""

import pytest
import torch
from torch import nn

from bcos_transformers import assert_dynamic_linear, explain_generation
from contract import tiny_inputs, tiny_model

peft = pytest.importorskip("peft")
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from peft.tuners import lora

from adapter_toys import with_adapter


class TestRefusals:
    def test_virtual_tokens(self):
        model = tiny_model("llama", "causal-lm").float()
        tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
        for call in (lambda: assert_dynamic_linear(tuned), lambda: explain_generation(tuned, tiny_inputs(model))):
            with pytest.raises(ValueError, match="PROMPT_TUNING adds learned vectors"):
                call()

    def test_a_copy_of_another_class_is_named(self):
        model = tiny_model("llama", "causal-lm", bcos_lm_head=True, tie_word_embeddings=True)
        options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
        get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
        with pytest.raises(ValueError, match="`lm_head`: Linear stands in for BcosLinear"):
            model.explain(**tiny_inputs(model))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"use_dora": True}, "plain LoRA only.*use_dora"),
            ({"lora_bias": True}, "plain LoRA only.*lora_bias"),
            ({"target_modules": ["word_embeddings"]}, "LoRA on embeddings is not supported"),
        ],
    )
    def test_variants(self, options, message):
        model = tiny_model("bert", "sequence-classification")
        with pytest.raises(ValueError, match=message):
            get_peft_model(model, LoraConfig(**{"target_modules": "all-linear", **options}))

    def test_variants_of_a_second_adapter(self):
        adapted = with_adapter(tiny_model("bert", "sequence-classification"))
        with pytest.raises(ValueError, match="plain LoRA only.*use_dora"):
            adapted.add_adapter("second", LoraConfig(target_modules="all-linear", use_dora=True))

    def test_quantized_weights(self):
        model = tiny_model("bert", "sequence-classification")
        dense = model.bert.encoder.layer[0].intermediate.dense
        dense.weight = nn.Parameter(dense.weight.detach().to(torch.int8), requires_grad=False)
        with pytest.raises(ValueError, match="quantized.*int8"):
            get_peft_model(model, LoraConfig(target_modules=["intermediate.dense"]))

    def test_a_stock_layer_around_one_of_ours_is_named(self):
        model = tiny_model("bert", "sequence-classification")
        layer = model.bert.encoder.layer[1].output
        layer.dense = lora.Linear(layer.dense, "default", config=LoraConfig(r=2), r=2)
        for call in (lambda: model.explain(**tiny_inputs(model)), lambda: assert_dynamic_linear(model)):
            with pytest.raises(ValueError, match=r"`bert.encoder.layer.1.output.dense` \(peft's Linear\)"):
                call()

    def test_other_methods_of_peft(self):
        model = tiny_model("llama", "sequence-classification")
        get_peft_model(model, IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]))
        with pytest.raises(ValueError, match="cannot be explained exactly.*v_proj"):
            model.explain(**tiny_inputs(model))

    def test_adapters_mixed_in_a_batch(self):
        model = tiny_model("bert", "sequence-classification")
        adapted = with_adapter(model)
        with pytest.raises(ValueError, match="cannot mix adapters"):
            adapted(**tiny_inputs(model), adapter_names=["default", "__base__", "default"])
