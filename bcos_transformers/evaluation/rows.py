"""What metrics work on: token ids of texts, and the probabilities a classifier gives to changed versions of them."""

import inspect
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from bcos_transformers.data.masking import REPLACEMENTS, maskable_tokens
from bcos_transformers.modeling.bcos_eval_mode import evaluation_mode

MIN_BATCH = 8  # texts, before a batch is cut off for its padding
MAX_PADDING = 0.1  # of a batch's tokens


@dataclass(frozen=True)
class Row:
    """One tokenized text.

    Attributes:
        input_ids: token ids, special tokens included, without padding.
        maskable: which of them are no special tokens.
        token_type_ids: of each token; empty where there are none.
    """

    input_ids: tuple[int, ...]
    maskable: tuple[bool, ...]
    token_type_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def positions(self) -> list[int]:
        """Where the tokens stand that are no special ones."""
        return [i for i, keep in enumerate(self.maskable) if keep]

    @property
    def key(self) -> int:
        """A number that depends on the token ids alone, to seed what is drawn for this text."""
        return zlib.crc32(",".join(map(str, self.input_ids)).encode())

    def generator(self, seed: int) -> torch.Generator:
        """For what is drawn for this text: depends on `seed` and the token ids alone."""
        return torch.Generator().manual_seed((seed + self.key) % 2**63)


@dataclass(frozen=True)
class ChangedRow:
    """A text some of whose tokens are hidden.

    Attributes:
        row: the text.
        hidden: positions of the hidden tokens.
    """

    row: Row
    hidden: frozenset[int] = frozenset()


def rows_of(
    tokenizer: Any, input_ids: Sequence[Sequence[int]], token_type_ids: Sequence[Sequence[int]] = ()
) -> list[Row]:
    """Token ids as rows.

    Raises:
        ValueError: a text has no token, or none that is not a special token.
    """
    rows = []
    for i, ids in enumerate(input_ids):
        maskable = maskable_tokens(tokenizer, torch.tensor([list(ids)], dtype=torch.long))[0].tolist()
        if not any(maskable):
            raise ValueError(
                f"Text {i} has no token that is not a special one ({len(ids)} tokens in all), so there is nothing to "
                "attribute a prediction to. Leave it out."
            )
        types = tuple(token_type_ids[i]) if token_type_ids else ()
        rows.append(Row(tuple(ids), tuple(maskable), types))
    return rows


def encode_rows(tokenizer: Any, texts: Sequence[Any], max_length: int | None = None) -> list[Row]:
    """Texts, or pairs of them, as rows, cut to `max_length` tokens.

    Raises:
        ValueError: see `rows_of`.
    """
    if not texts:
        return []
    pairs = [text if isinstance(text, tuple) else (text,) for text in texts]
    rows = []
    for pair in pairs:
        encoded = tokenizer(*pair, truncation=max_length is not None, max_length=max_length, verbose=False)
        rows.append((encoded["input_ids"], encoded.get("token_type_ids") or ()))
    types = [kinds for _, kinds in rows] if all(kinds for _, kinds in rows) else ()
    return rows_of(tokenizer, [ids for ids, _ in rows], types)


class Classifier:
    """Probabilities of a sequence classifier for texts some of whose tokens are hidden.

    Rows are computed in batches of similar length; the model comes out as it was, in the mode it was in.

    Args:
        model: a sequence classifier of two labels or more, B-cos or conventional.
        tokenizer: its tokenizer.
        batch_tokens: how many tokens, padding included, go into one forward pass.
        progress: show a progress bar; None shows one in terminals.

    Raises:
        ValueError: the model is no classifier of one label a text.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_tokens: int = 4096, progress: bool | None = None) -> None:
        check_classifier(model)
        self.model, self.tokenizer, self.batch_tokens, self.progress = model, tokenizer, batch_tokens, progress
        self.takes_types = "token_type_ids" in inspect.signature(model.forward).parameters

    def probabilities(
        self, changed: Sequence[ChangedRow], replacement: str | None = None, description: str = "Forward passes"
    ) -> torch.Tensor:
        """Softmax over the labels, `(rows, labels)` in float64.

        Args:
            changed: texts and what is hidden of each. The same text with the same tokens hidden is computed once.
            replacement: `"mask"`: a hidden token becomes the mask token; `"attention"`: it is taken out of the attention
                mask, its position staying empty (a decoder's head still reads the last token's own embedding); None is `"mask"`, for which texts without hidden tokens need no mask token.
            description: of the progress bar.

        Raises:
            ValueError: an unknown replacement, no mask token, or a logit that is not finite.
        """
        if replacement is not None or any(one.hidden for one in changed):
            check_replacement(self.tokenizer, replacement or "mask")
        unique = list(dict.fromkeys(changed))
        order = sorted(unique, key=lambda one: len(one.row))
        found: dict[ChangedRow, torch.Tensor] = {}
        disable = True if self.progress is False else None if len(order) > 64 or self.progress else True
        with tqdm(total=len(order), desc=description, unit="text", disable=disable, leave=False) as bar:
            for batch in self.batches(order):
                logits = self.logits(self.inputs(batch, replacement or "mask"))
                found.update(zip(batch, logits.softmax(-1), strict=True))
                bar.update(len(batch))
        return torch.stack([found[one] for one in changed]) if changed else torch.zeros(0, 0, dtype=torch.float64)

    def logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits of one batch in float64, on the CPU."""
        with torch.inference_mode(), evaluation_mode(self.model):
            logits = self.model(**inputs).logits.double().cpu()
        if not torch.isfinite(logits).all():
            raise ValueError(
                f"{type(self.model).__name__} gives logits that are NaN or infinite ({self.model.dtype})."
            )
        return logits

    def inputs(self, batch: Sequence[ChangedRow], replacement: str = "mask") -> dict[str, torch.Tensor]:
        """The rows as one batch, padded on the right."""
        length = max(len(one.row) for one in batch)
        padding = next((t for t in (self.model.config.pad_token_id, self.tokenizer.pad_token_id) if t is not None), 0)
        ids = torch.full((len(batch), length), padding)
        mask = torch.zeros(len(batch), length, dtype=torch.long)
        types = torch.zeros(len(batch), length, dtype=torch.long)
        for i, one in enumerate(batch):
            size = len(one.row)
            ids[i, :size] = torch.tensor(one.row.input_ids)
            mask[i, :size] = 1
            types[i, : len(one.row.token_type_ids)] = torch.tensor(one.row.token_type_ids, dtype=torch.long)
            if one.hidden:
                (mask if replacement == "attention" else ids)[i, sorted(one.hidden)] = (
                    0 if replacement == "attention" else self.tokenizer.mask_token_id
                )
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.takes_types and any(one.row.token_type_ids for one in batch):
            inputs["token_type_ids"] = types
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}

    def batches(self, order: Sequence[ChangedRow]) -> Iterator[list[ChangedRow]]:
        """Splits rows that are sorted by length into batches of at most `batch_tokens` tokens, with little padding."""
        batch: list[ChangedRow] = []
        tokens = 0
        # Decoder classifiers without a padding token would not know where a text ends.
        single = self.model.config.pad_token_id is None
        for one in order:
            padded = (len(batch) + 1) * len(one.row)
            wasteful = len(batch) >= MIN_BATCH and padded > (1 + MAX_PADDING) * (tokens + len(one.row))
            if batch and (single or padded > self.batch_tokens or wasteful):
                yield batch
                batch, tokens = [], 0
            batch.append(one)
            tokens += len(one.row)
        if batch:
            yield batch


def check_classifier(model: Any) -> None:
    """Refuses models without a probability of one label.

    Raises:
        ValueError: a regression, a multi-label or a single-output model.
    """
    config = model.config
    kind = getattr(config, "problem_type", None)
    if getattr(config, "num_labels", 1) < 2 or kind in ("regression", "multi_label_classification"):
        raise ValueError(
            f"Metrics of the predicted probability need a classifier with one label a text, got {type(model).__name__} "
            f"with num_labels={getattr(config, 'num_labels', None)}, problem_type={kind!r}."
        )


def check_replacement(tokenizer: Any, replacement: str) -> None:
    """Refuses what cannot hide a token.

    Raises:
        ValueError: an unknown replacement, or `"mask"` without a mask token.
    """
    if replacement not in REPLACEMENTS:
        raise ValueError(f"`replacement` must be one of {REPLACEMENTS}, got {replacement!r}.")
    if replacement == "mask" and tokenizer.mask_token_id is None:
        raise ValueError(f"{type(tokenizer).__name__} has no mask token: use replacement='attention'.")
