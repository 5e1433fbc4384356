"""B-cos GPT-2: transformers' GPT-2 classes with their layers swapped in place (arXiv 2502.12992)."""

from transformers.models.gpt2.modeling_gpt2 import (
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
)

from .bcos_generation import BcosCausalLMMixin
from .bcos_losses import with_next_token_loss, with_sequence_loss, with_token_loss
from .bcos_model import BcosModelMixin
from .configuration_bcos_gpt2 import BcosGPT2Config


class BcosGPT2Model(BcosModelMixin, GPT2Model):
    """B-cos GPT-2 decoder."""

    config_class = BcosGPT2Config
    _auto_class = "AutoModel"

    def __init__(self, config: BcosGPT2Config) -> None:
        super().__init__(config)
        self.make_bcos()


class BcosGPT2LMHeadModel(BcosCausalLMMixin, GPT2LMHeadModel):
    """B-cos GPT-2 with a language-model head tied to the word embeddings."""

    config_class = BcosGPT2Config
    _auto_class = "AutoModelForCausalLM"

    def __init__(self, config: BcosGPT2Config) -> None:
        super().__init__(config)
        self.make_bcos()

    forward = with_next_token_loss(GPT2LMHeadModel.forward)


class BcosGPT2ForSequenceClassification(BcosModelMixin, GPT2ForSequenceClassification):
    """B-cos GPT-2 with a B-cos classifier on the last token that is not padding."""

    config_class = BcosGPT2Config
    _auto_class = "AutoModelForSequenceClassification"
    explanation_task = "sequence-classification"
    pools_last_token = True

    def __init__(self, config: BcosGPT2Config) -> None:
        super().__init__(config)
        self.make_bcos()

    forward = with_sequence_loss(GPT2ForSequenceClassification.forward)


class BcosGPT2ForTokenClassification(BcosModelMixin, GPT2ForTokenClassification):
    """B-cos GPT-2 with a B-cos classifier on every token."""

    config_class = BcosGPT2Config
    _auto_class = "AutoModelForTokenClassification"
    explanation_task = "token-classification"

    def __init__(self, config: BcosGPT2Config) -> None:
        super().__init__(config)
        self.make_bcos()

    forward = with_token_loss(GPT2ForTokenClassification.forward)
