"""Configuration of B-cos GPT-2."""

from typing import Any, ClassVar

from transformers import GPT2Config

from .configuration_bcos import BcosConfigMixin


class BcosGPT2Config(BcosConfigMixin, GPT2Config):
    """`GPT2Config` with the B-cos fields of `BcosConfigMixin`.

    Raises:
        ValueError: an invalid B-cos field, or cross-attention.
    """

    model_type = "bcos-gpt2"
    _auto_class = "AutoConfig"
    bcos_auto_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_bcos_gpt2.BcosGPT2Config",
        "AutoModel": "modeling_bcos_gpt2.BcosGPT2Model",
        "AutoModelForCausalLM": "modeling_bcos_gpt2.BcosGPT2LMHeadModel",
        "AutoModelForSequenceClassification": "modeling_bcos_gpt2.BcosGPT2ForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_bcos_gpt2.BcosGPT2ForTokenClassification",
    }

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.add_cross_attention:
            raise ValueError("B-cos GPT-2 explains its own input: `add_cross_attention` must be False.")
