"""What every B-cos model class shares: the swap at construction, saving with its code, and explanations."""

import logging
import os
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .bcos_conversion import make_bcos
from .bcos_explanation import BcosExplanationMixin

logger = logging.getLogger(__name__)


class BcosModelMixin(BcosExplanationMixin):
    """Put in front of a transformers model class; its `__init__` calls the parent's and then `self.make_bcos()`."""

    # Biases of conventional checkpoints are dropped by design; `from_pretrained_bcos` reports them.
    _keys_to_ignore_on_load_unexpected = [r"(^|\.)bias$"]

    def make_bcos(self) -> None:
        """Swaps the layers in place and finishes the initialisation as `post_init` does."""
        self.config.check_bcos_fields()
        make_bcos(self, self.config)
        self.post_init()

    def set_input_embeddings(self, value: nn.Module) -> None:
        super().set_input_embeddings(value)
        make_bcos(self, self.config)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        super().set_output_embeddings(new_embeddings)
        make_bcos(self, self.config)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Saves weights, configuration and the code that loads them without this package (`auto_map`).

        See `transformers.PreTrainedModel.save_pretrained` for the arguments.

        Raises:
            NotADirectoryError: `save_directory` is a file.
            ValueError: the configuration has become invalid.
        """
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"A model is saved to a directory, but {str(save_directory)!r} is a file.")
        self.config.check_bcos_fields()
        self.config.auto_map = dict(self.config.bcos_auto_map)
        super().save_pretrained(save_directory, *args, **kwargs)


def init_head_around(model: PreTrainedModel, base: type[PreTrainedModel], config) -> None:
    """Begins the `__init__` of a head whose parent would build its base model by `AutoModel`.

    `AutoModel` does not know the configuration where the code comes from the Hub.
    """
    PreTrainedModel.__init__(model, config)
    model.num_labels = config.num_labels
    setattr(model, model.base_model_prefix, base(config))


def classifier_dropout(config) -> float:
    """The dropout of a decoder's token classifier, found as transformers finds it."""
    for name in ("classifier_dropout", "hidden_dropout"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    return 0.1
