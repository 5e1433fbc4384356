"""Why each generated token was generated: one forward pass over the finished text explains all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList, StopStringCriteria
from transformers.utils import ModelOutput

from .bcos_eval_mode import evaluation_mode
from .bcos_inputs import check_inputs, token_limit
from .bcos_model import BcosModelMixin
from .bcos_peft import refuse_virtual_tokens
from .bcos_state import EmbeddingRecorder
from .bcos_targets import Quantities, generated_token_quantities


@dataclass
class BcosGenerationExplanation(ModelOutput):
    """Signed contributions of all tokens so far to the logit of each generated token.

    Args:
        sequences: `(batch, tokens)`, prompt and continuation, as `generate` returned them.
        contributions: `(batch, new tokens, tokens)`, in at least float32: what each token contributed to the logit of
            each chosen token. Lower-triangular: exactly 0 on the chosen token itself, on later ones and on padding.
        target: `(batch, new tokens)`, the chosen tokens; -1 after the end of a continuation.
        values: `(batch, new tokens)`, the explained logits, after contrast where one was asked for; 0 after the end.
        residual: `(batch, new tokens)`, `values` minus the sum of the contributions: the proof of completeness.
        attention_mask: `(batch, tokens)`, 1 for real tokens of prompt and continuation.
        parts: with `parts=True`, contributions of each part of the input embedding, shaped like `contributions`.
    """

    sequences: torch.Tensor | None = None
    contributions: torch.Tensor | None = None
    target: torch.Tensor | None = None
    values: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    parts: dict[str, torch.Tensor] | None = None


class BcosCausalLMMixin(BcosModelMixin):
    """A B-cos decoder with a language-model head: explains next tokens and whole continuations."""

    explanation_task = "causal-lm"

    def explain_generation(
        self,
        inputs: Any,
        *,
        contrast: Any = None,
        parts: bool = False,
        chunk_size: int = 16,
        allow_large: bool = False,
        **generate_kwargs: Any,
    ) -> BcosGenerationExplanation:
        """Generates a continuation and explains every token of it; see `explain_generation`."""
        settings = _Settings(self, generate_kwargs)
        prompt = _prompt(self, inputs, settings)
        start = prompt["input_ids"].shape[1]
        _check_room(self, start, settings)
        criteria = _recording_criteria(settings)
        if criteria:
            generate_kwargs = {**generate_kwargs, "stopping_criteria": StoppingCriteriaList(criteria)}
        with evaluation_mode(self):
            output = self.generate(**prompt, **generate_kwargs)
        sequences = output if torch.is_tensor(output) else output.sequences
        mask = prompt["attention_mask"].repeat_interleave(len(sequences) // len(prompt["input_ids"]), dim=0)
        ended = _ended(sequences, start, settings, criteria)
        mask = torch.cat((mask, (~ended).to(mask.dtype)), dim=1)

        def quantities(model, output, inputs, mask: torch.Tensor, recorder: EmbeddingRecorder) -> Quantities:
            return generated_token_quantities(output.logits, sequences, mask, start, recorder, contrast)

        out = self._explain(
            {"input_ids": sequences, "attention_mask": mask, "use_cache": False},
            quantities,
            parts,
            chunk_size,
            allow_large,
        )
        return BcosGenerationExplanation(
            sequences=sequences,
            contributions=out.contributions,
            target=out.target,
            values=out.values,
            residual=out.residual,
            attention_mask=mask,
            parts=out.parts,
        )


def explain_generation(model: PreTrainedModel, inputs: Any, **kwargs: Any) -> BcosGenerationExplanation:
    """Generates a continuation and splits the logit of every chosen token over all tokens before it.

    One forward pass over the finished text and batched vector-Jacobian products, not a pass per token
    (arXiv 2502.12992, section 3.3 for one token). What is explained is the model's own logit, before any processor of
    `generate` (temperature, repetition penalty, …) changed it.

    Args:
        model: a B-cos causal language model.
        inputs: what the tokenizer returns (`input_ids` and `attention_mask`, padded on the left), or the ids alone
            `(batch, tokens)`.
        **kwargs: `contrast` (None, `"mean"`, a token id, or token ids `(batch,)` or `(batch, new tokens)`), `parts`,
            `chunk_size` (how many tokens one backward pass explains; bounds the memory), `allow_large` (more than
            1,000 new tokens); everything else goes to `model.generate`.

    Raises:
        TypeError: `model` is not a B-cos causal language model; the prompt is not made of tensors.
        ValueError: a prompt that is empty, padded on the right, given as embeddings, or that leaves no room for the new
            tokens; see also `explain`.

    Example:
        >>> out = explain_generation(model, tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=20)
        >>> out.contributions[0, 3]  # why the fourth new token
    """
    refuse_virtual_tokens(model)
    method = getattr(model, "explain_generation", None)
    if method is None:
        raise TypeError(
            f"{type(model).__name__} is not a B-cos causal language model; convert one with "
            "from_pretrained_bcos(..., task='causal-lm')."
        )
    return method(inputs, **kwargs)


class _Settings:
    """What `generate` goes by: its arguments, else the given `GenerationConfig`, else the model's own."""

    def __init__(self, model: PreTrainedModel, generate_kwargs: dict[str, Any]) -> None:
        self.kwargs = generate_kwargs
        self.sources = [generate_kwargs.get("generation_config"), model.generation_config]

    def __getattr__(self, name: str) -> Any:
        if name in self.kwargs:
            return self.kwargs[name]
        found = (getattr(source, name, None) for source in self.sources)
        return next((value for value in found if value is not None), None)

    @property
    def ends(self) -> list[int]:
        """Ids of the tokens that end a continuation."""
        ends = self.eos_token_id
        ends = ends.tolist() if torch.is_tensor(ends) else ends
        return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


class _RecordingCriterion(StoppingCriteria):
    """Remembers at how many tokens another criterion stopped each row."""

    def __init__(self, criterion: Any) -> None:
        self.criterion = criterion
        self.lengths: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        done = self.criterion(input_ids, scores, **kwargs)
        rows = torch.as_tensor(done, device=input_ids.device).expand(len(input_ids))
        if self.lengths is None:
            self.lengths = torch.full_like(input_ids[:, 0], torch.iinfo(torch.long).max)
        if len(self.lengths) == len(rows):
            self.lengths = torch.where(rows, self.lengths.clamp_max(input_ids.shape[1]), self.lengths)
        return done


def _recording_criteria(settings: _Settings) -> list[_RecordingCriterion]:
    criteria = [_RecordingCriterion(criterion) for criterion in settings.kwargs.get("stopping_criteria") or ()]
    tokenizer = settings.kwargs.get("tokenizer")
    if settings.stop_strings is not None and tokenizer is not None:
        criteria.append(_RecordingCriterion(StopStringCriteria(tokenizer, settings.stop_strings)))
    return criteria


def _prompt(model: PreTrainedModel, inputs: Any, settings: _Settings) -> dict[str, torch.Tensor]:
    """The prompt as `input_ids` and `attention_mask`, checked."""
    if not torch.is_tensor(inputs) and not isinstance(inputs, Mapping):
        raise TypeError(
            "`inputs` must be the tokenizer's output (tokenizer(text, return_tensors='pt')) or the ids as a tensor, got "
            f"{type(inputs).__name__}."
        )
    given = {"input_ids": inputs} if torch.is_tensor(inputs) else dict(inputs)
    given.pop("token_type_ids", None)  # `generate` would have none for the new tokens
    unknown = given.keys() - {"input_ids", "attention_mask"}
    if given.get("input_ids") is None or unknown:
        raise ValueError(
            "`inputs` must be the tokenizer's output (return_tensors='pt') with `input_ids` and `attention_mask`; "
            f"got {', '.join(sorted(given)) or 'nothing'}."
        )
    ids, mask = given["input_ids"], given.get("attention_mask")
    if mask is None and torch.is_tensor(ids):
        # As `generate` infers it.
        padding = settings.pad_token_id
        mask = torch.ones_like(ids) if padding is None or padding in settings.ends else (ids != padding).long()
    _, real = check_inputs(model, {"input_ids": ids, "attention_mask": mask})
    if not real[:, -1].all():
        rows = (~real[:, -1]).nonzero().flatten().tolist()
        raise ValueError(
            f"Rows {rows} are padded on the right, so the continuation would follow padding. "
            "Pad on the left: tokenizer.padding_side = 'left'."
        )
    return {"input_ids": ids, "attention_mask": mask}


def _check_room(model: PreTrainedModel, start: int, settings: _Settings) -> None:
    """Position embeddings run out in the middle of `generate`; better say so before."""
    limit, new = token_limit(model), settings.max_new_tokens
    if limit is not None and new is not None and start + new > limit:
        raise ValueError(
            f"A prompt of {start} tokens and {new} new ones are more than the {limit} positions of {type(model).__name__}. "
            "Shorten the prompt or lower `max_new_tokens`."
        )


def _ended(
    sequences: torch.Tensor, start: int, settings: _Settings, criteria: list[_RecordingCriterion]
) -> torch.Tensor:
    """Which of the new tokens, `(batch, new)`, only fill up a continuation that has ended."""
    new = sequences[:, start:]
    is_end = torch.isin(new, torch.tensor(settings.ends, dtype=new.dtype, device=new.device))
    ended = is_end.long().cumsum(-1) - is_end.long() > 0
    positions = torch.arange(start, sequences.shape[1], device=new.device)
    for criterion in criteria:
        if criterion.lengths is not None and len(criterion.lengths) == len(new) and settings.num_beams in (None, 1):
            ended |= positions >= criterion.lengths[:, None].to(new.device)
        elif settings.pad_token_id is not None and settings.pad_token_id not in settings.ends:
            # Beams change places, so it is not known which one a criterion stopped.
            ended |= (new == settings.pad_token_id).flip(-1).long().cumprod(-1).bool().flip(-1)
    return ended
