"""The explainer's interface over post-hoc attribution methods, for conventional models too."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bcos_transformers.evaluation.baselines import AttributionMethod, build_method
from bcos_transformers.explanations.explainer import BcosExplainer
from bcos_transformers.modeling.bcos_eval_mode import evaluation_mode
from bcos_transformers.modeling.bcos_explanation import BcosExplanation
from bcos_transformers.modeling.bcos_targets import class_indices, index_of_label

TASK = "sequence-classification"
EXPLAINER_OPTIONS = ("batch_size", "max_length", "stride", "granularity", "chunk_size", "progress")
LOADING = ("revision", "token", "cache_dir", "dtype", "device_map")


class PostHocExplainer(BcosExplainer):
    """Explains a sequence classifier word by word by a post-hoc method: `BcosExplainer` for methods to compare it with.

    Called like `BcosExplainer`, but without `contrast` and `position`. What it returns shows the same things; `residual`
    is the logit minus the sum of the scores. For methods that compare with a reference input (integrated gradients,
    Shapley values, …) it therefore contains the logit of the reference, and for methods whose scores are not meant to
    sum to anything (saliency, attention, …) it means nothing. Model and tokenizer are not changed. Not for several
    threads at once.

    Args:
        model: a sequence classifier, B-cos or conventional.
        tokenizer: its tokenizer.
        method: one of `bcos_transformers.evaluation.baselines.METHODS`.
        **options: of `BcosExplainer` (`batch_size`, `max_length`, `stride`, `granularity`, `progress`) and of the method
            (`seed`, `n_steps`, …). Random numbers are derived from the seed and the text's tokens.

    Attributes:
        method: the `AttributionMethod`.

    Raises:
        TypeError: no sequence classifier, or an option that neither has.
        ValueError: an unknown method, or an option out of range.

    Example:
        >>> explainer = PostHocExplainer(model, tokenizer, method="occlusion")
        >>> explainer("a gripping, funny film").top(2)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        method: str = "integrated_gradients",
        **options: Any,
    ) -> None:
        own = {name: options.pop(name) for name in EXPLAINER_OPTIONS if name in options}
        _check_task(model)
        self.method = build_method(method, model, tokenizer, **options)
        given = own.pop("max_length", None)
        super().__init__(_PostHocModel(self.method), tokenizer, max_length=given, **own)
        limit = _positions(model)
        if limit is not None:
            self.max_length = min(self.max_length, limit)

    @classmethod
    def from_pretrained(cls, name_or_path: str, *, device: Any = None, **options: Any) -> "PostHocExplainer":
        """Loads a saved sequence classifier, B-cos or conventional, and its tokenizer.

        Args:
            name_or_path: directory or Hub id.
            device: where to put it.
            **options: of `PostHocExplainer`, and `revision`, `token`, `cache_dir` and `dtype` for loading.
        """
        loading = {name: options.pop(name) for name in LOADING if name in options}
        model = AutoModelForSequenceClassification.from_pretrained(name_or_path, **loading)
        files = {name: value for name, value in loading.items() if name not in ("dtype", "device_map")}
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **files)
        return cls(model if device is None else model.to(device), tokenizer, **options)


class _PostHocModel:
    """A model as the explainer sees it, whose `explain` is a post-hoc method; the rest is the model's own."""

    explanation_task = TASK

    def __init__(self, method: AttributionMethod) -> None:
        self._method, self._model = method, method.model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._model(*args, **kwargs)

    def modules(self) -> Iterator[nn.Module]:
        return self._model.modules()

    def explain(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        *,
        target: Any = None,
        contrast: Any = None,
        position: Any = None,
        chunk_size: int = 16,
        allow_large: bool = False,
        **inputs: Any,
    ) -> BcosExplanation:
        """As `explain` of B-cos models, for sequence classification without contrast."""
        if contrast is not None or position is not None:
            raise ValueError(
                f"Post-hoc methods explain the logit of a class; leave `contrast` and `position` out, got contrast={contrast!r}, "
                f"position={position!r}."
            )
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        with torch.no_grad(), evaluation_mode(self._model):
            logits = self._model(**batch).logits.detach()
        config = self._model.config
        kind = getattr(config, "problem_type", None)
        if target is None and (kind in ("regression", "multi_label_classification") or config.num_labels == 1):
            target = "all"
        chosen = class_indices(target, logits, "target", index_of_label(config))
        keys = [_key(ids[mask != 0].tolist()) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        scores = torch.stack(
            [self._method.attribute(batch, column, keys).scores for column in chosen.unbind(1)], dim=1
        )
        values = logits.gather(-1, chosen).double().cpu()
        return BcosExplanation(logits, scores, chosen, values, values - scores.sum(-1))


def _key(ids: list[int]) -> int:
    """A number that a text has whichever batch it is in."""
    return int.from_bytes(hashlib.sha256(repr(ids).encode()).digest()[:8], "big")


def _check_task(model: Any) -> None:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    task = getattr(
        inner, "explanation_task", TASK if type(inner).__name__.endswith("ForSequenceClassification") else None
    )
    if task != TASK:
        raise TypeError(
            f"Post-hoc methods explain sequence classifiers, got {type(inner).__name__}. Load the model with "
            "AutoModelForSequenceClassification; B-cos models of other tasks are explained by BcosExplainer."
        )


def _positions(model: Any) -> int | None:
    """How many tokens a model reads whose positions begin after that of padding (RoBERTa); None for others."""
    for module in model.modules():
        positions = getattr(module, "position_embeddings", None)
        if isinstance(positions, nn.Embedding) and positions.padding_idx is not None:
            return positions.num_embeddings - positions.padding_idx - 1
    return None
