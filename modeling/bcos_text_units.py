"""From a tokenizer's offsets and word ids to what a reader sees: which token belongs to which token, word or sentence."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

GRANULARITIES = ("token", "word", "sentence")
# Where the next sentence begins: after a closing mark and white space, after a full-width mark, after a line break.
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|[。！？]+[\"”’）」』]*\s*|\s*\n\s*")  # noqa: RUF001


@dataclass
class TextUnits:
    """The units of a text, or of a pair of texts, and the tokens that each is made of.

    Attributes:
        spans: character span `[start, end)` of each unit in its own text, without white space around it.
        segments: which text each unit is of: 0, or 1 for the second of a pair.
        of_token: index of the unit that each token belongs to; None for special tokens.
    """

    spans: list[tuple[int, int]] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    of_token: list[int | None] = field(default_factory=list)

    def sums(self, token_scores: Sequence[float]) -> tuple[list[float], float]:
        """Scores of the units, and of the special tokens together; their total is that of the tokens."""
        scores, special = [0.0] * len(self.spans), 0.0
        for unit, score in zip(self.of_token, token_scores, strict=True):
            if unit is None:
                special += score
            else:
                scores[unit] += score
        return scores, special


def check_granularity(granularity: str) -> str:
    """Returns `granularity`.

    Raises:
        ValueError: it is not one of `GRANULARITIES`.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"`granularity` must be one of {', '.join(GRANULARITIES)}, got {granularity!r}.")
    return granularity


def check_knows_words(tokenizer) -> None:
    """Refuses a tokenizer of special tokens alone, which transformers makes of a folder that holds none.

    Raises:
        ValueError: every text would be unknown to it.
    """
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ValueError(
            f"This {type(tokenizer).__name__} knows its special tokens and no others, so every text would be unknown to it: "
            "it comes from where no tokenizer is saved. Save the model's own beside it: tokenizer.save_pretrained(folder)."
        )


def text_units(
    texts: Sequence[str],
    offsets: Sequence[tuple[int, int]],
    word_ids: Sequence[int | None],
    segments: Sequence[int | None],
    granularity: str = "word",
) -> TextUnits:
    """Groups tokens by what they stand for in the text.

    A word ends where there is white space, or where the tokenizer begins another word with a letter right after a
    letter (as in Chinese); punctuation marks stay with the letters they touch, as for a reader. A sentence ends after
    `.`, `!`, `?`, `…` and white space, after their full-width forms, and at a line break. Tokens that share characters
    (the bytes of an emoji) are one unit at every granularity. A token of white space alone is a unit of its own at
    token granularity; otherwise it goes with the next unit, as the spaces inside of tokens do.

    Args:
        texts: the text, or the two of a pair.
        offsets: `[start, end)` of each token in its text.
        word_ids: the tokenizer's word of each token.
        segments: which text each token is of; None for special tokens.
        granularity: `"token"`, `"word"` or `"sentence"`.

    Raises:
        ValueError: an unknown granularity.
    """
    check_granularity(granularity)
    starts = [[m.end() for m in SENTENCE_END.finditer(t)] for t in texts] if granularity == "sentence" else []
    units = TextUnits()
    waiting: list[int] = []  # tokens without a visible character, which go with the next unit of their text
    last_segment = last_word = None
    for index, ((begin, end), word, segment) in enumerate(zip(offsets, word_ids, segments, strict=True)):
        units.of_token.append(None)
        if segment is None:
            continue
        if segment != last_segment:
            _give(units, waiting, last_segment)
        text = texts[segment]
        piece = text[begin:end]
        visible = piece.strip()
        if not visible and (granularity != "token" or begin == end):
            waiting.append(index)
            last_segment = segment
            continue
        if visible:
            begin += len(piece) - len(piece.lstrip())
            end = begin + len(visible)
        joins = segment == last_segment and bool(units.spans) and units.segments[-1] == segment
        if joins and begin >= units.spans[-1][1]:
            last_end = units.spans[-1][1]
            if granularity == "token":
                joins = False
            elif granularity == "word":
                joins = _same_word(text, last_end, begin, word == last_word)
            else:
                joins = bisect_right(starts[segment], last_end - 1) == bisect_right(starts[segment], begin)
        if joins:
            units.spans[-1] = (units.spans[-1][0], max(end, units.spans[-1][1]))
        else:
            units.spans.append((begin, end))
            units.segments.append(segment)
        last_segment, last_word = segment, word
        unit = len(units.spans) - 1
        units.of_token[index] = unit
        for token in waiting:
            units.of_token[token] = unit
        waiting.clear()
    _give(units, waiting, last_segment)
    _take_marks(units, texts)
    return units


def tokens_as_text(tokens: Sequence[str], shown: Sequence[bool]) -> tuple[str, list[tuple[int, int]]]:
    """A text made of the shown tokens, for tokenizers without offsets, and the characters `[start, end)` of each token."""
    text, offsets = "", []
    for token, visible in zip(tokens, shown, strict=True):
        if visible:
            text += " " if text else ""
            offsets.append((len(text), len(text) + len(token)))
            text += token
        else:
            offsets.append((0, 0))
    return text, offsets


def _same_word(text: str, end: int, begin: int, same_id: bool) -> bool:
    """Whether a token that begins at `begin` goes on with the word that reaches to `end`."""
    if any(character.isspace() for character in text[end:begin]):
        return False
    return same_id or not (text[begin].isalnum() and text[end - 1].isalnum())


def _take_marks(units: TextUnits, texts: Sequence[str]) -> None:
    """Combining marks and joiners that the tokenizer dropped stay with the character they stand on."""
    for index, ((begin, end), segment) in enumerate(zip(units.spans, units.segments, strict=True)):
        text, following = texts[segment], units.spans[index + 1 : index + 2]
        bound = following[0][0] if following and units.segments[index + 1] == segment else len(text)
        while end < bound and text[end] > "\u02ff" and unicodedata.category(text[end]) in ("Mn", "Mc", "Me", "Cf"):
            end += 1
        units.spans[index] = (begin, end)


def _give(units: TextUnits, waiting: list[int], segment: int | None) -> None:
    """White space after the last unit of a text goes with that unit; in a text without any it stays with the specials."""
    for token in waiting:
        if units.segments and units.segments[-1] == segment:
            units.of_token[token] = len(units.spans) - 1
    waiting.clear()
