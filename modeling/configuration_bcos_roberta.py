"""Configuration of B-cos RoBERTa."""

from typing import Any, ClassVar

from transformers import RobertaConfig

from .configuration_bcos import BcosConfigMixin, check_encoder


class BcosRobertaConfig(BcosConfigMixin, RobertaConfig):
    """`RobertaConfig` with the B-cos fields of `BcosConfigMixin`.

    Raises:
        ValueError: an invalid B-cos field, relative position embeddings, or a decoder with cross-attention.
    """

    model_type = "bcos-roberta"
    _auto_class = "AutoConfig"
    bcos_auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_bcos_roberta.BcosRobertaConfig",
        "AutoModel": "modeling_bcos_roberta.BcosRobertaModel",
        "AutoModelForSequenceClassification": "modeling_bcos_roberta.BcosRobertaForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_bcos_roberta.BcosRobertaForTokenClassification",
        "AutoModelForMaskedLM": "modeling_bcos_roberta.BcosRobertaForMaskedLM",
        "AutoModelForQuestionAnswering": "modeling_bcos_roberta.BcosRobertaForQuestionAnswering",
    }

    def __post_init__(self, **kwargs: Any) -> None:
        position_type = kwargs.get("position_embedding_type")
        super().__post_init__(**kwargs)
        check_encoder(self, "RoBERTa", position_type)
