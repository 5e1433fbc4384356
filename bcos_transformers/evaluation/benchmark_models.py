"""The models that a benchmark compares: one at a time in memory, and what has to agree between them."""

import copy
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bcos_transformers.evaluation.rows import Classifier
from bcos_transformers.explanations.inputs import has_prototypes

NO_LIMIT = 100_000  # tokenizers that know no longest text say 1e30
NOT_COMPUTED_WITH = ("_name_or_path", "transformers_version", "architectures", "auto_map")


@dataclass(frozen=True)
class ModelFacts:
    """What a benchmark has to know of a model that is not in memory.

    Attributes:
        weights: checksum of its class, configuration and parameters.
        vocabulary: checksum of its tokenizer's tokens and special tokens.
        labels: names of its classes.
        explains: whether it is a B-cos model.
        longest: tokens a text may have; None if there is no limit.
        special: how many special tokens its tokenizer adds to a text.
    """

    weights: str
    vocabulary: str
    labels: tuple[str, ...]
    explains: bool
    longest: int | None
    special: int


class BenchmarkModels:
    """Loads models when they are needed, and forgets them when the next one is.

    Args:
        given: name of each model, and where it is or model and tokenizer. The latter are used as they are; of the
            tokenizer a copy, since tokenizers remember how they last cut a text.
        batch_tokens: tokens a forward pass.
        progress: see `Classifier`.
    """

    def __init__(
        self,
        given: Mapping[str, str | tuple[PreTrainedModel, PreTrainedTokenizerBase]],
        batch_tokens: int,
        progress: bool | None,
    ) -> None:
        self._given, self._batch_tokens, self._progress = dict(given), batch_tokens, progress
        self._loaded: tuple[str, Classifier] | None = None
        self._facts: dict[str, ModelFacts] = {}

    @property
    def names(self) -> list[str]:
        """In the order in which they were given."""
        return list(self._given)

    @property
    def first(self) -> str:
        """The model that makes the pairs of the pointing game."""
        return next(iter(self._given))

    def classifier(self, name: str) -> Classifier:
        """A model that is in memory, loaded if it was not.

        Raises:
            OSError: there is no such model.
            ValueError: it has no classifier of one label a text, or none that was trained.
        """
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None  # frees the memory before the next model takes it
            given = self._given[name]
            if isinstance(given, str | os.PathLike):
                model, tokenizer = _load(str(given))
            else:
                model, tokenizer = given[0], copy.deepcopy(given[1])
            self._loaded = (name, Classifier(model, tokenizer, self._batch_tokens, self._progress))
        return self._loaded[1]

    def facts(self, name: str) -> ModelFacts:
        """Facts of a model, which is loaded when they are asked for the first time."""
        if name not in self._facts:
            classifier = self.classifier(name)
            model, tokenizer = classifier.model, classifier.tokenizer
            self._facts[name] = ModelFacts(
                weights=weights_fingerprint(model),
                vocabulary=_vocabulary_fingerprint(tokenizer),
                labels=tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels)),
                explains=hasattr(model, "explain") and not has_prototypes(model),
                longest=longest_text(model, tokenizer),
                special=tokenizer.num_special_tokens_to_add(),
            )
        return self._facts[name]

    def check(self, same_tokens: bool) -> None:
        """Refuses models that cannot be compared.

        Args:
            same_tokens: whether token ids that one tokenizer made are given to all models.

        Raises:
            OSError: a model is not there.
            ValueError: classes or, with `same_tokens`, tokenizers differ; or see `classifier`.
        """
        first = self.facts(self.first)
        for name in self.names[1:]:
            facts = self.facts(name)
            reordered = sorted(facts.labels) == sorted(first.labels) and facts.labels != first.labels
            if len(facts.labels) != len(first.labels) or reordered:
                raise ValueError(
                    f"Models of one benchmark need the same classes in the same order: {self.first!r} has "
                    f"{_shown(first.labels)}, {name!r} has {_shown(facts.labels)}."
                )
            if same_tokens and facts.vocabulary != first.vocabulary:
                raise ValueError(
                    f"The pointing game gives every model the same token ids, but the tokenizers of {self.first!r} and "
                    f"{name!r} differ. Leave it out (`pairs` 0), or measure the two models apart from each other."
                )


def longest_text(model: Any, tokenizer: Any) -> int | None:
    """Tokens that model and tokenizer permit a text to have; None if there is no limit."""
    limits = [getattr(model.config, "max_position_embeddings", None)]
    if (tokenizer.model_max_length or NO_LIMIT) < NO_LIMIT:
        limits.append(tokenizer.model_max_length)
    for module in model.modules():
        positions = getattr(module, "position_embeddings", None)
        if getattr(positions, "padding_idx", None) is not None:  # RoBERTa's begin after that of padding
            limits.append(positions.num_embeddings - positions.padding_idx - 1)
    return min((limit for limit in limits if limit is not None), default=None)


def weights_fingerprint(model: torch.nn.Module) -> str:
    """A checksum of a model's class, configuration and parameters."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in NOT_COMPUTED_WITH}
    described = json.dumps([type(model).__name__, config], sort_keys=True, default=str)
    checksum = zlib.crc32(described.encode())
    for name, tensor in sorted(model.state_dict().items()):
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), checksum)
    return f"{checksum:08x}"


def _vocabulary_fingerprint(tokenizer: Any) -> str:
    described = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_ids), tokenizer.mask_token_id]
    return f"{zlib.crc32(json.dumps(described).encode()):08x}"


def _load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, found = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True)
    if found["missing_keys"]:
        raise ValueError(
            f"{name!r} has no trained classifier: {', '.join(sorted(found['missing_keys'])[:4])} would be drawn at random. "
            "Fine-tune it first."
        )
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")  # accelerate launch --cpu
    if torch.cuda.is_available() and not on_cpu:
        model.cuda()
    return model.eval(), AutoTokenizer.from_pretrained(name)


def _shown(labels: Sequence[str]) -> str:
    return ", ".join(labels[:6]) + (f", … ({len(labels)})" if len(labels) > 6 else "")
