"""Targets and foils as people name them, and what they are called in explanations, task by task."""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bcos_transformers.modeling.bcos_targets import index_of_label

LANGUAGE_MODELS = ("masked-lm", "causal-lm")
ANSWER_PARTS = ("start", "end", "span")


def token_name(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as people read it, or as the tokenizer stores it where nothing would be seen."""
    return tokenizer.decode([token]).strip() or tokenizer.convert_ids_to_tokens(token)


@dataclass(frozen=True)
class Targets:
    """What to explain of a number of texts, for `model.explain`.

    Attributes:
        target: None, `"all"`, or class indices or token ids, or names of an answer's parts, the same for every text.
        per_text: `(texts, targets)`, where every text has its own; then `target` is None.
        several: whether explanations hold dicts by target, as they do where several targets were asked for.
    """

    target: Any
    per_text: torch.Tensor | None
    several: bool

    def of(self, texts: Sequence[int]) -> Any:
        """The target of these texts, by their index, as one batch."""
        if self.per_text is not None:
            return self.per_text[list(texts)]
        if isinstance(self.target, list) and isinstance(self.target[0], int):
            return torch.tensor(self.target).expand(len(texts), -1)
        return self.target


class TargetNames:
    """Reads targets and names them.

    Args:
        model: a B-cos model.
        tokenizer: its tokenizer, which knows the tokens that language models predict.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.task = model.explanation_task
        self.config = model.config
        self.tokenizer = tokenizer
        self._names: dict[int, str] = {}

    @property
    def every_output_by_default(self) -> bool:
        """Whether a target of None stands for all outputs: regression and multi-label classifiers."""
        kind = getattr(self.config, "problem_type", None)
        return self.task == "sequence-classification" and (
            kind in ("regression", "multi_label_classification") or self.config.num_labels == 1
        )

    def read(self, target: Any, texts: int | None) -> Targets:
        """The user's target: None, an index, a name, `"all"`, a list of those for every text, or a tensor `(texts, …)`.

        Raises:
            TypeError, ValueError: it is none of these, or does not fit the number of texts.
        """
        if torch.is_tensor(target) or type(target).__module__ == "numpy":
            given = torch.as_tensor(target)
            if (
                given.is_floating_point()
                or given.dtype == torch.bool
                or given.dim() not in (1, 2)
                or not given.numel()
            ):
                raise ValueError(
                    f"A tensor as `target` holds class indices of shape (texts,) or (texts, targets), got "
                    f"{given.dtype} of shape {tuple(given.shape)}."
                )
            if texts is not None and len(given) != texts:
                raise ValueError(f"`target` has {len(given)} rows for {texts} texts.")
            return Targets(None, given.long().reshape(len(given), -1), several=given.dim() == 2)
        if target is None or isinstance(target, str) and target == "all":
            several = target == "all" or (self.every_output_by_default and self.config.num_labels > 1)
            return Targets(target, None, several)
        several = isinstance(target, (list, tuple))
        if several and not target:
            raise ValueError("`target` is an empty list.")
        read = [self._one(t, "target") for t in (target if several else [target])]
        if len(set(read)) < len(read):
            raise ValueError(f"`target` names something twice: {target!r}.")
        return Targets(read, None, several)

    def read_contrast(self, contrast: Any) -> Any:
        """A foil as `model.explain` takes it; see there."""
        if self.task == "question-answering" or contrast is None or isinstance(contrast, str) and contrast == "mean":
            return contrast
        return self._one(contrast, "contrast")

    def contrast_name(self, contrast: Any) -> str | None:
        """What a read contrast is called."""
        if contrast is None or isinstance(contrast, str):
            return contrast
        return str(contrast) if self.task == "question-answering" else self.name(contrast)

    def name(self, target: int) -> str:
        """What a class, an output, a token or a part of an answer is called."""
        if self.task == "question-answering":
            return ANSWER_PARTS[target]
        if self.task not in LANGUAGE_MODELS:
            return str(self.config.id2label[target])
        if target not in self._names:
            self._names[target] = token_name(self.tokenizer, target)
        return self._names[target]

    def _one(self, target: Any, name: str) -> int | str:
        if isinstance(target, str):
            if self.task == "question-answering":
                if target not in ANSWER_PARTS:
                    raise ValueError(f"`{name}` must be one of {ANSWER_PARTS} or 'all', got {target!r}.")
                return target
            return self._token(target, name) if self.task in LANGUAGE_MODELS else self._label(target, name)
        if self.task != "question-answering" and isinstance(target, numbers.Integral) and not isinstance(target, bool):
            size = self.config.vocab_size if self.task in LANGUAGE_MODELS else self.config.num_labels
            if not 0 <= target < size:
                raise ValueError(f"`{name}` must lie in [0, {size}), got {target}.")
            return int(target)
        raise TypeError(
            f"`{name}` must be None, an index, a name, 'all', a list of those, or a tensor with a row a text, got "
            f"{target!r}."
        )

    def _label(self, label: str, name: str) -> int:
        label2id = index_of_label(self.config)
        if label not in label2id:
            raise ValueError(f"`{name}` {label!r} is not a label of this model: {', '.join(map(str, label2id))}.")
        return int(label2id[label])

    def _token(self, text: str, name: str) -> int:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            tokens = self.tokenizer.convert_ids_to_tokens(ids)
            raise ValueError(
                f"`{name}` {text!r} is not one token of this tokenizer but {tokens}. Name a single token (many tokenizers "
                "have words with a space in front as tokens of their own), or give a token id."
            )
        return int(ids[0])


def probabilities(model: Any, out: Any, mask: torch.Tensor) -> torch.Tensor | None:
    """The model's probability of each explained target, shaped like `out.target`; None for regression.

    As in transformers' pipelines: softmax over the classes, tokens or positions, sigmoid where every output stands for
    itself.

    Args:
        model: the B-cos model.
        out: its `BcosExplanation`.
        mask: `(batch, tokens)`, 1 for real tokens.
    """
    task, config = model.explanation_task, model.config
    target, logits = out.target.clamp_min(0), out.logits.float()
    if task == "question-answering":
        padding = ~mask.bool().to(logits.device)[..., None]
        each = logits.masked_fill(padding, -torch.inf).softmax(1)  # (batch, tokens, 2)
        values = torch.ones(target.shape, device=logits.device)
        for side in (0, 1):
            place = out.position[..., side].to(logits.device)
            found = each[..., side].gather(1, place.clamp_min(0))
            values = values * torch.where(place < 0, torch.ones_like(found), found)
        return values
    if task in LANGUAGE_MODELS:
        rows = torch.arange(len(logits), device=logits.device)
        logits = logits[rows, out.position.to(logits.device)]
    elif task == "token-classification":
        rows = torch.arange(len(logits), device=logits.device)[:, None]
        logits = logits[rows, out.position.clamp_min(0).to(logits.device)]
    else:
        kind = config.problem_type
        if kind == "regression" or (kind is None and config.num_labels == 1):
            return None
        if kind == "multi_label_classification" or config.num_labels == 1:
            return logits.sigmoid().gather(-1, target)
    return logits.softmax(-1).gather(-1, target)
