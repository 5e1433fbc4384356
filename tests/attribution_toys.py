"""Small classifiers, texts and methods for the tests of attributions."""

from types import SimpleNamespace

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from bcos_transformers.evaluation.baselines import build_method
from conftest import bcos_model, make_tokenizer
from contract import tiny_config

TEXTS = ["the film is not very good", "soup", "funny , gripping !", ""]
TARGET = torch.tensor([0, 1, 2, 1])
FAST = {"kernel_shap": {"n_samples": 40}, "lime": {"n_samples": 40}}


def conventional(name: str, seed: int = 0, **fields):
    torch.manual_seed(seed)
    special = {} if name != "gpt2" else {"bos_token_id": 2}
    config = tiny_config(name, conventional=True, num_labels=3, **special, **fields)
    model = AutoModelForSequenceClassification.from_config(config).double().eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model


def encoded(texts=TEXTS, pad: int = 0, types: bool = False) -> dict[str, torch.Tensor]:
    inputs = dict(make_tokenizer()(texts, padding=True, return_tensors="pt", return_token_type_ids=types))
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, pad)
    return inputs


def alone(inputs: dict, row: int) -> dict:
    tokens = int(inputs["attention_mask"][row].sum())
    return {name: value[row : row + 1, :tokens] for name, value in inputs.items()}


def method_of(name: str, model, tokenizer=None, **options):
    return build_method(name, model, tokenizer or make_tokenizer(), **{**FAST.get(name, {}), **options})


class Additive(nn.Module):
    """`f(sum over real tokens of embedding · weight)`: everything about it is known."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.config = SimpleNamespace(num_labels=3, pad_token_id=0)
        self.embeddings = nn.Embedding(60, 4, dtype=torch.float64)
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.float64) / 2)
        self.activation = activation

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def forward(self, input_ids, attention_mask, return_dict=True):
        logits = (self.embeddings(input_ids) * attention_mask[..., None]).sum(1) @ self.weight
        return SimpleNamespace(logits=logits if self.activation is None else self.activation(logits))

    def terms(self, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bth,hb->bt", self.embeddings(ids), self.weight[:, target]).detach()


def classifiers() -> dict:
    """Three conventional classifiers and a B-cos one."""
    return {
        "bert": conventional("bert"),
        "gpt2": conventional("gpt2"),
        "bcos": bcos_model(),
        "roberta": conventional("roberta"),
    }
