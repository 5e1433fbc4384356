"""B-cos BERT: transformers' BERT classes with their layers swapped in place (arXiv 2502.12992)."""

from torch import nn
from transformers.models.bert.modeling_bert import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMPredictionHead,
    BertModel,
)

from .bcos_losses import with_language_model_loss, with_sequence_loss, with_token_loss
from .bcos_model import BcosModelMixin
from .configuration_bcos_bert import BcosBertConfig


class BcosBertModel(BcosModelMixin, BertModel):
    """B-cos BERT encoder; its pooler is a B-cos layer without tanh."""

    config_class = BcosBertConfig
    _auto_class = "AutoModel"

    def __init__(self, config: BcosBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        self.make_bcos()


class BcosBertForSequenceClassification(BcosModelMixin, BertForSequenceClassification):
    """B-cos BERT with a B-cos classifier on the pooled first token."""

    config_class = BcosBertConfig
    _auto_class = "AutoModelForSequenceClassification"
    explanation_task = "sequence-classification"
    pools_first_token = True

    def __init__(self, config: BcosBertConfig) -> None:
        super().__init__(config)
        self.make_bcos()

    forward = with_sequence_loss(BertForSequenceClassification.forward)


class BcosBertForTokenClassification(BcosModelMixin, BertForTokenClassification):
    """B-cos BERT with a B-cos classifier on every token."""

    config_class = BcosBertConfig
    _auto_class = "AutoModelForTokenClassification"
    explanation_task = "token-classification"

    def __init__(self, config: BcosBertConfig) -> None:
        super().__init__(config)
        self.make_bcos()

    forward = with_token_loss(BertForTokenClassification.forward)


class BcosBertForMaskedLM(BcosModelMixin, BertForMaskedLM):
    """B-cos BERT with a bias-free masked-language-model head tied to the word embeddings."""

    config_class = BcosBertConfig
    _auto_class = "AutoModelForMaskedLM"
    _tied_weights_keys = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}
    explanation_task = "masked-lm"

    def __init__(self, config: BcosBertConfig) -> None:
        super().__init__(config)
        self.make_bcos()

    def _init_weights(self, module: nn.Module) -> None:
        # The parent would fill the head's bias, which is gone.
        if not (isinstance(module, BertLMPredictionHead) and module.bias is None):
            super()._init_weights(module)

    forward = with_language_model_loss(BertForMaskedLM.forward)


class BcosBertForQuestionAnswering(BcosModelMixin, BertForQuestionAnswering):
    """B-cos BERT with a B-cos layer for the start and end logits of an answer span."""

    config_class = BcosBertConfig
    _auto_class = "AutoModelForQuestionAnswering"
    explanation_task = "question-answering"

    def __init__(self, config: BcosBertConfig) -> None:
        super().__init__(config)
        self.make_bcos()
