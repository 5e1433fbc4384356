"""B-cos Llama: transformers' Llama classes with their layers swapped in place (arXiv 2502.12992)."""

from torch import nn
from transformers.models.llama.modeling_llama import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)

from .bcos_generation import BcosCausalLMMixin
from .bcos_losses import with_next_token_loss, with_sequence_loss, with_token_loss
from .bcos_model import BcosModelMixin, classifier_dropout, init_head_around
from .configuration_bcos_llama import BcosLlamaConfig


class BcosLlamaModel(BcosModelMixin, LlamaModel):
    """B-cos Llama decoder."""

    config_class = BcosLlamaConfig
    _auto_class = "AutoModel"

    def __init__(self, config: BcosLlamaConfig) -> None:
        super().__init__(config)
        self.make_bcos()


class BcosLlamaForCausalLM(BcosCausalLMMixin, LlamaForCausalLM):
    """B-cos Llama with a language-model head."""

    config_class = BcosLlamaConfig
    _auto_class = "AutoModelForCausalLM"

    def __init__(self, config: BcosLlamaConfig) -> None:
        super().__init__(config)
        self.make_bcos()

    forward = with_next_token_loss(LlamaForCausalLM.forward)


class BcosLlamaForSequenceClassification(BcosModelMixin, LlamaForSequenceClassification):
    """B-cos Llama with a B-cos classifier on the last token that is not padding."""

    config_class = BcosLlamaConfig
    _auto_class = "AutoModelForSequenceClassification"
    explanation_task = "sequence-classification"
    pools_last_token = True

    def __init__(self, config: BcosLlamaConfig) -> None:
        init_head_around(self, BcosLlamaModel, config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.make_bcos()

    forward = with_sequence_loss(LlamaForSequenceClassification.forward)


class BcosLlamaForTokenClassification(BcosModelMixin, LlamaForTokenClassification):
    """B-cos Llama with a B-cos classifier on every token."""

    config_class = BcosLlamaConfig
    _auto_class = "AutoModelForTokenClassification"
    explanation_task = "token-classification"

    def __init__(self, config: BcosLlamaConfig) -> None:
        init_head_around(self, BcosLlamaModel, config)
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.make_bcos()

    forward = with_token_loss(LlamaForTokenClassification.forward)
