"""B-cos Qwen3: transformers' Qwen3 classes with their layers swapped in place (arXiv 2502.12992)."""

from torch import nn
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    Qwen3ForTokenClassification,
    Qwen3Model,
)

from .bcos_generation import BcosCausalLMMixin
from .bcos_losses import with_next_token_loss, with_sequence_loss, with_token_loss
from .bcos_model import BcosModelMixin, classifier_dropout, init_head_around
from .configuration_bcos_qwen3 import BcosQwen3Config


class BcosQwen3Model(BcosModelMixin, Qwen3Model):
    """B-cos Qwen3 decoder."""

    config_class = BcosQwen3Config
    _auto_class = "AutoModel"

    def __init__(self, config: BcosQwen3Config) -> None:
        super().__init__(config)
        self.make_bcos()


class BcosQwen3ForCausalLM(BcosCausalLMMixin, Qwen3ForCausalLM):
    """B-cos Qwen3 with a language-model head."""

    config_class = BcosQwen3Config
    _auto_class = "AutoModelForCausalLM"

    def __init__(self, config: BcosQwen3Config) -> None:
        super().__init__(config)
        self.make_bcos()

    forward = with_next_token_loss(Qwen3ForCausalLM.forward)


class BcosQwen3ForSequenceClassification(BcosModelMixin, Qwen3ForSequenceClassification):
    """B-cos Qwen3 with a B-cos classifier on the last token that is not padding."""

    config_class = BcosQwen3Config
    _auto_class = "AutoModelForSequenceClassification"
    explanation_task = "sequence-classification"
    pools_last_token = True

    def __init__(self, config: BcosQwen3Config) -> None:
        init_head_around(self, BcosQwen3Model, config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.make_bcos()

    forward = with_sequence_loss(Qwen3ForSequenceClassification.forward)


class BcosQwen3ForTokenClassification(BcosModelMixin, Qwen3ForTokenClassification):
    """B-cos Qwen3 with a B-cos classifier on every token."""

    config_class = BcosQwen3Config
    _auto_class = "AutoModelForTokenClassification"
    explanation_task = "token-classification"

    def __init__(self, config: BcosQwen3Config) -> None:
        init_head_around(self, BcosQwen3Model, config)
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.make_bcos()

    forward = with_token_loss(Qwen3ForTokenClassification.forward)
