"""Tiny models with adapters that matter."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

TASK_TYPES = {
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "causal-lm": "CAUSAL_LM",
}


def with_adapter(model, name: str = "default", seed: int = 5, **options):
    """`model` with an adapter that matters, in float64."""
    values = {"target_modules": "all-linear", "r": 3, "task_type": TASK_TYPES.get(model.explanation_task), **options}
    adapted = get_peft_model(model, LoraConfig(**values), adapter_name=name).double().eval()
    fill_adapter(adapted, name, seed)
    return adapted


def fill_adapter(adapted, name: str, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter_name, parameter in adapted.named_parameters():
        if f"lora_B.{name}" in parameter_name:
            nn.init.normal_(parameter, std=0.2)


def base_of(adapted):
    return adapted.get_base_model()
