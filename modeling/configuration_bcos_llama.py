"""Configuration of B-cos Llama."""

from typing import ClassVar

from transformers import LlamaConfig

from .configuration_bcos import BcosConfigMixin


class BcosLlamaConfig(BcosConfigMixin, LlamaConfig):
    """`LlamaConfig` with the B-cos fields of `BcosConfigMixin`.

    Raises:
        ValueError: an invalid B-cos field.
    """

    model_type = "bcos-llama"
    _auto_class = "AutoConfig"
    bcos_auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_bcos_llama.BcosLlamaConfig",
        "AutoModel": "modeling_bcos_llama.BcosLlamaModel",
        "AutoModelForCausalLM": "modeling_bcos_llama.BcosLlamaForCausalLM",
        "AutoModelForSequenceClassification": "modeling_bcos_llama.BcosLlamaForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_bcos_llama.BcosLlamaForTokenClassification",
    }
