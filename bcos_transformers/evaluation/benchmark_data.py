"""Labelled texts for the benchmark, with the words that people marked where the data have them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bcos_transformers.evaluation.rows import Row, rows_of


@dataclass(frozen=True)
class Example:
    """A labelled text.

    Attributes:
        text: the text.
        label: index of its class.
        rationale: 1 for every marked word (as parted by white space), 0 for the others; None where there is none.
        phrases: `(start, end, sentiment)` over words, from a treebank; empty where there are none.
    """

    text: str
    label: int
    rationale: tuple[int, ...] | None = None
    phrases: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class EncodedExample:
    """An example as a tokenizer sees it.

    Attributes:
        index: its place among the examples that were encoded.
        example: the example.
        row: its tokens.
        word_of_token: the word of each token; None for special tokens.
        words: how many words the tokens reach to; the rest was cut off.
    """

    index: int
    example: Example
    row: Row
    word_of_token: tuple[int | None, ...]
    words: int

    def word_scores(self, scores: Sequence[float]) -> list[float]:
        """Sums of the scores of each word's tokens."""
        sums = [0.0] * self.words
        for word, score in zip(self.word_of_token, scores, strict=True):
            if word is not None:
                sums[word] += score
        return sums

    @property
    def rationale(self) -> tuple[int, ...] | None:
        """The rationale of the words that were not cut off; None if it marks none of them."""
        marks = (self.example.rationale or ())[: self.words]
        return marks if any(marks) else None

    @property
    def phrases(self) -> list[tuple[int, int, int]]:
        """The phrases that were not cut off."""
        return [phrase for phrase in self.example.phrases if phrase[1] <= self.words]


def read_examples(
    path: str | Path, text_column: str = "text", label_column: str = "label", rationale_column: str | None = None
) -> list[Example]:
    """Reads JSON lines; empty ones are passed over.

    Args:
        path: the file.
        text_column: name of the field with the text.
        label_column: name of the field with the class index.
        rationale_column: name of the field with the rationale: 0 or 1 for each word (parted by white space), or character
            spans `[[start, end], …]`. Rows may go without it, but not all of them.

    Raises:
        ValueError: a line that is no JSON object, a row without one of the fields or with something else in it, or a
            rationale that does not fit its text; the message says where.
        OSError: the file cannot be read.
    """
    examples, rationales = [], 0
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"not a JSON object but {type(row).__name__}.")
                missing = [name for name in (text_column, label_column) if name not in row]
                if missing:
                    raise ValueError(f"no field {', '.join(map(repr, missing))}; there are: {', '.join(row)}.")
                rationales += rationale_column in row
                rationale = None if rationale_column is None else row.get(rationale_column)
                examples.append(make_example(row[text_column], row[label_column], rationale))
            except ValueError as error:
                raise ValueError(f"{Path(path).name}, line {number}: {error}") from None
    if rationale_column is not None and examples and not rationales:
        raise ValueError(f"No row of {Path(path).name} has a field {rationale_column!r}.")
    return examples


def make_example(text: str, label: int, rationale: Any = None) -> Example:
    """An example whose rationale is given by words or by characters.

    Args:
        text: the text.
        label: index of its class.
        rationale: 0 or 1 for each word (parted by white space), character spans `[[start, end], …]`, or nothing.

    Raises:
        ValueError: the text is none, the label no index, or the rationale does not fit.
    """
    if not isinstance(text, str):
        raise ValueError(f"the text must be a string, got {text!r:.60}.")
    if not isinstance(label, int) or isinstance(label, bool):
        raise ValueError(f"the label must be a class index, got {label!r:.60}.")
    spans = word_spans(text)
    if isinstance(rationale, str) or not isinstance(rationale, Iterable | None):
        raise ValueError(f"the rationale must be a list of marks or character spans, got {rationale!r:.60}.")
    given = [] if rationale is None else list(rationale)
    if not given:
        return Example(text, label)
    if all(isinstance(mark, int) and mark in (0, 1) for mark in given):
        if len(given) != len(spans):
            raise ValueError(f"the rationale has {len(given)} marks, the text {len(spans)} words.")
        marks = tuple(map(int, given))
    elif all(_is_span(span) for span in given):
        marks = tuple(int(any(a < end and start < b for start, end in given)) for a, b in spans)
    else:
        raise ValueError(f"the rationale must be 0 or 1 for each word, or character spans, got {given!r:.60}.")
    return Example(text, label, marks if any(marks) else None)


def _is_span(span: Any) -> bool:
    return isinstance(span, list | tuple) and len(span) == 2 and all(isinstance(end, int) for end in span)


def choose(count: int, limit: int | None, seed: int) -> list[int]:
    """So many of the first `count` numbers at most, in their order; files are often sorted by label, so not the first."""
    if limit is None or limit >= count:
        return list(range(count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:limit].tolist())


def check_labels(examples: Sequence[Example], places: Sequence[int], labels: Sequence[str]) -> None:
    """Refuses class indices that models do not have.

    Args:
        examples: the texts.
        places: what to call each of them in the message.
        labels: names of the classes.

    Raises:
        ValueError: see above.
    """
    for place, example in zip(places, examples, strict=True):
        if not 0 <= example.label < len(labels):
            raise ValueError(
                f"Text {place} has the label {example.label}, but the model has {len(labels)} classes, 0 … "
                f"{len(labels) - 1}: {', '.join(labels[:12])}."
            )


def word_spans(text: str) -> list[tuple[int, int]]:
    """Characters `[start, end)` of the words, as parted by white space."""
    spans, start = [], 0
    for word in text.split():
        start = text.index(word, start)
        spans.append((start, start + len(word)))
        start += len(word)
    return spans


def encode_examples(tokenizer: Any, examples: Sequence[Example], max_length: int | None) -> list[EncodedExample]:
    """Tokenizes examples, cut to `max_length` tokens; those of which no token is left are left out.

    Raises:
        ValueError: the tokenizer does not know the characters of its tokens.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} does not know the characters of its tokens: use a fast tokenizer."
        )
    encoded = (_encode(tokenizer, i, example, max_length) for i, example in enumerate(examples))
    return [one for one in encoded if one is not None]


def _encode(tokenizer: Any, index: int, example: Example, max_length: int | None) -> EncodedExample | None:
    encoded: Mapping[str, Any] = tokenizer(
        example.text,
        truncation=max_length is not None,
        max_length=max_length,
        return_offsets_mapping=True,
        verbose=False,
    )
    try:
        (row,) = rows_of(tokenizer, [encoded["input_ids"]])
    except ValueError:
        return None
    words, spans = [], word_spans(example.text)
    for (start, end), maskable in zip(encoded["offset_mapping"], row.maskable, strict=True):
        inside = [i for i, (a, b) in enumerate(spans) if a < end and start < b] if maskable and end > start else []
        words.append(inside[0] if inside else None)
    reached = max((word for word in words if word is not None), default=-1) + 1
    return EncodedExample(index, example, row, tuple(words), reached)
