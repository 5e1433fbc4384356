"""A sequence classifier as a function of its word embeddings, and the embeddings of the reference input."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from bcos_transformers.evaluation.baselines.base import Batch
from bcos_transformers.evaluation.baselines.cost import uncounted

BASELINES = ("mask", "pad", "zero")


class EmbeddedModel(nn.Module):
    """The logit of a class as a function of the word embeddings; everything else comes from the original token ids.

    The model is given its ids as always, and a hook exchanges what the input embeddings make of them. So positions that are
    derived from ids (RoBERTa) and the token that the head reads (decoders: the last that is not padding) stay what they
    are whatever the embeddings are.

    Args:
        model: a sequence classifier.
        names: of the model inputs, in the order in which `forward` gets them.

    Attributes:
        logits: `(rows,)`, what the last call returned, without its graph.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.logits: torch.Tensor | None = None
        self._one_at_a_time = getattr(model.config, "pad_token_id", None) is None

    def forward(self, embeddings: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        """Logits `(rows,)` in at least float32 for embeddings `(rows, tokens, hidden)`, inputs and `(rows,)` classes."""
        size = 1 if self._one_at_a_time else len(embeddings)
        logits = torch.cat(
            [
                self._logits(embeddings[i : i + size], [value[i : i + size] for value in values])
                for i in range(0, len(embeddings), size)
            ]
        )
        self.logits = logits.detach()
        return logits

    def _logits(self, embeddings: torch.Tensor, values: list[torch.Tensor]) -> torch.Tensor:
        *inputs, target = values
        with replaced_output(self.model.get_input_embeddings(), embeddings):
            logits = self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=True).logits
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return wide.gather(-1, target.to(wide.device)[:, None])[:, 0]


class EmbeddedBatch:
    """A batch whose words are embedded, beside the reference input.

    In the reference every token that is not special is exchanged; special tokens and padding stay.

    Args:
        model: a sequence classifier.
        tokenizer: its tokenizer.
        batch: the batch.
        baseline: what other tokens become: `"mask"` token, `"pad"` token, or embeddings that are `"zero"`.

    Attributes:
        function: the classifier, for captum.
        embeddings: `(batch, tokens, hidden)`, in at least float32.
        reference: shaped like `embeddings`.
        arguments: what `function` takes after the embeddings.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, batch: Batch, baseline: str | None = "mask"
    ) -> None:
        self.function = EmbeddedModel(model, tuple(batch.inputs))
        self.arguments = (*batch.inputs.values(), batch.target)
        ids = batch.inputs["input_ids"]
        embed = model.get_input_embeddings()
        with torch.no_grad():
            self.embeddings = _wide(embed(ids))
            if baseline == "zero":
                self.reference = self.embeddings.masked_fill(batch.maskable[..., None], 0.0)
            elif baseline is not None:
                exchanged = ids.masked_fill(batch.maskable, reference_token(tokenizer, baseline))
                self.reference = _wide(embed(exchanged))

    def difference(self) -> torch.Tensor:
        """Logits of the batch minus those of the reference, `(batch,)`."""
        with torch.no_grad(), uncounted():
            return self.function(self.embeddings, *self.arguments) - self.function(self.reference, *self.arguments)


def reference_token(tokenizer: PreTrainedTokenizerBase, baseline: str) -> int:
    """The token that stands for one that is missing.

    For `"mask"` the mask token; tokenizers without one have their unknown token, else padding, else the end of a text.

    Raises:
        ValueError: an unknown `baseline`, or the tokenizer has no such token.
    """
    if baseline not in BASELINES:
        raise ValueError(f"`baseline` must be one of {BASELINES}, got {baseline!r}.")
    kinds = ("mask", "unk", "pad", "eos") if baseline == "mask" else ("pad",)
    found = (getattr(tokenizer, f"{kind}_token_id") for kind in kinds)
    token = next((token for token in found if token is not None), None)
    if token is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has none of the tokens {kinds} to put in a token's place; gradient methods also take "
            "baseline='zero'."
        )
    return token


@contextmanager
def replaced_output(module: nn.Module, output: torch.Tensor) -> Iterator[None]:
    """Lets the first call of `module` return `output` instead, in the dtype of its own.

    Only the first: GPT-2 looks its token types up in the word embeddings as well.

    Raises:
        RuntimeError: the block has not called it, so that `output` had no effect.
    """
    used = []

    def hook(module: nn.Module, args: Any, own: torch.Tensor) -> torch.Tensor | None:
        if used:
            return None
        used.append(True)
        return output.to(own.dtype)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    if not used:
        raise RuntimeError("The model did not look its tokens up in model.get_input_embeddings().")


def _wide(embeddings: torch.Tensor) -> torch.Tensor:
    return embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32))
