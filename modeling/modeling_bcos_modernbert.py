"""B-cos ModernBERT: transformers' ModernBERT classes with their layers swapped in place (arXiv 2502.12992)."""

from transformers.models.modernbert.modeling_modernbert import (
    ModernBertForMaskedLM,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
)

from .bcos_losses import with_language_model_loss, with_sequence_loss, with_token_loss
from .bcos_model import BcosModelMixin
from .configuration_bcos_modernbert import BcosModernBertConfig


class BcosModernBertModel(BcosModelMixin, ModernBertModel):
    """B-cos ModernBERT encoder."""

    config_class = BcosModernBertConfig
    _auto_class = "AutoModel"

    def __init__(self, config: BcosModernBertConfig) -> None:
        super().__init__(config)
        self.make_bcos()


class BcosModernBertForSequenceClassification(BcosModelMixin, ModernBertForSequenceClassification):
    """B-cos ModernBERT with a B-cos classifier on the first token or the mean of all (`config.classifier_pooling`)."""

    config_class = BcosModernBertConfig
    _auto_class = "AutoModelForSequenceClassification"
    explanation_task = "sequence-classification"

    def __init__(self, config: BcosModernBertConfig) -> None:
        super().__init__(config)
        self.make_bcos()

    @property
    def pools_first_token(self) -> bool:
        """Whether the classifier reads the first token."""
        return self.config.classifier_pooling == "cls"

    forward = with_sequence_loss(ModernBertForSequenceClassification.forward)


class BcosModernBertForTokenClassification(BcosModelMixin, ModernBertForTokenClassification):
    """B-cos ModernBERT with a B-cos classifier on every token."""

    config_class = BcosModernBertConfig
    _auto_class = "AutoModelForTokenClassification"
    explanation_task = "token-classification"

    def __init__(self, config: BcosModernBertConfig) -> None:
        super().__init__(config)
        self.make_bcos()

    forward = with_token_loss(ModernBertForTokenClassification.forward)


class BcosModernBertForMaskedLM(BcosModelMixin, ModernBertForMaskedLM):
    """B-cos ModernBERT with a bias-free masked-language-model head tied to the word embeddings."""

    config_class = BcosModernBertConfig
    _auto_class = "AutoModelForMaskedLM"
    explanation_task = "masked-lm"

    def __init__(self, config: BcosModernBertConfig) -> None:
        super().__init__(config)
        self.make_bcos()

    forward = with_language_model_loss(ModernBertForMaskedLM.forward)


class BcosModernBertForQuestionAnswering(BcosModelMixin, ModernBertForQuestionAnswering):
    """B-cos ModernBERT with a B-cos layer for the start and end logits of an answer span."""

    config_class = BcosModernBertConfig
    _auto_class = "AutoModelForQuestionAnswering"
    explanation_task = "question-answering"

    def __init__(self, config: BcosModernBertConfig) -> None:
        super().__init__(config)
        self.make_bcos()
