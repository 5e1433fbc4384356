"""Training texts as prototypes need them: read in chunks, with class, token ids and embedding."""

import hashlib
import inspect
import math
import operator
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bcos_transformers.modeling.bcos_eval_mode import evaluation_mode
from bcos_transformers.modeling.bcos_inputs import token_limit
from bcos_transformers.modeling.modeling_proto import ProtoForSequenceClassification
from bcos_transformers.modeling.proto_losses import class_of_labels

NO_LIMIT = 10**9  # tokenizers without a limit name one that is larger than this


@dataclass(frozen=True)
class TrainingText:
    """One text of the training set.

    Attributes:
        index: its row.
        text: as in the data set.
        label: the class, or the value of a regression.
        group: the class, or the bin of a regression.
        input_ids: its tokens, special ones included, without padding.
        token_type_ids: of each token; empty where there are none.
    """

    index: int
    text: str
    label: int | float
    group: int
    input_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...]

    @property
    def key(self) -> bytes:
        """16 bytes that are the same for texts of the same tokens and class."""
        return hashlib.blake2b(array("q", (self.group, *self.input_ids)).tobytes(), digest_size=16).digest()


class TrainingTexts:
    """A data set, read through a model's configuration and a tokenizer.

    Args:
        model: whose prototypes are to be texts of the data set.
        dataset: a `datasets.Dataset`, a list of dicts, or anything else with a length whose rows are mappings.
        tokenizer: the model's.
        text_column: where the texts are.
        label_column: where the class indices are; for a regression, the values.
        max_length: tokens a text may have; at most what model and tokenizer permit, which is the default.
        batch_size: texts of a forward pass.

    Raises:
        TypeError: a model without prototypes, or a data set without a length.
        ValueError: `max_length` or `batch_size` below 1, or an empty data set.
    """

    def __init__(
        self,
        model: ProtoForSequenceClassification,
        dataset: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        text_column: str = "text",
        label_column: str = "label",
        max_length: int | None = None,
        batch_size: int = 32,
    ) -> None:
        check_model(model)
        if isinstance(dataset, Mapping):
            raise TypeError(
                f"`dataset` must be one data set, got a mapping of {list(dataset)[:5]}: choose one of them."
            )
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(
                f"`dataset` must have a length and rows by index, since prototypes are named by them, got "
                f"{type(dataset).__name__}."
            )
        for name, value in (("max_length", 1 if max_length is None else max_length), ("batch_size", batch_size)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
        if len(dataset) == 0:
            raise ValueError("`dataset` has no rows, so there is no text that could be a prototype.")
        self.model, self.dataset, self.tokenizer, self.batch_size = model, dataset, tokenizer, batch_size
        self.text_column, self.label_column = text_column, label_column
        limits = (max_length, position_limit(model), tokenizer.model_max_length)
        self.max_length = min((n for n in limits if n is not None and n < NO_LIMIT), default=None)
        bounds = model.config.regression_boundaries
        self._bounds = None if bounds is None else torch.tensor(bounds, dtype=torch.float64)
        self._takes_types = "token_type_ids" in inspect.signature(model.backbone.forward).parameters

    def __len__(self) -> int:
        return len(self.dataset)

    def check(self) -> None:
        """Refuses, before anything is computed, a data set that cannot give every prototype a text of its own.

        Raises:
            ValueError: a missing column, labels outside the range, a class without texts or with fewer distinct texts
                than prototypes.
        """
        config = self.model.config
        distinct: list[set[bytes]] = [set() for _ in range(config.num_classes)]
        rows = [0] * config.num_classes
        for begin, texts, labels in self._read():
            groups = self._groups(labels, begin)
            for group in groups:
                rows[group] += 1
            # Tokenized only until every class has enough of them.
            wanted = [i for i, group in enumerate(groups) if len(distinct[group]) < config.prototypes_per_class]
            some = [(begin + i, texts[i], labels[i], groups[i]) for i in wanted]
            for text in self._encoded(some):
                distinct[text.group].add(text.key)
        self._refuse_lacking(rows, [len(keys) for keys in distinct])

    def chunks(self) -> Iterator[list[TrainingText]]:
        """All texts, in the order of the data set, a few batches at a time."""
        for begin, texts, labels in self._read():
            groups = self._groups(labels, begin)
            indices = range(begin, begin + len(texts))
            yield self._encoded(list(zip(indices, texts, labels, groups, strict=True)))

    def labels(self) -> list[int]:
        """The class (or bin) of every row."""
        return [group for begin, _, labels in self._read() for group in self._groups(labels, begin)]

    def take(self, indices: Sequence[int]) -> list[TrainingText]:
        """The texts of these rows."""
        found = []
        for index in map(int, indices):
            (text,), (label,) = self._columns([self.dataset[index]], index)
            found.append((index, text, label, self._groups([label], index)[0]))
        return self._encoded(found)

    @torch.no_grad()
    def embed(self, texts: Sequence[TrainingText]) -> torch.Tensor:
        """`(texts, hidden)` embeddings of one batch in at least float32, in evaluation mode and without autocast."""
        length = max(len(text.input_ids) for text in texts)
        config, tokenizer = self.model.config, self.tokenizer
        padding = next((t for t in (config.pad_token_id, tokenizer.pad_token_id) if t is not None), 0)
        inputs = {
            "input_ids": [[*text.input_ids, *[padding] * (length - len(text.input_ids))] for text in texts],
            "attention_mask": [[int(i < len(text.input_ids)) for i in range(length)] for text in texts],
        }
        if self._takes_types and all(text.token_type_ids for text in texts):
            inputs["token_type_ids"] = [
                [*text.token_type_ids, *[0] * (length - len(text.input_ids))] for text in texts
            ]
        device = self.model.device
        batch = {name: torch.tensor(rows, device=device) for name, rows in inputs.items()}
        # Not the model's own forward pass: after a training in half precision, that one is under autocast for good.
        with evaluation_mode(self.model), torch.autocast(device.type, enabled=False):
            return self.model.embed(**batch)[0]

    def embed_each(self, texts: Sequence[TrainingText]) -> torch.Tensor:
        """`(texts, hidden)`, every text on its own, so that an embedding does not depend on what is beside it."""
        return torch.cat([self.embed([text]) for text in texts])

    def _read(self) -> Iterator[tuple[int, list[str], list[Any]]]:
        size = 32 * self.batch_size
        for begin in range(0, len(self), size):
            end = min(begin + size, len(self))
            try:
                rows = self.dataset[begin:end]
            except TypeError:  # data sets that know single rows only
                rows = [self.dataset[i] for i in range(begin, end)]
            yield begin, *self._columns(rows, begin)

    def _columns(self, rows: Any, begin: int) -> tuple[list[str], list[Any]]:
        found = []
        for column in (self.text_column, self.label_column):
            known = rows if isinstance(rows, Mapping) else rows[0]
            if column not in known:
                raise ValueError(
                    f"The data set has no column {column!r}, only {', '.join(map(repr, known))}. Name its columns with "
                    "`text_column` and `label_column`."
                )
            found.append(list(rows[column]) if isinstance(rows, Mapping) else [row[column] for row in rows])
        for i, text in enumerate(found[0]):
            if not isinstance(text, str):
                raise ValueError(f"Column {self.text_column!r} must hold texts, got {text!r} in row {begin + i}.")
        return found[0], [self._label(label, begin + i) for i, label in enumerate(found[1])]

    def _label(self, label: Any, index: int) -> int | float:
        config = self.model.config
        if config.is_regression:
            try:
                value = float(label)
            except (TypeError, ValueError):
                value = math.nan
            if not math.isfinite(value):
                raise ValueError(f"Labels of a regression must be finite numbers, got {label!r} in row {index}.")
            return value
        try:
            value = operator.index(label)
        except TypeError:
            value = -1
        if not 0 <= value < config.num_labels:
            raise ValueError(
                f"Labels must be class indices from 0 to {config.num_labels - 1}, got {label!r} in row {index}."
            )
        return value

    def _groups(self, labels: list[Any], begin: int) -> list[int]:
        if not self.model.config.is_regression:
            return labels
        if self._bounds is None:
            return [0] * len(labels)
        return class_of_labels(torch.tensor(labels, dtype=torch.float64), self._bounds).tolist()

    def _encoded(self, rows: list[tuple[int, str, Any, int]]) -> list[TrainingText]:
        if not rows:
            return []
        encoded = self.tokenizer(
            [row[1] for row in rows],
            truncation=self.max_length is not None,
            max_length=self.max_length,
            return_attention_mask=False,
            verbose=False,
        )
        ids, types = encoded["input_ids"], encoded.get("token_type_ids") or [()] * len(rows)
        for row, tokens in zip(rows, ids, strict=True):
            if not tokens:
                raise ValueError(f"The text of row {row[0]} ({row[1]!r}) has no tokens. Leave it out.")
        return [
            TrainingText(*row, tuple(tokens), tuple(kinds))
            for row, tokens, kinds in zip(rows, ids, types, strict=True)
        ]

    def _refuse_lacking(self, rows: list[int], distinct: list[int]) -> None:
        config = self.model.config
        missing = [group for group, count in enumerate(rows) if count == 0]
        if missing:
            raise ValueError(
                f"The data set of {len(self)} texts has none of {', '.join(map(self._group_name, missing))}, so the "
                "prototypes of that have nothing to be. Give a data set with texts of everything there are prototypes of."
            )
        for group, count in enumerate(distinct):
            if count < config.prototypes_per_class:
                raise ValueError(
                    f"The data set has {count} distinct texts of {self._group_name(group)}, fewer than its "
                    f"{config.prototypes_per_class} prototypes, each of which needs a text of its own. Give more texts, or "
                    "build the model with a smaller `num_prototypes`."
                )

    def _group_name(self, group: int) -> str:
        config = self.model.config
        if not config.is_regression:
            return f"class {group} ({config.id2label[group]!r})"
        bounds = [-math.inf, *(config.regression_boundaries or []), math.inf]
        return f"bin {group} (values from {bounds[group]:g} to {bounds[group + 1]:g})"


def position_limit(model: ProtoForSequenceClassification) -> int | None:
    """How many tokens the encoder takes, if that is known."""
    return token_limit(model) or getattr(model.config.backbone_config, "max_position_embeddings", None)


def check_model(model: Any) -> None:
    """Refuses a model without prototypes.

    Raises:
        TypeError: it is of another class.
    """
    if hasattr(model, "get_base_model"):
        raise TypeError(
            f"{type(model).__name__} holds adapters, of which prototypes are no part: merge them first (peft: "
            "`model = model.merge_and_unload()`)."
        )
    # By name: a model whose code came from the Hub has a class of its own.
    if type(model).__name__ != ProtoForSequenceClassification.__name__ and not isinstance(
        model, ProtoForSequenceClassification
    ):
        raise TypeError(
            f"A ProtoForSequenceClassification is needed, got {type(model).__name__}: "
            "`bcos_transformers.from_pretrained_proto` makes one of any encoder."
        )
