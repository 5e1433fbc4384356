"""B-cos language models for transformers: predictions that split exactly into contributions of the input tokens.

Importing this package registers every B-cos class with transformers' Auto classes.
"""

from pathlib import Path

# In a checkout that is not installed, `modeling/` lies beside this folder instead of inside it.
if not (Path(__file__).parent / "modeling").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

from bcos_transformers.calibration import match_output_scales
from bcos_transformers.conversion import ConversionReport, from_pretrained_bcos
from bcos_transformers.data.masking import MaskingCollator
from bcos_transformers.distillation import DistillationCallback
from bcos_transformers.explanations import (
    BcosExplainer,
    TextExplanation,
    WordScore,
    load_explanations,
    save_explanations,
)
from bcos_transformers.hub import BcosHubCallback, push_to_hub
from bcos_transformers.loading import load_bcos_model
from bcos_transformers.model_card import CardFacts
from bcos_transformers.modeling.bcos_conversion import assert_dynamic_linear, set_b
from bcos_transformers.modeling.bcos_explanation import BcosExplanation
from bcos_transformers.modeling.bcos_generation import BcosGenerationExplanation, explain_generation
from bcos_transformers.modeling.bcos_state import explanation_mode
from bcos_transformers.modeling.configuration_proto import ProtoConfig
from bcos_transformers.modeling.modeling_proto import ProtoForSequenceClassification, ProtoOutput
from bcos_transformers.modeling.proto_explanation import ProtoExplanation
from bcos_transformers.pipelines import BcosTextClassificationPipeline, register_pipelines
from bcos_transformers.prototypes import (
    ProtoExplainer,
    ProtoProjectionCallback,
    PrototypeExplanation,
    PrototypeShare,
    from_pretrained_proto,
    initialize_prototypes,
    project_prototypes,
    prototype_parameter_groups,
    regression_bins,
    train_last_layer_only,
)
from bcos_transformers.registration import PUBLIC_CLASSES, register_all
from bcos_transformers.training import BcosAnnealingCallback

__version__ = "0.1.0"
globals().update(PUBLIC_CLASSES)  # BcosBertConfig, BcosBertForSequenceClassification, …
__all__ = [
    "BcosAnnealingCallback",
    "BcosExplainer",
    "BcosExplanation",
    "BcosGenerationExplanation",
    "BcosHubCallback",
    "BcosTextClassificationPipeline",
    "CardFacts",
    "ConversionReport",
    "DistillationCallback",
    "MaskingCollator",
    "ProtoConfig",
    "ProtoExplainer",
    "ProtoExplanation",
    "ProtoForSequenceClassification",
    "ProtoOutput",
    "ProtoProjectionCallback",
    "PrototypeExplanation",
    "PrototypeShare",
    "TextExplanation",
    "WordScore",
    "assert_dynamic_linear",
    "explain_generation",
    "explanation_mode",
    "from_pretrained_bcos",
    "from_pretrained_proto",
    "initialize_prototypes",
    "load_bcos_model",
    "load_explanations",
    "match_output_scales",
    "project_prototypes",
    "prototype_parameter_groups",
    "push_to_hub",
    "regression_bins",
    "save_explanations",
    "set_b",
    "train_last_layer_only",
    *PUBLIC_CLASSES,
]

register_all()
register_pipelines()
