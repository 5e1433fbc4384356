"""Why each generated token was generated: one forward pass over the finished text explains all of them."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .bcos_eval_mode import evaluation_mode
from .bcos_model import BcosModelMixin
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
        prompt = _prompt(self, inputs)
        with evaluation_mode(self):
            output = self.generate(**prompt, **generate_kwargs)
        sequences = output if torch.is_tensor(output) else output.sequences
        start = prompt["input_ids"].shape[1]
        mask = prompt["attention_mask"].repeat_interleave(len(sequences) // len(prompt["input_ids"]), dim=0)
        ended = _ended(self, sequences[:, start:], generate_kwargs)
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
        TypeError: `model` is not a B-cos causal language model.
        ValueError: a prompt that is empty, padded on the right, or given as embeddings.

    Example:
        >>> out = explain_generation(model, tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=20)
        >>> out.contributions[0, 3]  # why the fourth new token
    """
    method = getattr(model, "explain_generation", None)
    if method is None:
        raise TypeError(
            f"{type(model).__name__} is not a B-cos causal language model; convert one with "
            "from_pretrained_bcos(..., task='causal-lm')."
        )
    return method(inputs, **kwargs)


def _prompt(model: PreTrainedModel, inputs: Any) -> dict[str, torch.Tensor]:
    """The prompt as `input_ids` and `attention_mask`, checked."""
    given = {"input_ids": inputs} if torch.is_tensor(inputs) else dict(inputs)
    given.pop("token_type_ids", None)  # `generate` would have none for the new tokens
    unknown = given.keys() - {"input_ids", "attention_mask"}
    ids = given.get("input_ids")
    if not torch.is_tensor(ids) or unknown:
        raise ValueError(
            "`inputs` must be the tokenizer's output (return_tensors='pt') with `input_ids` and `attention_mask`; "
            f"got {', '.join(sorted(given)) or 'nothing'}."
        )
    if ids.dim() != 2 or ids.numel() == 0:
        raise ValueError(f"`input_ids` must have the shape (batch, tokens) and not be empty, got {tuple(ids.shape)}.")
    mask = given.get("attention_mask")
    if mask is None:
        # As `generate` infers it.
        padding, ends = model.generation_config.pad_token_id, _end_tokens(model, {})
        mask = torch.ones_like(ids) if padding is None or padding in ends else (ids != padding).long()
    if not mask[:, -1].bool().all():
        rows = (mask[:, -1] == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"Rows {rows} are padded on the right, so the continuation would follow padding. "
            "Pad on the left: tokenizer.padding_side = 'left'."
        )
    return {"input_ids": ids, "attention_mask": mask}


def _end_tokens(model: PreTrainedModel, generate_kwargs: dict[str, Any]) -> list[int]:
    config = generate_kwargs.get("generation_config") or model.generation_config
    ends = generate_kwargs.get("eos_token_id", config.eos_token_id)
    if torch.is_tensor(ends):
        ends = ends.tolist()
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _ended(model: PreTrainedModel, new: torch.Tensor, generate_kwargs: dict[str, Any]) -> torch.Tensor:
    """Which of the new tokens `(batch, new)` come after the end of their continuation."""
    ends = _end_tokens(model, generate_kwargs)
    config = generate_kwargs.get("generation_config") or model.generation_config
    padding = generate_kwargs.get("pad_token_id", config.pad_token_id)
    is_end = torch.isin(new, torch.tensor(ends, dtype=new.dtype, device=new.device))
    ended = is_end.long().cumsum(-1) - is_end.long() > 0
    if padding is not None and padding not in ends:
        # A continuation may also stop by other criteria, and is filled up then.
        ended |= (new == padding).flip(-1).long().cumprod(-1).bool().flip(-1)
    return ended
