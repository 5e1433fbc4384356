"""The part of `bcos-transformers info` that is for models with prototypes."""

from typing import Any

from bcos_transformers.modeling.modeling_proto import ProtoForSequenceClassification
from bcos_transformers.prototypes.texts import position_limit

SHOWN_CLASSES = 12


def describe_prototypes(model: ProtoForSequenceClassification, fault: str | None) -> dict[str, Any]:
    """What there is to know, as plain values.

    Args:
        model: a model with prototypes.
        fault: what makes a B-cos encoder not dynamic linear, or None.
    """
    config = model.config
    encoder = config.backbone_config
    return {
        "class": type(model).__name__,
        "task": model.explanation_task,
        "encoder": type(model.backbone).__name__,
        "encoder_type": encoder.model_type,
        "b": encoder.b if config.is_bcos else None,
        "hidden_size": config.hidden_size,
        "prototypes": config.num_prototypes,
        "prototypes_by_class": dict.fromkeys(_classes(model), config.prototypes_per_class),
        "distance": config.distance,
        "projected": config.prototypes is not None,
        "shares_split_over_words": model.splits_over_tokens,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "labels": {str(i): name for i, name in config.id2label.items()},
        "max_tokens": position_limit(model),
        "dynamic_linear": fault is None if config.is_bcos else None,
        "fault": fault,
    }


def prototype_rows(facts: dict[str, Any]) -> dict[str, str]:
    """The same in rows for people, but for what B-cos models have too."""
    classes = list(facts["prototypes_by_class"])
    each = next(iter(facts["prototypes_by_class"].values()))
    named = ", ".join(classes[:SHOWN_CLASSES])
    named += f", … ({len(classes)} in all)" if len(classes) > SHOWN_CLASSES else ""
    parts = "for each of" if len(facts["labels"]) > 1 else "for each bin of values around"
    kind = f"{facts['encoder']}, {facts['hidden_size']} wide"
    return {
        "class": facts["class"],
        "task": facts["task"],
        "encoder": f"{kind} (conventional)" if facts["b"] is None else f"{kind}, B {facts['b']:g}",
        "prototypes": f"{facts['prototypes']:,}, {each:,} {parts}: {named}"
        if len(classes) > 1
        else f"{facts['prototypes']:,}",
        "distance": facts["distance"],
        "projected": "yes, each prototype is a training text"
        if facts["projected"]
        else "no; bcos_transformers.project_prototypes makes each a training text",
        "shares split over words": "yes"
        if facts["shares_split_over_words"]
        else "no; that needs a B-cos encoder and the distance cosine",
    }


def _classes(model: ProtoForSequenceClassification) -> list[str]:
    """Names of the classes; for a regression, the values that its bins stand for."""
    config = model.config
    if not config.is_regression:
        return [str(config.id2label[i]) for i in range(config.num_labels)]
    if config.regression_values is None:
        return [str(config.id2label[0])]
    return [f"{value:g}" for value in config.regression_values]
