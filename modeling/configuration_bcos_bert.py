"""Configuration of B-cos BERT."""

from typing import Any, ClassVar

from transformers import BertConfig

from .configuration_bcos import BcosConfigMixin, check_encoder


class BcosBertConfig(BcosConfigMixin, BertConfig):
    """`BertConfig` with the B-cos fields of `BcosConfigMixin`.

    Raises:
        ValueError: an invalid B-cos field, relative position embeddings, or a decoder with cross-attention.

    Example:
        >>> BcosBertConfig(num_hidden_layers=2, b_per_layer=[1.25, 1.5]).b_of_layer(0)
        1.25
    """

    model_type = "bcos-bert"
    _auto_class = "AutoConfig"
    bcos_auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_bcos_bert.BcosBertConfig",
        "AutoModel": "modeling_bcos_bert.BcosBertModel",
        "AutoModelForSequenceClassification": "modeling_bcos_bert.BcosBertForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_bcos_bert.BcosBertForTokenClassification",
        "AutoModelForMaskedLM": "modeling_bcos_bert.BcosBertForMaskedLM",
        "AutoModelForQuestionAnswering": "modeling_bcos_bert.BcosBertForQuestionAnswering",
    }

    def __post_init__(self, **kwargs: Any) -> None:
        position_type = kwargs.get("position_embedding_type")
        super().__post_init__(**kwargs)
        check_encoder(self, "BERT", position_type)
