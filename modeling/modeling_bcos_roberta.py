"""B-cos RoBERTa: transformers' RoBERTa classes with their layers swapped in place (arXiv 2502.12992)."""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.roberta.modeling_roberta import (
    RobertaClassificationHead,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaLMHead,
    RobertaModel,
)

from .bcos_losses import with_language_model_loss, with_sequence_loss, with_token_loss
from .bcos_model import BcosModelMixin
from .configuration_bcos_roberta import BcosRobertaConfig


class BcosRobertaClassificationHead(RobertaClassificationHead):
    """The classification head without its tanh."""

    def forward(self, features: torch.Tensor, **kwargs: object) -> torch.Tensor:
        first = self.dropout(features[:, 0, :])
        return self.out_proj(self.dropout(self.dense(first)))


class BcosRobertaLMHead(RobertaLMHead):
    """The language-model head with its activation as a module, whose gate an explanation can freeze."""

    def __init__(self, config: BcosRobertaConfig) -> None:
        super().__init__(config)
        self.activation = ACT2FN["gelu"]

    def forward(self, features: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return self.decoder(self.layer_norm(self.activation(self.dense(features))))


class BcosRobertaMixin(BcosModelMixin):
    """Derives positions from `input_ids`: padding, told by its id, has none."""

    config_class = BcosRobertaConfig
    derives_positions_from_ids = True


class BcosRobertaModel(BcosRobertaMixin, RobertaModel):
    """B-cos RoBERTa encoder; its pooler is a B-cos layer without tanh."""

    _auto_class = "AutoModel"

    def __init__(self, config: BcosRobertaConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        self.make_bcos()


class BcosRobertaForSequenceClassification(BcosRobertaMixin, RobertaForSequenceClassification):
    """B-cos RoBERTa with two B-cos layers on the first token."""

    _auto_class = "AutoModelForSequenceClassification"
    explanation_task = "sequence-classification"
    pools_first_token = True

    def __init__(self, config: BcosRobertaConfig) -> None:
        super().__init__(config)
        self.classifier = BcosRobertaClassificationHead(config)
        self.make_bcos()

    forward = with_sequence_loss(RobertaForSequenceClassification.forward)


class BcosRobertaForTokenClassification(BcosRobertaMixin, RobertaForTokenClassification):
    """B-cos RoBERTa with a B-cos classifier on every token."""

    _auto_class = "AutoModelForTokenClassification"
    explanation_task = "token-classification"

    def __init__(self, config: BcosRobertaConfig) -> None:
        super().__init__(config)
        self.make_bcos()

    forward = with_token_loss(RobertaForTokenClassification.forward)


class BcosRobertaForMaskedLM(BcosRobertaMixin, RobertaForMaskedLM):
    """B-cos RoBERTa with a bias-free masked-language-model head tied to the word embeddings."""

    _auto_class = "AutoModelForMaskedLM"
    _tied_weights_keys = {"lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight"}
    explanation_task = "masked-lm"

    def __init__(self, config: BcosRobertaConfig) -> None:
        super().__init__(config)
        self.lm_head = BcosRobertaLMHead(config)
        self.make_bcos()

    def _init_weights(self, module: nn.Module) -> None:
        # The parent would fill the head's bias, which is gone.
        if not (isinstance(module, RobertaLMHead) and module.bias is None):
            super()._init_weights(module)

    forward = with_language_model_loss(RobertaForMaskedLM.forward)


class BcosRobertaForQuestionAnswering(BcosRobertaMixin, RobertaForQuestionAnswering):
    """B-cos RoBERTa with a B-cos layer for the start and end logits of an answer span."""

    _auto_class = "AutoModelForQuestionAnswering"
    explanation_task = "question-answering"

    def __init__(self, config: BcosRobertaConfig) -> None:
        super().__init__(config)
        self.make_bcos()
