"""What every B-cos model class shares: the swap at construction, saving with its code, and explanations."""

import logging
import os
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .bcos_conversion import make_bcos
from .bcos_explanation import BcosExplanationMixin
from .bcos_peft import BASE_NOT_SAVED, has_adapters, state_dict_without_adapters

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

        A model inside a `PeftModel` is saved without its adapters: the base that they are reloaded on. See
        `transformers.PreTrainedModel.save_pretrained` for the arguments.

        Raises:
            NotADirectoryError: `save_directory` is a file.
            ValueError: the configuration has become invalid; an adapter is merged into the weights; or an adapter that
                transformers manages (`add_adapter`) is to be saved before its base.
        """
        if os.path.isfile(save_directory):
            raise NotADirectoryError(f"A model is saved to a directory, but {str(save_directory)!r} is a file.")
        self.config.check_bcos_fields()
        saves_adapter = getattr(self, "_hf_peft_config_loaded", False)
        if saves_adapter and not self._base_is_saved():
            raise ValueError(BASE_NOT_SAVED)
        if not saves_adapter and has_adapters(self) and kwargs.get("state_dict") is None:
            kwargs["state_dict"] = state_dict_without_adapters(self)
        self.config.auto_map = dict(self.config.bcos_auto_map)
        name_pipeline(self)
        super().save_pretrained(save_directory, *args, **kwargs)
        if not saves_adapter:
            self._remember_where_saved(os.path.abspath(save_directory))

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Uploads the model with its code; see `transformers.PreTrainedModel.push_to_hub`."""
        before = (self.name_or_path, getattr(self, "_saved_to", None))
        try:
            pushed = super().push_to_hub(repo_id, *args, **kwargs)
        finally:
            self.name_or_path, self._saved_to = before  # on the way it was saved to a folder that is gone again
        if not getattr(self, "_hf_peft_config_loaded", False):
            self._remember_where_saved(getattr(getattr(pushed, "repo_url", None), "repo_id", None) or repo_id)
        return pushed

    def _remember_where_saved(self, place: str) -> None:
        """Adapters record `name_or_path` as their base: where this B-cos model can be found, once that is known."""
        if self.name_or_path in ("", getattr(self, "_saved_to", None)):
            self.name_or_path = self._saved_to = place

    def _base_is_saved(self) -> bool:
        return bool(self.name_or_path) or not has_adapters(self)

    @property
    def model_tags(self) -> list[str] | None:
        """Tags for model cards.

        The first that a `PeftModel` asks of its base when it is saved, before it writes anything: an adapter whose base
        was never saved could not be reloaded, so the question whether there are tags is answered by an error then.
        """
        tags = getattr(self, "_model_tags", None)
        return tags if self._base_is_saved() else _TagsOfUnsavedBase(tags or ())

    @model_tags.setter
    def model_tags(self, tags: list[str] | None) -> None:
        self._model_tags = tags

    def add_model_tags(self, tags: list[str] | str) -> None:
        """Adds tags for model cards."""
        tags = [tags] if isinstance(tags, str) else tags
        self._model_tags = list(dict.fromkeys([*(getattr(self, "_model_tags", None) or []), *tags]))


class _TagsOfUnsavedBase(list):
    """Tags of a model whose adapters must not be saved yet."""

    def __bool__(self) -> bool:
        raise ValueError(BASE_NOT_SAVED)


def name_pipeline(model: BcosModelMixin) -> None:
    """Enters the pipeline that explains into the configuration of a classifier, beside those of others."""
    # Not at the top: who loads a model need not load pipelines. The import is also why the code travels with the model.
    from .pipeline_bcos import TASK, BcosTextClassificationPipeline

    pipelines = dict(getattr(model.config, "custom_pipelines", None) or {})
    pipelines.pop(TASK, None)
    if model.explanation_task == "sequence-classification":
        implementation = f"pipeline_bcos.{BcosTextClassificationPipeline.__name__}"
        pipelines[TASK] = {"impl": implementation, "pt": ["AutoModelForSequenceClassification"], "type": "text"}
    if pipelines:
        model.config.custom_pipelines = pipelines
    elif hasattr(model.config, "custom_pipelines"):
        del model.config.custom_pipelines


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
