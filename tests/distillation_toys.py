"""Teachers, students and data of the tests of distillation, and the loss in closed form."""

import math

import torch
from transformers import (
    BertForSequenceClassification,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from conftest import bcos_model, tiny_config, training_arguments
from contract import fill_biases

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LABELS = torch.tensor([2, 0, 1])


def conventional(num_labels: int = 3, kind=BertForSequenceClassification, seed: int = 7, **fields):
    """A teacher with biases that matter, in float64."""
    torch.manual_seed(seed)
    teacher = kind(tiny_config(num_labels=num_labels, **fields))
    fill_biases(teacher)
    return teacher.double()


def student_of(seed: int = 0, **fields):
    return bcos_model(seed=seed, **NO_DROPOUT, **fields)


def arguments(folder="unused", **overrides) -> TrainingArguments:
    return training_arguments(folder, **{"max_steps": 4, "learning_rate": 5e-3, **overrides})


def begin(callback, model, **options) -> None:
    """What the Trainer tells its callbacks before the first batch."""
    known = (arguments(**options), TrainerState(), TrainerControl())
    callback.on_train_begin(*known, model=model)
    callback.on_step_begin(*known, model=model)
    model.train()


def first_loss(callback, model, options=None, **inputs):
    begin(callback, model, **(options or {}))
    return model(**inputs).loss


def examples(count: int = 32, labelled: bool = True) -> list[dict]:
    """Texts of one length whose label depends on whether token 7 is there."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        ids = torch.randint(8, 60, (8,), generator=generator)
        ids[3] = 7 if i % 2 else 9
        row = {"input_ids": ids, "attention_mask": torch.ones(8, dtype=torch.long)}
        rows.append({**row, "labels": i % 3} if labelled else row)
    return rows


def train(model, folder, callbacks=(), data=None, **overrides) -> Trainer:
    trainer = Trainer(
        model,
        arguments(folder, **overrides),
        train_dataset=data or examples(),
        eval_dataset=data or examples(),
        callbacks=list(callbacks),
    )
    trainer.train()
    return trainer


def softmax(logits: list[float]) -> list[float]:
    exps = [math.exp(value) for value in logits]
    return [value / sum(exps) for value in exps]


def closed_form(student, teacher, inputs, labels, loss: str) -> tuple[float, float, float]:
    """Task loss, divergence and distance, one number at a time."""
    with torch.no_grad():
        mine, other = (m.eval()(**inputs, output_hidden_states=True) for m in (student, teacher))
    rows = mine.logits.shape[0]
    task = kl = 0.0
    for row in range(rows):
        scores = mine.logits[row].tolist()
        if loss == "ce":
            task -= math.log(softmax(scores)[labels[row]]) / rows
        else:
            for c, score in enumerate(scores):
                sigmoid = 1 / (1 + math.exp(-score))
                task -= math.log(sigmoid if labels[row] == c else 1 - sigmoid) / len(scores) / rows
        p, q = softmax(other.logits[row].tolist()), softmax(scores)
        kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / rows
    ratios = []
    for h, t in zip(mine.hidden_states, other.hidden_states, strict=True):
        apart = size = 0.0
        for row, token in inputs["attention_mask"].nonzero().tolist():
            for a, b in zip(h[row, token].tolist(), t[row, token].tolist(), strict=True):
                apart, size = apart + (a - b) ** 2, size + b**2
        ratios.append(apart / size)
    assert len(ratios) == 3
    return task, kl, sum(ratios) / len(ratios)


def hooks_of(model) -> int:
    return len(model._forward_hooks) + len(model._forward_pre_hooks)
