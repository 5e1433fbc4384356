"""Which classes exist for which architecture and task, and their registration with transformers' Auto classes."""

from dataclasses import dataclass
from importlib import import_module

import transformers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

from bcos_transformers.modeling.configuration_proto import ProtoConfig
from bcos_transformers.modeling.modeling_proto import ProtoForSequenceClassification

TASKS = (
    "sequence-classification",
    "token-classification",
    "question-answering",
    "masked-lm",
    "causal-lm",
    "base",
)

# Conventional `model_type` and the B-cos configuration class, which names the model classes (`bcos_auto_map`).
CONFIGURATIONS: dict[str, str] = {
    "bert": "BcosBertConfig",
    "roberta": "BcosRobertaConfig",
    "distilbert": "BcosDistilBertConfig",
    "gpt2": "BcosGPT2Config",
    "llama": "BcosLlamaConfig",
    "modernbert": "BcosModernBertConfig",
    "qwen3": "BcosQwen3Config",
}


@dataclass(frozen=True)
class Architecture:
    """One supported architecture.

    Attributes:
        config: its B-cos configuration class; `model_type` is the conventional one with `bcos-` in front.
        conventional_config: the configuration class that it extends.
        models: B-cos model class by task.
    """

    config: type[PretrainedConfig]
    conventional_config: type[PretrainedConfig]
    models: dict[str, type[PreTrainedModel]]


def _architecture(model_type: str, config_name: str) -> Architecture:
    package = "bcos_transformers.modeling"
    config = getattr(import_module(f"{package}.configuration_bcos_{model_type}"), config_name)
    models = {}
    for auto_class, reference in config.bcos_auto_map.items():
        if auto_class != "AutoConfig":
            module, _, name = reference.partition(".")
            model = getattr(import_module(f"{package}.{module}"), name)
            models[model.explanation_task or "base"] = model
    conventional = next(base for base in config.__mro__ if getattr(base, "model_type", "") == model_type)
    return Architecture(config, conventional, models)


ARCHITECTURES: dict[str, Architecture] = {name: _architecture(name, config) for name, config in CONFIGURATIONS.items()}
PUBLIC_CLASSES: dict[str, type] = {
    cls.__name__: cls
    for architecture in ARCHITECTURES.values()
    for cls in (architecture.config, *architecture.models.values())
}


def register_all() -> None:
    """Registers every configuration, model and tokenizer with the Auto classes; calling it again changes nothing."""
    for architecture in ARCHITECTURES.values():
        config = architecture.config
        AutoConfig.register(config.model_type, config, exist_ok=True)
        if architecture.conventional_config in TOKENIZER_MAPPING:
            tokenizer = TOKENIZER_MAPPING[architecture.conventional_config]
            AutoTokenizer.register(config, tokenizer, exist_ok=True)
        for model in architecture.models.values():
            getattr(transformers, model._auto_class).register(config, model, exist_ok=True)
    AutoConfig.register(ProtoConfig.model_type, ProtoConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(ProtoConfig, ProtoForSequenceClassification, exist_ok=True)
