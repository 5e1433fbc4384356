"""Which classes exist for which architecture and task, and their registration with transformers' Auto classes."""

from dataclasses import dataclass

import transformers
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

from bcos_transformers.modeling.configuration_bcos_bert import BcosBertConfig
from bcos_transformers.modeling.modeling_bcos_bert import (
    BcosBertForMaskedLM,
    BcosBertForQuestionAnswering,
    BcosBertForSequenceClassification,
    BcosBertForTokenClassification,
    BcosBertModel,
)

TASKS = (
    "sequence-classification",
    "token-classification",
    "question-answering",
    "masked-lm",
    "causal-lm",
    "base",
)


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


ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(
        config=BcosBertConfig,
        conventional_config=transformers.BertConfig,
        models={
            "base": BcosBertModel,
            "sequence-classification": BcosBertForSequenceClassification,
            "token-classification": BcosBertForTokenClassification,
            "masked-lm": BcosBertForMaskedLM,
            "question-answering": BcosBertForQuestionAnswering,
        },
    ),
}


def register_all() -> None:
    """Registers every configuration, model and tokenizer with the Auto classes; calling it again changes nothing."""
    for architecture in ARCHITECTURES.values():
        config = architecture.config
        AutoConfig.register(config.model_type, config, exist_ok=True)
        tokenizer = TOKENIZER_MAPPING[architecture.conventional_config]
        AutoTokenizer.register(config, tokenizer, exist_ok=True)
        for model in architecture.models.values():
            getattr(transformers, model._auto_class).register(config, model, exist_ok=True)
