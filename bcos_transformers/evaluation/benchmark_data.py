"""Labelled texts for the benchmark, with the words that people marked where the data have them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        example: the example.
        row: its tokens.
        word_of_token: the word of each token; None for special tokens.
        words: how many words the tokens reach to; the rest was cut off.
    """

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
    """Reads JSON lines.

    Args:
        path: the file.
        text_column: name of the field with the text.
        label_column: name of the field with the class index.
        rationale_column: name of the field with the rationale: 0 or 1 for each word (parted by white space), or character
            spans `[[start, end], …]`.

    Raises:
        ValueError: a row without one of the fields, or a rationale that does not fit its text; the message says where.
    """
    examples = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            missing = [name for name in (text_column, label_column) if name not in row]
            if missing:
                raise ValueError(f"{Path(path).name}, line {number}: no field {missing}; there are {sorted(row)}.")
            if not isinstance(row[label_column], int):
                raise ValueError(
                    f"{Path(path).name}, line {number}: the label must be a class index, got {row[label_column]!r}."
                )
            rationale = None if rationale_column is None else row.get(rationale_column)
            try:
                examples.append(make_example(row[text_column], row[label_column], rationale))
            except ValueError as error:
                raise ValueError(f"{Path(path).name}, line {number}: {error}") from None
    return examples


def make_example(text: str, label: int, rationale: Any = None) -> Example:
    """An example whose rationale is given by words or by characters.

    Raises:
        ValueError: as many marks as words are needed.
    """
    spans = word_spans(text)
    if not rationale:
        return Example(text, label)
    if isinstance(rationale[0], (list, tuple)):
        marks = tuple(int(any(a < end and start < b for start, end in rationale)) for a, b in spans)
    else:
        marks = tuple(int(bool(mark)) for mark in rationale)
        if len(marks) != len(spans):
            raise ValueError(f"the rationale has {len(marks)} marks, the text {len(spans)} words.")
    return Example(text, label, marks if any(marks) else None)


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
    return [encoded for example in examples if (encoded := _encode(tokenizer, example, max_length)) is not None]


def _encode(tokenizer: Any, example: Example, max_length: int | None) -> EncodedExample | None:
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
    return EncodedExample(example, row, tuple(words), reached)
