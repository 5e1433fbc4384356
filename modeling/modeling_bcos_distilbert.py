"""B-cos DistilBERT: transformers' DistilBERT classes with their layers swapped in place (arXiv 2502.12992)."""

from typing import Any

import torch
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.distilbert.modeling_distilbert import (
    DistilBertForMaskedLM,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
)

from .bcos_losses import with_language_model_loss, with_sequence_loss, with_token_loss
from .bcos_model import BcosModelMixin
from .configuration_bcos_distilbert import BcosDistilBertConfig


class BcosDistilBertModel(BcosModelMixin, DistilBertModel):
    """B-cos DistilBERT encoder."""

    config_class = BcosDistilBertConfig
    _auto_class = "AutoModel"

    def __init__(self, config: BcosDistilBertConfig) -> None:
        super().__init__(config)
        self.make_bcos()


class BcosDistilBertForSequenceClassification(BcosModelMixin, DistilBertForSequenceClassification):
    """B-cos DistilBERT with two B-cos layers, and no ReLU between them, on the first token."""

    config_class = BcosDistilBertConfig
    _auto_class = "AutoModelForSequenceClassification"
    explanation_task = "sequence-classification"
    pools_first_token = True

    def __init__(self, config: BcosDistilBertConfig) -> None:
        super().__init__(config)
        self.make_bcos()

    def _forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        output = self.distilbert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            **kwargs,
        )
        pooled = self.dropout(self.pre_classifier(output.last_hidden_state[:, 0]))
        return SequenceClassifierOutput(
            logits=self.classifier(pooled), hidden_states=output.hidden_states, attentions=output.attentions
        )

    forward = with_sequence_loss(_forward)


class BcosDistilBertForTokenClassification(BcosModelMixin, DistilBertForTokenClassification):
    """B-cos DistilBERT with a B-cos classifier on every token."""

    config_class = BcosDistilBertConfig
    _auto_class = "AutoModelForTokenClassification"
    explanation_task = "token-classification"

    def __init__(self, config: BcosDistilBertConfig) -> None:
        super().__init__(config)
        self.make_bcos()

    forward = with_token_loss(DistilBertForTokenClassification.forward)


class BcosDistilBertForMaskedLM(BcosModelMixin, DistilBertForMaskedLM):
    """B-cos DistilBERT with a bias-free masked-language-model head tied to the word embeddings."""

    config_class = BcosDistilBertConfig
    _auto_class = "AutoModelForMaskedLM"
    explanation_task = "masked-lm"

    def __init__(self, config: BcosDistilBertConfig) -> None:
        super().__init__(config)
        self.make_bcos()

    forward = with_language_model_loss(DistilBertForMaskedLM.forward)


class BcosDistilBertForQuestionAnswering(BcosModelMixin, DistilBertForQuestionAnswering):
    """B-cos DistilBERT with a B-cos layer for the start and end logits of an answer span."""

    config_class = BcosDistilBertConfig
    _auto_class = "AutoModelForQuestionAnswering"
    explanation_task = "question-answering"

    def __init__(self, config: BcosDistilBertConfig) -> None:
        super().__init__(config)
        self.make_bcos()
