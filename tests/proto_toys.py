"""Tiny models with prototypes, and their formulas once more: in float64, number by number."""

import math

import torch

from bcos_transformers import ProtoConfig, ProtoForSequenceClassification
from contract import tiny_config

TEXTS = [
    "a very good film !",
    "the food was great",
    "the film is not good",
    "a dull , bad soup",
    "loved it",
    "hated it .",
]
NAMES = {0: "bad", 1: "good", 2: "so so"}
BINS = {"num_labels": 1, "regression_boundaries": [-0.5, 0.7], "regression_values": [-1.0, 0.1, 1.5]}


def proto_config(
    backbone: str = "bert", conventional: bool = False, encoder: dict | None = None, **fields
) -> ProtoConfig:
    """Six prototypes over a tiny encoder with the fields `encoder`; three labels unless `fields` say otherwise."""
    labels = {} if {"num_labels", "id2label"} & fields.keys() else {"num_labels": 3}
    values = {"num_prototypes": 6, "initializer_range": 0.4, **labels, **fields}
    return ProtoConfig(backbone_config=tiny_config(backbone, conventional, **(encoder or {})), **values)


def proto_model(
    backbone: str = "bert", conventional: bool = False, attn: str = "sdpa", seed: int = 0, **fields
) -> ProtoForSequenceClassification:
    """A model with random weights, those of the last layer included, in float64 and evaluation mode."""
    torch.manual_seed(seed)
    config = proto_config(backbone, conventional, **fields)
    config._attn_implementation = attn
    model = ProtoForSequenceClassification(config).double().eval()
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def project(model: ProtoForSequenceClassification, tokenizer) -> None:
    """Makes a text the prototype of each, as a projection does."""
    with torch.no_grad():
        embeddings = embed_texts(model, tokenizer, TEXTS)
        model.prototypes.copy_(embeddings)
    classes = model.prototype_classes.tolist()
    model.config.prototypes = [
        {"text": text, "label": model.config.id2label[classes[j]], "index": 10 * j, "distance": 0.25 * j}
        for j, text in enumerate(TEXTS)
    ]


def embed_texts(model: ProtoForSequenceClassification, tokenizer, texts: list[str]) -> torch.Tensor:
    """Pooled embeddings `(texts, hidden)`, each text alone."""
    with torch.no_grad():
        return torch.cat([model(**tokenizer([text], return_tensors="pt")).pooled_embedding for text in texts])


def twin(model: ProtoForSequenceClassification, inputs: dict, labels: list | None = None) -> dict[str, torch.Tensor]:
    """What the model computes from its encoder's token embeddings, by loops over Python numbers."""
    config = model.config
    with torch.no_grad():
        embeddings = model.backbone(**inputs).last_hidden_state.tolist()
    masks = inputs["attention_mask"].tolist()
    projection, offset = (
        model.token_attention.projection.weight.tolist(),
        model.token_attention.projection.bias.tolist(),
    )
    context, prototypes = model.token_attention.context.tolist(), model.prototypes.tolist()
    weight = model.classifier.weight.tolist()
    bias = [0.0] * len(weight) if model.classifier.bias is None else model.classifier.bias.tolist()
    found = {name: [] for name in ("token_attention", "pooled_embedding", "distances", "similarities", "logits")}
    for tokens, mask in zip(embeddings, masks, strict=True):
        alpha = _token_weights(tokens, mask, projection, offset, context)
        pooled = [sum(a * token[h] for a, token in zip(alpha, tokens, strict=True)) for h in range(len(context))]
        distances = [_distance(pooled, prototype, config.distance) for prototype in prototypes]
        similarities = [1 - d if config.distance == "cosine" else 1 / (d + config.epsilon) for d in distances]
        logits = [
            sum(w * s for w, s in zip(row, similarities, strict=True)) + b for row, b in zip(weight, bias, strict=True)
        ]
        for name, value in zip(found, (alpha, pooled, distances, similarities, logits), strict=True):
            found[name].append(value)
    found = {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}
    found["contributions"] = torch.tensor(
        [
            [[w * s for w, s in zip(row, text, strict=True)] for row in weight]
            for text in found["similarities"].tolist()
        ],
        dtype=torch.float64,
    )
    if labels is not None:
        found |= _losses(config, found["logits"].tolist(), found["distances"].tolist(), labels)
    return found


def _token_weights(tokens, mask, projection, offset, context) -> list[float]:
    scores = []
    for token in tokens:
        hidden = [
            math.tanh(sum(w * x for w, x in zip(row, token, strict=True)) + b)
            for row, b in zip(projection, offset, strict=True)
        ]
        scores.append(sum(u * v for u, v in zip(hidden, context, strict=True)))
    powers = [math.exp(score) if real else 0.0 for score, real in zip(scores, mask, strict=True)]
    return [power / sum(powers) for power in powers]


def _distance(a: list[float], b: list[float], kind: str) -> float:
    if kind == "l2":
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    lengths = [math.sqrt(sum(x * x for x in vector)) for vector in (a, b)]
    return 1 - sum(x * y for x, y in zip(a, b, strict=True)) / (lengths[0] * lengths[1])


def _losses(config: ProtoConfig, logits, distances, labels) -> dict[str, torch.Tensor]:
    bounds = config.regression_boundaries
    classes = 1 + len(bounds) if bounds else config.num_labels
    each = config.num_prototypes // classes
    k = config.num_cohesion_separation
    k = k if isinstance(k, int) else max(1, round(k * each))
    task, cohesion, separation = 0.0, 0.0, 0.0
    for outputs, row, label in zip(logits, distances, labels, strict=True):
        if bounds:
            task += (outputs[0] - label) ** 2
            own_class = sum(label >= bound for bound in bounds)
        else:
            task += math.log(sum(math.exp(output) for output in outputs)) - outputs[label]
            own_class = label
        own = [d for j, d in enumerate(row) if j // each == own_class]
        others = [d for j, d in enumerate(row) if j // each != own_class]
        cohesion += sum(sorted(own, reverse=True)[:k]) / k
        separation -= sum(sorted(others)[:k]) / k
    parts = {"task_loss": task, "cohesion_loss": cohesion, "separation_loss": separation}
    parts = {name: value / len(labels) for name, value in parts.items()}
    weights = (config.lambda_ce, config.lambda_cohesion, config.lambda_separation)
    parts["loss"] = sum(w * value for w, value in zip(weights, parts.values(), strict=True))
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in parts.items()}
