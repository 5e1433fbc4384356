"""Prototypes: loading an encoder with them, training them, making them training texts."""

from bcos_transformers.prototypes.callback import ProtoProjectionCallback
from bcos_transformers.prototypes.explainer import ProtoExplainer
from bcos_transformers.prototypes.loading import from_pretrained_proto
from bcos_transformers.prototypes.projection import project_prototypes
from bcos_transformers.prototypes.text_explanation import PrototypeExplanation, PrototypeShare
from bcos_transformers.prototypes.training import (
    initialize_prototypes,
    prototype_parameter_groups,
    regression_bins,
    train_last_layer_only,
)

__all__ = [
    "ProtoExplainer",
    "ProtoProjectionCallback",
    "PrototypeExplanation",
    "PrototypeShare",
    "from_pretrained_proto",
    "initialize_prototypes",
    "project_prototypes",
    "prototype_parameter_groups",
    "regression_bins",
    "train_last_layer_only",
]
