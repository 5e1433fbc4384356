"""Which words of a prompt speak for one next token rather than another, by several methods, for any causal LM."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from bcos_transformers.modeling.bcos_eval_mode import evaluation_mode

METHODS = ("bcos", "gradient_x_input", "occlusion")


@dataclass(frozen=True)
class ContrastivePrompt:
    """What a model reads, and the two next tokens that are compared.

    Attributes:
        words: the words of the text.
        input_ids: what the model reads.
        word_of_token: the word of each token, None for tokens that are not scored, special tokens for instance.
        target: id of the token that is explained.
        foil: id of the token whose logit is subtracted.
    """

    words: tuple[str, ...]
    input_ids: tuple[int, ...]
    word_of_token: tuple[int | None, ...]
    target: int
    foil: int


def probabilities(model, prompts: Sequence[ContrastivePrompt], batch_size: int = 32) -> list[tuple[float, float]]:
    """P(target) and P(foil) of each prompt, softmax over the vocabulary at the last token."""
    result = []
    with torch.no_grad(), evaluation_mode(model):
        for chunk in _chunks(prompts, batch_size):
            logits = _last_logits(model, [prompt.input_ids for prompt in chunk])
            picked = logits.double().softmax(-1).gather(-1, torch.stack(_ids(model, chunk), dim=-1))
            result += [tuple(row) for row in picked.tolist()]
    return result


def word_scores(
    model, tokenizer, prompts: Sequence[ContrastivePrompt], method: str, batch_size: int = 32
) -> list[list[float]]:
    """Signed scores of the words of every prompt for logit(target) − logit(foil) at the last token.

    "bcos" and "gradient_x_input" score tokens, and a word is the sum of its tokens; "bcos" is exact and is the
    model's own `explain`, "gradient_x_input" is the gradient of the plain forward pass with respect to the word embeddings
    times these, summed over the hidden dimension. "occlusion" is the drop of the difference when all tokens of the word
    become the unknown token; where the tokenizer has none the word is left out.

    Raises:
        ValueError: an unknown method, or "bcos" for a conventional model.
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}, got {method!r}.")
    if method == "occlusion":
        return _occlusion(model, tokenizer, prompts, batch_size)
    if method == "bcos" and not hasattr(model, "explain"):
        raise ValueError(f"{type(model).__name__} is no B-cos model, so it has no explanation of its own.")
    score = _bcos if method == "bcos" else _gradient_x_input
    result = []
    with evaluation_mode(model):
        for chunk in _chunks(prompts, batch_size):
            by_token = score(model, chunk).double().cpu().tolist()
            result += [_sum_words(prompt, row) for prompt, row in zip(chunk, by_token, strict=True)]
    return result


def _bcos(model, prompts: Sequence[ContrastivePrompt]) -> torch.Tensor:
    """Contributions of the tokens, `(batch, tokens)`."""
    input_ids, mask = _padded(model, [prompt.input_ids for prompt in prompts])
    target, foil = _ids(model, prompts)
    return model.explain(input_ids, mask, target=target, contrast=foil, position=-1).contributions[:, 0]


def _gradient_x_input(model, prompts: Sequence[ContrastivePrompt]) -> torch.Tensor:
    """Gradient × input of the tokens, `(batch, tokens)`."""
    with torch.inference_mode(False), torch.enable_grad():
        input_ids, mask = _padded(model, [prompt.input_ids for prompt in prompts])
        embeddings = model.get_input_embeddings()(input_ids).detach().requires_grad_()
        logits = _last(model(inputs_embeds=embeddings, attention_mask=mask).logits, mask)
        # Rows do not see each other, so the gradient of the sum holds that of every row.
        (gradient,) = torch.autograd.grad(_contrast(logits, *_ids(model, prompts)).sum(), embeddings)
    return (gradient.double() * embeddings.detach().double()).sum(-1)


def _occlusion(model, tokenizer, prompts: Sequence[ContrastivePrompt], batch_size: int) -> list[list[float]]:
    """Word scores; 0 for the only word of a text that would be empty without it."""
    rows: list[tuple[ContrastivePrompt, tuple[int, ...]]] = []
    for prompt in prompts:
        rows.append((prompt, prompt.input_ids))
        without = [_without(prompt, word, tokenizer.unk_token_id) for word in range(len(prompt.words))]
        rows += [(prompt, ids or prompt.input_ids) for ids in without]
    values: list[float] = []
    with torch.no_grad(), evaluation_mode(model):
        for chunk in _chunks(rows, batch_size):
            logits = _last_logits(model, [ids for _, ids in chunk])
            values += _contrast(logits, *_ids(model, [prompt for prompt, _ in chunk])).tolist()
    result, start = [], 0
    for prompt in prompts:
        full, *occluded = values[start : start + len(prompt.words) + 1]
        result.append([full - value for value in occluded])
        start += len(prompt.words) + 1
    return result


def _without(prompt: ContrastivePrompt, word: int, unknown: int | None) -> tuple[int, ...]:
    """The token ids with the word's replaced by `unknown`, or left out if that is None."""
    ids = [
        unknown if owner == word else token
        for token, owner in zip(prompt.input_ids, prompt.word_of_token, strict=True)
    ]
    return tuple(token for token in ids if token is not None)


def _sum_words(prompt: ContrastivePrompt, token_scores: Sequence[float]) -> list[float]:
    """Word scores from token scores, which may be followed by those of padding."""
    scores = [0.0] * len(prompt.words)
    for word, score in zip(prompt.word_of_token, token_scores, strict=False):
        if word is not None:
            scores[word] += score
    return scores


def _chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _ids(model, prompts: Sequence[ContrastivePrompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Target and foil ids, `(batch,)` each."""
    ids = torch.tensor([(prompt.target, prompt.foil) for prompt in prompts], device=model.device)
    return ids[:, 0], ids[:, 1]


def _padded(model, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, `(batch, tokens)` each, padded on the right with id 0, which the mask hides."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids.to(model.device), mask.to(model.device)


def _last_logits(model, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits at the last real token, `(batch, vocabulary)`."""
    input_ids, mask = _padded(model, rows)
    return _last(model(input_ids=input_ids, attention_mask=mask).logits, mask)


def _last(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`(batch, tokens, vocabulary)` to `(batch, vocabulary)`, at the last token of each row."""
    return logits[torch.arange(len(logits), device=logits.device), mask.sum(-1) - 1]


def _contrast(logits: torch.Tensor, target: torch.Tensor, foil: torch.Tensor) -> torch.Tensor:
    """Difference of two logits of each row, `(batch,)`."""
    rows = torch.arange(len(logits), device=logits.device)
    return (logits[rows, target] - logits[rows, foil]).double()
