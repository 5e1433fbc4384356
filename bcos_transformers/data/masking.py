"""Random masking of training texts, so that a model knows inputs of which parts are missing."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, TrainerCallback

REPLACEMENTS = ("mask", "attention")


class MaskingCollator(TrainerCallback):
    """Pads a batch and hides a random share of the tokens of some of its texts.

    Each text is picked with probability `share`; a picked text gets a ratio drawn uniformly from [0, 1], and that share
    of its tokens, special ones apart, is hidden. A model that never saw such texts answers perturbation metrics
    (comprehensiveness, sufficiency) and occlusion with noise; see `docs/recipe.md`. Draws come from torch's global
    generator, which the `Trainer` seeds.

    Pass the same object as collator and as callback, and only the batches that the `Trainer` trains on have hidden tokens;
    evaluation before, during and after training sees whole texts:
    `Trainer(model, args, data_collator=collator, callbacks=[collator], ...)`. As a collator alone it hides tokens in every
    batch it is given.

    Args:
        tokenizer: pads, and knows which tokens are special; not changed.
        share: share of the texts of which tokens are hidden, in [0, 1].
        replacement: `"mask"` puts the tokenizer's mask token in a hidden token's place; `"attention"` takes it out of
            the attention mask instead, for tokenizers without a mask token.
        collator: what makes the batch; None is `DataCollatorWithPadding(tokenizer)`. Its batches must have `input_ids`.

    Raises:
        ValueError: `share` outside [0, 1], an unknown `replacement`, or `"mask"` without a mask token; when training
            begins: it is a callback, but the `Trainer` has another collator.

    Example:
        >>> collator = MaskingCollator(tokenizer)
        >>> Trainer(model, args, data_collator=collator, train_dataset=data, callbacks=[collator]).train()
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        share: float = 0.5,
        replacement: str = "mask",
        collator: Any = None,
    ) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"`share` is the share of texts that are masked, in [0, 1]; got {share!r}.")
        if replacement not in REPLACEMENTS:
            raise ValueError(f"`replacement` must be one of {REPLACEMENTS}, got {replacement!r}.")
        if replacement == "mask" and tokenizer.mask_token_id is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no mask token. Use replacement='attention', which hides tokens by the "
                "attention mask."
            )
        self.tokenizer, self.share, self.replacement = tokenizer, share, replacement
        self.collator = DataCollatorWithPadding(tokenizer) if collator is None else collator
        self.active, self._was_asked = True, False

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        self._was_asked = True
        batch = self.collator(features)
        if not self.active or self.share == 0.0:
            return batch
        hidden = self.draw(batch)
        if self.replacement == "mask":
            batch["input_ids"] = batch["input_ids"].masked_fill(hidden, self.tokenizer.mask_token_id)
        else:
            attention = batch.get("attention_mask")
            attention = torch.ones_like(batch["input_ids"]) if attention is None else attention
            batch["attention_mask"] = attention.masked_fill(hidden, 0)
        return batch

    def draw(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Which tokens are hidden, `(batch, tokens)`; special tokens and padding never are."""
        maskable = maskable_tokens(self.tokenizer, batch["input_ids"], batch.get("attention_mask"))
        rows = len(maskable)
        ratio = torch.rand(rows) * (torch.rand(rows) < self.share)
        count = (ratio * maskable.sum(-1).cpu()).round()
        order = torch.rand(maskable.shape).masked_fill(~maskable.cpu(), 2.0).argsort(-1).argsort(-1)
        return (order < count[:, None]).to(maskable.device)

    def on_init_end(self, args, state, control, **kwargs):
        self.active = False  # from now on the training batches alone

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        # Not by the events around evaluation: they do not tell of every one (several data sets, before the first step,
        # from other callbacks), and after a training that failed they do not come.
        self.active = False
        loader = getattr(train_dataloader, "base_dataloader", train_dataloader)  # accelerate's wrapper iterates that
        loader.collate_fn = _TrainingCollator(self, loader.collate_fn)


class _TrainingCollator:
    """What the training data loader calls in place of `collate`: `masking`, somewhere in it, hides tokens meanwhile."""

    def __init__(self, masking: MaskingCollator, collate: Any) -> None:
        self.masking, self.collate = masking, collate

    def __call__(self, features: Any) -> Any:
        masking = self.masking
        masking.active, masking._was_asked = True, False
        try:
            batch = self.collate(features)
        finally:
            masking.active = False
        if not masking._was_asked:
            raise ValueError(
                "This MaskingCollator is a callback of the Trainer, but not its collator, so it would hide nothing. "
                "Pass the same object as `data_collator` too."
            )
        return batch


def maskable_tokens(
    tokenizer: PreTrainedTokenizerBase, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Real tokens that are not special ones such as `[CLS]`, `[SEP]` and padding; the unknown token is no special one.

    Args:
        tokenizer: knows the special tokens.
        input_ids: `(batch, tokens)`.
        attention_mask: `(batch, tokens)`; None is all real.

    Returns:
        Booleans, `(batch, tokens)`.
    """
    roles = {role: token for role, token in tokenizer.special_tokens_map.items() if role != "unk_token"}
    unknown = tokenizer.unk_token if tokenizer.unk_token not in roles.values() else None  # GPT-2's ends texts as well
    special = tokenizer.convert_tokens_to_ids([t for t in tokenizer.all_special_tokens if t != unknown])
    maskable = ~torch.isin(input_ids, torch.tensor(special, device=input_ids.device, dtype=input_ids.dtype))
    return maskable if attention_mask is None else maskable & (attention_mask != 0)
