"""Small models with prototypes to be trained, and texts for them."""

import random

import torch
from transformers import DataCollatorWithPadding, Trainer

from bcos_transformers import BcosBertConfig, ProtoConfig, ProtoForSequenceClassification, regression_bins
from conftest import tiny_config, training_arguments

SUBJECTS, ENDS = ["film", "food", "soup"], ["", " .", " !", " and funny", " and dull", " , it was very"]
FEELINGS = [["bad", "hated", "dull"], ["good", "great", "loved"], ["not", "very", "is"]]


def rows(count: int = 60, labels: int = 2, seed: int = 0) -> list[dict]:
    """Texts whose class is told by a word, some of them several times."""
    draw = random.Random(seed)
    found = []
    for i in range(count):
        words = draw.choice(SUBJECTS), draw.choice(FEELINGS[i % labels])
        found.append({"text": "the {} was {}".format(*words) + draw.choice(ENDS), "label": i % labels})
    return found


def scores(count: int = 60) -> list[dict]:
    """The same texts with values around their class."""
    return [{"text": row["text"], "label": row["label"] + i / 1000} for i, row in enumerate(rows(count))]


def proto_model(bcos: bool = False, seed: int = 0, dropout: float = 0.1, **fields) -> ProtoForSequenceClassification:
    torch.manual_seed(seed)
    tiny = tiny_config(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    config = tiny.to_dict()
    for name in ("model_type", "architectures", "id2label", "label2id"):
        config.pop(name, None)
    backbone = BcosBertConfig(**config) if bcos else tiny
    if fields.get("num_labels") == 1:
        fields = {**regression_bins([row["label"] for row in scores()], 3), **fields}
    model = ProtoForSequenceClassification(ProtoConfig(backbone_config=backbone, **{"num_prototypes": 6, **fields}))
    torch.nn.init.normal_(model.prototypes, std=0.5)
    return model.eval()


def tokenized(data: list[dict], tokenizer) -> list[dict]:
    return [{**tokenizer(row["text"]), "labels": row["label"]} for row in data]


def embedding(model, tokenizer, text: str) -> torch.Tensor:
    """`(hidden,)` of a text on its own, in evaluation mode."""
    training = model.training
    model.eval()
    with torch.no_grad():
        found = model.embed(**tokenizer(text, return_tensors="pt"))[0][0]
    model.train(training)
    return found


def state_of(model) -> dict:
    """Everything that a refused call must leave alone."""
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "prototypes": model.config.prototypes,
        "modes": [module.training for module in model.modules()],
        "trained": [parameter.requires_grad for parameter in model.parameters()],
    }


def same_state(one: dict, other: dict) -> bool:
    weights = (one.pop("weights"), other.pop("weights"))
    return one == other and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def train(model, tokenizer, folder, callbacks=(), resume=None, data=None, optimizer=None, **overrides) -> Trainer:
    trainer = Trainer(
        model,
        training_arguments(folder, **{"max_steps": 8, "learning_rate": 5e-3, **overrides}),
        DataCollatorWithPadding(tokenizer),
        tokenized(data or rows(), tokenizer),
        eval_dataset=tokenized(rows(8), tokenizer),
        callbacks=list(callbacks),
        optimizers=(optimizer, None),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer
