"""Configuration of B-cos ModernBERT."""

from typing import ClassVar

from transformers import ModernBertConfig

from .configuration_bcos import BcosConfigMixin


class BcosModernBertConfig(BcosConfigMixin, ModernBertConfig):
    """`ModernBertConfig` with the B-cos fields of `BcosConfigMixin`.

    The switches for biases (`norm_bias`, `mlp_bias`, …) have no effect: there are none, `qk_bias` apart.

    Raises:
        ValueError: an invalid B-cos field.
    """

    model_type = "bcos-modernbert"
    _auto_class = "AutoConfig"
    bcos_auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_bcos_modernbert.BcosModernBertConfig",
        "AutoModel": "modeling_bcos_modernbert.BcosModernBertModel",
        "AutoModelForSequenceClassification": "modeling_bcos_modernbert.BcosModernBertForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_bcos_modernbert.BcosModernBertForTokenClassification",
        "AutoModelForMaskedLM": "modeling_bcos_modernbert.BcosModernBertForMaskedLM",
        "AutoModelForQuestionAnswering": "modeling_bcos_modernbert.BcosModernBertForQuestionAnswering",
    }
