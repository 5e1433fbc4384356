"""From texts to token ids that know where in the text they come from, cut or split into windows where they are too long."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bcos_transformers.modeling.bcos_text_units import tokens_as_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedText:
    """A text, or a window of it, as the model reads it.

    Attributes:
        texts: the text, or the two of a pair.
        input_ids: token ids, special tokens included.
        token_type_ids: of each token; empty where the model takes none.
        tokens: the tokens as the tokenizer names them.
        offsets: characters `[start, end)` of each token in its text.
        word_ids: the tokenizer's word of each token.
        segments: which text each token is of; None for special tokens.
        has_words: whether words are known; otherwise each token stands for itself.
        truncated: whether tokens were left out.
        columns: where each token stands in the whole text, for windows.
    """

    texts: tuple[str, ...]
    input_ids: list[int]
    token_type_ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]
    segments: list[int | None]
    has_words: bool = True
    truncated: bool = False
    columns: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)

    def at(self, columns: Sequence[int], truncated: bool = False) -> "EncodedText":
        """The same text with only the tokens in `columns`."""
        per_token = ("input_ids", "token_type_ids", "tokens", "offsets", "word_ids", "segments")
        values = {name: [getattr(self, name)[i] for i in columns] for name in per_token if getattr(self, name)}
        return replace(self, **values, truncated=truncated, columns=list(columns))


class TextEncoder:
    """Encodes texts with a user's tokenizer, which it leaves as it is.

    Args:
        tokenizer: the tokenizer; one without offsets works too, token by token.
        uses_types: whether the model takes `token_type_ids`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, uses_types: bool) -> None:
        self.tokenizer = tokenizer
        self.uses_types = uses_types
        self._said: set[str] = set()

    def texts(self, items: Sequence[Any], split_into_words: bool = False) -> list[EncodedText]:
        """Encodes strings, pairs of strings, or (`split_into_words`) lists of words, without cutting them."""
        if not items:
            return []
        if not self.tokenizer.is_fast:
            return self._without_offsets(items, split_into_words)
        pairs = [item if isinstance(item, tuple) else (item,) for item in items]
        result: list[EncodedText | None] = [None] * len(items)
        for size in (1, 2):
            rows = [i for i, pair in enumerate(pairs) if len(pair) == size]
            if not rows:
                continue
            columns = [[pairs[i][k] for i in rows] for k in range(size)]
            encoded = self.tokenizer(*columns, is_split_into_words=split_into_words, verbose=False)
            for i, encoding in zip(rows, encoded.encodings, strict=True):
                result[i] = self._from_encoding(encoding, pairs[i], split_into_words)
        return result

    def tokenized(self, inputs: Mapping[str, Any]) -> list[EncodedText]:
        """Token ids that were made elsewhere, with or without padding; the texts are decoded from them.

        Raises:
            ValueError: there are no `input_ids`, or the mask does not fit them.
        """
        if "input_ids" not in inputs:
            raise ValueError(f"Tokenized input needs `input_ids`, got {', '.join(map(str, inputs)) or 'nothing'}.")
        ids = inputs["input_ids"]
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        rows = [ids] if not ids or isinstance(ids[0], int) else ids
        masks, types = (self._rows(inputs.get(name), rows) for name in ("attention_mask", "token_type_ids"))
        encoded = []
        for row, mask, kinds in zip(rows, masks, types, strict=True):
            if len(mask or row) != len(row) or len(kinds or row) != len(row):
                raise ValueError("`attention_mask` and `token_type_ids` must be as long as `input_ids`.")
            kept = [i for i in range(len(row)) if mask is None or mask[i]]
            encoded.append(self._from_ids([row[i] for i in kept], [kinds[i] for i in kept] if kinds else []))
        return encoded

    @staticmethod
    def _rows(values: Any, rows: list) -> list:
        if values is None:
            return [None] * len(rows)
        values = values.tolist() if hasattr(values, "tolist") else list(values)
        values = [values] if values and isinstance(values[0], int) else values
        if len(values) != len(rows):
            raise ValueError(f"{len(rows)} rows of `input_ids` but {len(values)} of the mask or the token types.")
        return values

    def _from_encoding(self, encoding: Any, pair: tuple, split_into_words: bool) -> EncodedText:
        offsets, words = encoding.offsets, encoding.word_ids
        texts = pair
        if split_into_words:
            texts = tuple(" ".join(part) for part in pair)
            begins = [[0] for _ in pair]
            for begin, part in zip(begins, pair, strict=True):
                for word in part:
                    begin.append(begin[-1] + len(word) + 1)
            offsets = [
                (a, b) if s is None else (begins[s][w] + a, begins[s][w] + b)
                for (a, b), w, s in zip(offsets, words, encoding.sequence_ids, strict=True)
            ]
        types = encoding.type_ids if self.uses_types and "token_type_ids" in self.tokenizer.model_input_names else []
        segments = encoding.sequence_ids
        return EncodedText(texts, encoding.ids, types, encoding.tokens, offsets, words, segments)

    def _from_ids(self, ids: list[int], types: list[int]) -> EncodedText:
        """Ids whose text is decoded; where encoding it again gives the same ids, its words are known."""
        if self.tokenizer.is_fast:
            text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for special in (True, False):
                (encoding,) = self.tokenizer([text], add_special_tokens=special, verbose=False).encodings
                if encoding.ids == ids:
                    encoded = self._from_encoding(encoding, (text,), False)
                    return replace(encoded, token_type_ids=types or encoded.token_type_ids)
        self._say(
            "these ids are not what the tokenizer makes of their text, so they are shown as they are, token by token"
        )
        special = self.tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        return self._token_by_token(ids, [not s for s in special], types)

    def _without_offsets(self, items: Sequence[Any], split_into_words: bool) -> list[EncodedText]:
        self._say(
            f"{type(self.tokenizer).__name__} does not know where in the text its tokens come from, so explanations "
            "show the tokens themselves instead of the words"
        )
        encoded = []
        for item in items:
            pair = item if isinstance(item, tuple) else (item,)
            row = self.tokenizer(*pair, is_split_into_words=split_into_words, verbose=False)
            special = self.tokenizer.get_special_tokens_mask(row["input_ids"], already_has_special_tokens=True)
            types = list(row.get("token_type_ids", [])) if self.uses_types else []
            encoded.append(self._token_by_token(list(row["input_ids"]), [not s for s in special], types))
        return encoded

    def _token_by_token(self, ids: list[int], shown: list[bool], types: list[int]) -> EncodedText:
        tokens = self.tokenizer.convert_ids_to_tokens(ids)
        text, offsets = tokens_as_text(tokens, shown)
        segments = [0 if visible else None for visible in shown]
        words = [i if visible else None for i, visible in enumerate(shown)]
        return EncodedText((text,), ids, types, tokens, offsets, words, segments, has_words=False)

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning("%s.", message[0].upper() + message[1:])


def cut(encoded: EncodedText, limit: int, keep_end: bool = False) -> EncodedText:
    """The text with so many tokens as the model reads; of a pair the longer one is cut first.

    Args:
        encoded: the text.
        limit: how many tokens are left.
        keep_end: leave out the beginning instead of the end.

    Raises:
        ValueError: the special tokens alone are more.
    """
    if len(encoded) <= limit:
        return encoded
    body = [[i for i, s in enumerate(encoded.segments) if s == segment] for segment in range(len(encoded.texts))]
    surplus = len(encoded) - limit
    _check_room(encoded, limit)
    lengths = [len(part) for part in body]
    if len(lengths) == 2:
        first = min(lengths[0], max(sum(lengths) - surplus - lengths[1], (sum(lengths) - surplus + 1) // 2))
        lengths = [first, sum(lengths) - surplus - first]
    else:
        lengths = [lengths[0] - surplus]
    left_out = {
        i
        for part, length in zip(body, lengths, strict=True)
        for i in (part[: len(part) - length] if keep_end else part[length:])
    }
    return encoded.at([i for i in range(len(encoded)) if i not in left_out], truncated=True)


def windows(encoded: EncodedText, limit: int, stride: int) -> list[EncodedText]:
    """Windows that together cover the text, the second one of a pair where there are two.

    Neighbouring windows share `stride` tokens; the last one begins earlier than that where it would be short, so that
    every window is as long as the model permits.

    Raises:
        ValueError: `stride` leaves no room to go on, or the special tokens and the first text leave none for the window.
    """
    if len(encoded) <= limit:
        return [encoded]
    _check_room(encoded, limit)
    last = len(encoded.texts) - 1
    body = [i for i, segment in enumerate(encoded.segments) if segment == last]
    width = limit - (len(encoded) - len(body))
    if width < 1:
        raise ValueError(f"The first text of the pair alone fills the {limit} tokens that the model reads.")
    if stride >= width:
        raise ValueError(
            f"`stride` is how many tokens neighbouring windows share; with {width} tokens a window it must be below that, "
            f"got {stride}."
        )
    begins = list(range(0, len(body) - width, width - stride)) + [len(body) - width]
    result = []
    for begin in begins:
        inside = set(body[begin : begin + width])
        result.append(encoded.at([i for i, s in enumerate(encoded.segments) if s != last or i in inside]))
    return result


def owners(parts: Sequence[EncodedText], tokens: int) -> list[int]:
    """Which window each token of the text is explained in: the one where it has most context.

    Context is the smaller number of neighbours on either side inside of the window; of two equal ones the first is
    taken. Special tokens, and the first text of a pair, which stand in every window, belong to the first.
    """
    best: list[tuple[int, int]] = [(-1, 0)] * tokens
    for index, window in enumerate(parts):
        last = len(window.texts) - 1
        body = [column for column, segment in zip(window.columns, window.segments, strict=True) if segment == last]
        for place, column in enumerate(body):
            context = min(place, len(body) - 1 - place)
            if context > best[column][0]:
                best[column] = (context, index)
    return [window for _, window in best]


def padded(rows: Sequence[EncodedText], padding: int, device: torch.device) -> dict[str, torch.Tensor]:
    """The rows as one batch, padded on the right: `(rows, tokens)` each."""
    length = max(map(len, rows))

    def fill(values: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (length - len(row)) for row in values], device=device)

    inputs = {
        "input_ids": fill([row.input_ids for row in rows], padding),
        "attention_mask": fill([[1] * len(row) for row in rows], 0),
    }
    if any(row.token_type_ids for row in rows):
        inputs["token_type_ids"] = fill([row.token_type_ids or [0] * len(row) for row in rows], 0)
    return inputs


def _check_room(encoded: EncodedText, limit: int) -> None:
    special = encoded.segments.count(None)
    if special >= limit:
        raise ValueError(f"The model reads {limit} tokens and {special} of them are special ones: no room for a text.")
