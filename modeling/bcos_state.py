"""Explanation mode: what the layers need to know about the explanation that their own thread is computing."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class ExplanationState(threading.local):
    """What a layer needs to know about the explanation that its own thread is computing."""

    active: bool = False
    recorder: "EmbeddingRecorder | None" = None
    first_token_only: bool = False


STATE = ExplanationState()


class EmbeddingRecorder:
    """Collects the embeddings of one forward pass; the word embeddings become the leaf of the gradient.

    Args:
        model: record the embeddings of this model only, not of others that run inside its forward pass.

    Attributes:
        leaf (`torch.Tensor | None`): word embeddings, `(batch, tokens, hidden)`, requires grad.
        parts (`dict[str, torch.Tensor]`): every recorded embedding by part name, detached; broadcastable to the leaf.
        output_layer (`nn.Module | None`): output layer of a language model; its logits then have no graph.
        output_input (`torch.Tensor | None`): what it was given, `(batch, tokens, hidden)`, in the graph.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self.leaf: torch.Tensor | None = None
        self.parts: dict[str, torch.Tensor] = {}
        self.output_layer: nn.Module | None = None
        self.output_input: torch.Tensor | None = None
        self._own = set() if model is None else {id(module) for module in model.modules()}

    def listens_to(self, module: nn.Module) -> bool:
        """Whether `module` belongs to the model that is explained; any does if no model was named."""
        return not self._own or id(module) in self._own

    def record(self, part: str, embeddings: torch.Tensor) -> torch.Tensor:
        """Remembers `embeddings` and returns what the forward pass shall go on with."""
        value = embeddings.detach()
        if part == "word" and self.leaf is not None:
            part = "token_type"  # GPT-2 looks its token types up in the word embeddings
        self.parts[part] = value
        if part != "word":
            return value
        self.leaf = value.clone().requires_grad_(True)
        return self.leaf

    def record_output(self, layer: nn.Module, input: torch.Tensor) -> None:
        """Remembers the output layer, so that single logits can be differentiated without all the others."""
        self.output_layer, self.output_input = layer, input


@contextmanager
def explanation_mode(recorder: EmbeddingRecorder | None = None, first_token_only: bool = False) -> Iterator[None]:
    """Freezes the dynamic matrices of all B-cos layers for the current thread.

    Re-entrant, exception-safe, and invisible to other threads. Forward values do not change; only what is
    differentiated does. The backward pass may run after the block has been left.

    Args:
        recorder: if given, embedding layers hand their outputs to it.
        first_token_only: promise that only the first token of the last layer's output will be differentiated, which
            spares that layer the work for the others.
    """
    before = (STATE.active, STATE.recorder, STATE.first_token_only)
    STATE.active, STATE.recorder, STATE.first_token_only = True, recorder, first_token_only
    try:
        yield
    finally:
        STATE.active, STATE.recorder, STATE.first_token_only = before


def is_explaining() -> bool:
    """Whether explanation mode is on in the current thread."""
    return STATE.active
