"""Configuration of B-cos Qwen3."""

from typing import ClassVar

from transformers import Qwen3Config

from .configuration_bcos import BcosConfigMixin


class BcosQwen3Config(BcosConfigMixin, Qwen3Config):
    """`Qwen3Config` with the B-cos fields of `BcosConfigMixin`.

    Raises:
        ValueError: an invalid B-cos field.
    """

    model_type = "bcos-qwen3"
    _auto_class = "AutoConfig"
    bcos_auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_bcos_qwen3.BcosQwen3Config",
        "AutoModel": "modeling_bcos_qwen3.BcosQwen3Model",
        "AutoModelForCausalLM": "modeling_bcos_qwen3.BcosQwen3ForCausalLM",
        "AutoModelForSequenceClassification": "modeling_bcos_qwen3.BcosQwen3ForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_bcos_qwen3.BcosQwen3ForTokenClassification",
    }
