"""Configuration of B-cos DistilBERT."""

from typing import ClassVar

from transformers import DistilBertConfig

from .configuration_bcos import BcosConfigMixin


class BcosDistilBertConfig(BcosConfigMixin, DistilBertConfig):
    """`DistilBertConfig` with the B-cos fields of `BcosConfigMixin`.

    Raises:
        ValueError: an invalid B-cos field.
    """

    model_type = "bcos-distilbert"
    _auto_class = "AutoConfig"
    bcos_auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_bcos_distilbert.BcosDistilBertConfig",
        "AutoModel": "modeling_bcos_distilbert.BcosDistilBertModel",
        "AutoModelForSequenceClassification": "modeling_bcos_distilbert.BcosDistilBertForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_bcos_distilbert.BcosDistilBertForTokenClassification",
        "AutoModelForMaskedLM": "modeling_bcos_distilbert.BcosDistilBertForMaskedLM",
        "AutoModelForQuestionAnswering": "modeling_bcos_distilbert.BcosDistilBertForQuestionAnswering",
    }
