"""Configuration of B-cos BERT."""

from typing import Any, ClassVar

from transformers import BertConfig

from .configuration_bcos import BcosConfigMixin


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
        if position_type not in (None, "absolute"):
            raise ValueError(
                f"B-cos BERT supports absolute position embeddings only, got position_embedding_type={position_type!r}: "
                "transformers 5 no longer computes relative ones, so such a checkpoint would be silently wrong."
            )
        if self.is_decoder or self.add_cross_attention:
            raise ValueError("B-cos BERT is an encoder: `is_decoder` and `add_cross_attention` must be False.")
