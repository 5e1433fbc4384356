"""Words instead of tokens: the contributions of a word's tokens are summed, so the total stays the logit."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bcos_transformers.modeling.bcos_inputs import token_limit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WordContributions:
    """One explained text.

    Attributes:
        text: the text.
        words: its words, as they stand in the text.
        spans: character span `[start, end)` of each word.
        scores: signed contribution of each word to the logit.
        special_tokens_score: contribution of the tokens that stand for no word, `[CLS]` and `[SEP]` for instance.
        target: index of the explained class.
        label: its name.
        logit: its logit; `sum(scores) + special_tokens_score + residual`.
        probability: softmax probability of the class.
        residual: what the contributions leave unexplained; rounding only.
        truncated: whether the text was too long and its end was neither read nor explained.
    """

    text: str
    words: list[str]
    spans: list[tuple[int, int]]
    scores: list[float]
    special_tokens_score: float
    target: int
    label: str
    logit: float
    probability: float
    residual: float
    truncated: bool = False


def explain_texts(
    model,
    tokenizer,
    texts: Sequence[str],
    target: int | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
) -> list[WordContributions]:
    """Explains the predictions of a B-cos sequence classifier word by word.

    Args:
        model: a B-cos model for sequence classification.
        tokenizer: its tokenizer; one that knows which word a token belongs to.
        texts: the texts.
        target: class to explain; None is the predicted one of each text.
        batch_size: texts a batch.
        max_length: texts are cut to so many tokens, with a warning; None is the model's limit.

    Raises:
        TypeError: `texts` is one string, or holds something else.
        ValueError: the model is not a classifier with one label per text.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError("`texts` must be a sequence of strings.")
    if model.config.problem_type in ("regression", "multi_label_classification") or model.config.num_labels == 1:
        raise ValueError("explain_texts is for one label per text; use model.explain for regression and multi-label.")
    longest = token_limit(model) or model.config.max_position_embeddings
    limit = min(max_length or longest, longest)
    results = []
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        encoded = tokenizer(
            batch, return_tensors="pt", padding=True, truncation=True, max_length=limit, return_offsets_mapping=True
        )
        offsets = encoded.pop("offset_mapping").tolist()
        inputs = {name: value.to(model.device) for name, value in encoded.items()}
        out = model.explain(**inputs, target=target)
        probabilities = out.logits.float().softmax(-1).gather(-1, out.target)
        for row, text in enumerate(batch):
            spans, scores, special = _merge(
                text, encoded.word_ids(row), offsets[row], out.contributions[row, 0].double().cpu()
            )
            index = int(out.target[row, 0])
            results.append(
                WordContributions(
                    text=text,
                    words=[text[a:b] for a, b in spans],
                    spans=spans,
                    scores=scores,
                    special_tokens_score=special,
                    target=index,
                    label=model.config.id2label[index],
                    logit=float(out.values[row, 0]),
                    probability=float(probabilities[row, 0]),
                    residual=float(out.residual[row, 0]),
                    truncated=bool(spans)
                    and len(encoded["input_ids"][row]) == limit
                    and bool(text[spans[-1][1] :].strip()),
                )
            )
    cut = sum(result.truncated for result in results)
    if cut:
        logger.warning("%d of %d texts have more than %d tokens: their ends were cut.", cut, len(results), limit)
    return results


def _merge(
    text: str, word_ids: list[int | None], offsets: list[list[int]], contributions: torch.Tensor
) -> tuple[list[tuple[int, int]], list[float], float]:
    """Spans and scores of the words, and the score of all tokens that belong to none.

    Tokenizers call every punctuation mark a word; here marks stay with the letters they touch, as for a reader.
    """
    spans: list[tuple[int, int]] = []
    scores: list[float] = []
    special, last_word = 0.0, None
    for word, (begin, end), score in zip(word_ids, offsets, contributions.tolist(), strict=True):
        if word is None or begin == end:
            special += score
        elif spans and (word == last_word or _touch(text, spans[-1][1], begin)):
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            scores[-1] += score
        else:
            spans.append((begin, end))
            scores.append(score)
        last_word = word
    return spans, scores, special


def _touch(text: str, end: int, begin: int) -> bool:
    """Whether nothing lies between two tokens and one of them shows the other a mark instead of a letter."""
    return begin <= end and not (text[begin].isalnum() and text[end - 1].isalnum())
