"""Tiny models of every architecture and task, for the tests that all of them have to pass."""

import itertools
import threading

import torch
from torch import nn
from transformers import PreTrainedModel

from bcos_transformers.registration import ARCHITECTURES

# Older releases call it gradient checkpointing.
CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(PreTrainedModel, "activation_checkpointing_enable")
    else "gradient_checkpointing"
)
COMMON = {"vocab_size": 60, "initializer_range": 0.4}
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
LLAMA = {**BERT, "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
TINY: dict[str, dict] = {
    "bert": BERT,
    "roberta": {**BERT, "max_position_embeddings": 34, "pad_token_id": 1},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 32},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "pad_token_id": 0, "eos_token_id": 2},
    "llama": LLAMA,
    "modernbert": {
        **BERT,
        "num_hidden_layers": 3,
        "local_attention": 8,
        **{f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos", "cls", "sep"))},
    },
    "qwen3": {
        **LLAMA,
        "num_hidden_layers": 3,
        "head_dim": 8,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
}
DECODERS = ("gpt2", "llama", "qwen3")
ALL = [(name, task) for name, architecture in ARCHITECTURES.items() for task in architecture.models]
HEADS = [(name, task) for name, task in ALL if task != "base"]
ONE_HEAD = [(name, "causal-lm" if name in DECODERS else "sequence-classification") for name in ARCHITECTURES]
MASK_TOKEN = 4


def tiny_config(name: str, conventional: bool = False, **fields):
    """The configuration of a tiny model."""
    architecture = ARCHITECTURES[name]
    if conventional:
        return architecture.conventional_config(**{**COMMON, **TINY[name], **fields})
    return architecture.config(**{**COMMON, **TINY[name], "mask_token_id": MASK_TOKEN, **fields})


def tiny_model(name: str, task: str, attn: str = "sdpa", seed: int = 0, **fields):
    """A B-cos model with random weights, in float64 and evaluation mode."""
    torch.manual_seed(seed)
    config = tiny_config(name, **{"num_labels": 2 if task == "question-answering" else 3, **fields})
    config._attn_implementation = attn
    return ARCHITECTURES[name].models[task](config).double().eval()


def tiny_inputs(model, rows: int = 3, tokens: int = 9, padded: bool = True, left: bool = False, seed: int = 1) -> dict:
    """Random token ids; with `padded`, later rows are shorter."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(1, rows):
            mask[row, tokens - 2 * row :] = 0
    if model.explanation_task == "masked-lm":
        ids[:, 2] = MASK_TOKEN
    inputs = {"input_ids": ids.masked_fill(mask == 0, model.config.pad_token_id), "attention_mask": mask}
    return {key: value.flip(1) for key, value in inputs.items()} if left else inputs


def every_target(model, rows: int = 3):
    """All targets of a task; a handful of token ids for language models."""
    if model.explanation_task in ("masked-lm", "causal-lm"):
        return torch.tensor([[5, 17, 40]]).expand(rows, -1)
    return "all"


def public_logits(model, inputs: dict) -> torch.Tensor:
    """The logits of the model's own forward pass."""
    with torch.no_grad():
        out = model(**inputs)
    return out.logits if "logits" in out else torch.stack((out.start_logits, out.end_logits), dim=-1)


def labels_for(model, inputs: dict) -> dict:
    """Labels that fit the task."""
    rows, tokens = inputs["input_ids"].shape
    task = model.explanation_task
    if task == "question-answering":
        return {"start_positions": torch.arange(rows), "end_positions": torch.arange(rows) + 2}
    if task == "sequence-classification":
        return {"labels": torch.arange(rows) % 3}
    if task == "token-classification":
        return {"labels": torch.arange(rows * tokens).view(rows, tokens) % 3}
    return {"labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}


def fill_biases(model) -> None:
    """Gives biases, where a field keeps some, values that matter."""
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)


def explain_in_eight_threads(model, rows: list[dict], turns: int) -> dict[tuple[int, int, int], torch.Tensor]:
    """Contributions by thread, turn and row, where eight threads explain the same rows at once."""
    results, errors = {}, []

    def work(thread: int) -> None:
        try:
            for turn, (i, row) in itertools.product(range(turns), enumerate(rows)):
                results[thread, turn, i] = model.explain(**row).contributions
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(results) == 8 * turns * len(rows)
    return results
