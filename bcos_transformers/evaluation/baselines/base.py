"""What all attribution methods share: their interface, the checks of what they are given, and rows apart from each other."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bcos_transformers.data.masking import maskable_tokens
from bcos_transformers.evaluation.baselines.randomness import row_seed, seeded
from bcos_transformers.extras import require
from bcos_transformers.modeling.bcos_eval_mode import evaluation_mode

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Attribution(NamedTuple):
    """Scores of the tokens of a batch, float64 on the CPU.

    Attributes:
        scores: `(batch, tokens)`, 0 on padding.
        explained: `(batch,)`, what the scores of a text should sum to: the target's logit, or for methods with a
            reference input its logit minus that of the reference; None where nothing of the kind is claimed.
        residual: `(batch,)`, `explained` minus the sum of the scores, or None.
    """

    scores: torch.Tensor
    explained: torch.Tensor | None
    residual: torch.Tensor | None


@dataclass(frozen=True)
class Batch:
    """Checked inputs on the model's device.

    Attributes:
        inputs: `input_ids`, `attention_mask` and maybe `token_type_ids`, each `(batch, tokens)`.
        target: `(batch,)`.
        keys: of each row.
        real: `(batch, tokens)`, False on padding.
        maskable: `(batch, tokens)`, real tokens that are not special ones.
    """

    inputs: dict[str, torch.Tensor]
    target: torch.Tensor
    keys: tuple[int, ...]
    real: torch.Tensor
    maskable: torch.Tensor

    def __len__(self) -> int:
        return len(self.target)

    def rows(self, begin: int, end: int) -> "Batch":
        """Some of the rows, without the columns in which all of them have padding."""
        columns = int(self.real[begin:end].sum(-1).max())
        return Batch(
            {name: value[begin:end, :columns] for name, value in self.inputs.items()},
            self.target[begin:end],
            self.keys[begin:end],
            self.real[begin:end, :columns],
            self.maskable[begin:end, :columns],
        )


class AttributionMethod(ABC):
    """Scores the tokens of texts by what they do for a class of a sequence classifier.

    The model is used where it is and as it is: its mode, gradients and `requires_grad` are left as they were, and so is the
    global state of random generators. One call at a time per model: for the time of a call its input embeddings carry a hook.

    Args:
        model: a sequence classifier, B-cos or conventional.
        tokenizer: its tokenizer, which knows the special tokens and the mask token.
        seed: of methods that draw; others ignore it.

    Attributes:
        name: in `METHODS`.
        complete: whether the scores of a text are meant to sum to a known quantity, so that a residual means something.
        signed: whether scores tell for from against; otherwise they are never negative.
        row_by_row: whether texts are given to the method one by one, without padding.
    """

    name: ClassVar[str]
    complete: ClassVar[bool] = False
    signed: ClassVar[bool] = True
    row_by_row: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> None:
        self.model, self.tokenizer, self.seed = model, tokenizer, check_count("seed", seed, None)

    def models(self) -> tuple[PreTrainedModel, ...]:
        """The models whose forward passes the method runs, for `CostMeter`."""
        return (self.model,)

    def attribute(
        self, inputs: Mapping[str, torch.Tensor], target: torch.Tensor, keys: Sequence[int] | None = None
    ) -> Attribution:
        """Scores the tokens of a batch.

        A text's scores do not depend on the batch that it is in, nor on its place there if it has the same key.

        Args:
            inputs: `input_ids`, `attention_mask` and, where the model takes them, `token_type_ids`, each
                `(batch, tokens)`, padded on the right.
            target: `(batch,)`, the class of each text whose logit is explained.
            keys: an integer for every text, from which together with the seed its random numbers are derived; None
                counts the rows.

        Raises:
            TypeError: something is not a tensor, or of the wrong kind.
            ValueError: wrong shapes, padding on the left, an empty text or an unknown class; or logits or scores that are
                not finite.
        """
        device = self.model.get_input_embeddings().weight.device
        with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(self.model):
            batch = self._read(inputs, target, keys, device)
            scores = torch.zeros(batch.real.shape, dtype=torch.float64)
            explained = torch.zeros(len(batch), dtype=torch.float64) if self.complete else None
            # Classifiers of decoders that know no padding token take one text at a time.
            alone = self.row_by_row or getattr(self.model.config, "pad_token_id", None) is None
            step = 1 if alone else max(1, len(batch))
            for begin in range(0, len(batch), step):
                part = batch.rows(begin, begin + step)
                with seeded(row_seed(self.seed, part.keys[0]), device):
                    found, value = self._scores(part)
                found = found.detach().masked_fill(~part.real.to(found.device), 0.0)
                scores[begin : begin + step, : found.shape[1]] = found.double().cpu()
                if explained is not None:
                    explained[begin : begin + step] = value.detach().double().cpu()
        self._check_finite(scores, explained)
        return Attribution(scores, explained, None if explained is None else explained - scores.sum(-1))

    @abstractmethod
    def _scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores `(batch, tokens)`, and what they should sum to if the method is complete.

        Gradients are enabled, and random generators are seeded for the first row.
        """

    def _read(self, inputs: Any, target: Any, keys: Any, device: torch.device) -> Batch:
        unknown = [name for name in inputs if name not in INPUTS]
        if unknown or "input_ids" not in inputs:
            raise ValueError(f"`inputs` has {INPUTS[0]!r} and maybe {INPUTS[1:]}, got {sorted(map(str, inputs))}.")
        for name, value in {**inputs, "target": target}.items():
            if not torch.is_tensor(value) or value.is_floating_point() or value.is_complex():
                raise TypeError(f"`{name}` must be a tensor of integers, got {getattr(value, 'dtype', type(value))}.")
        ids = inputs["input_ids"]
        if ids.dim() != 2:
            raise ValueError(f"`input_ids` must be (batch, tokens), got {tuple(ids.shape)}.")
        values = {"attention_mask": torch.ones_like(ids), **inputs}
        for name, value in values.items():
            if value.shape != ids.shape:
                raise ValueError(
                    f"`{name}` must have the shape of `input_ids`, {tuple(ids.shape)}, got {tuple(value.shape)}."
                )
        # Tensors made under `torch.inference_mode()` cannot take part in a gradient; their copies can.
        values = {name: (v.clone() if v.is_inference() else v).to(device) for name, v in values.items()}
        real = values["attention_mask"] != 0
        if len(ids) and not bool(real.any(-1).all()):
            row = int((~real.any(-1)).int().argmax())
            raise ValueError(f"Text {row} has no tokens, so there is nothing to explain.")
        if bool((real[:, 1:] & ~real[:, :-1]).any()):
            raise ValueError("Texts must be padded on the right: tokenizer.padding_side = 'right'.")
        if target.shape != ids.shape[:1]:
            raise ValueError(f"`target` must be ({len(ids)},), a class for every text, got {tuple(target.shape)}.")
        labels = getattr(self.model.config, "num_labels", None)
        if labels is not None and len(target) and not (int(target.min()) >= 0 and int(target.max()) < labels):
            raise ValueError(f"`target` must lie in [0, {labels}), got {target.tolist()}.")
        keys = tuple(range(len(ids)) if keys is None else map(int, keys))
        if len(keys) != len(ids):
            raise ValueError(f"{len(ids)} texts need as many `keys`, got {len(keys)}.")
        maskable = maskable_tokens(self.tokenizer, values["input_ids"], values["attention_mask"])
        order = [name for name in INPUTS if name in values]
        target = (target.clone() if target.is_inference() else target).long().to(device)
        return Batch({name: values[name] for name in order}, target, keys, real, maskable)

    def _check_finite(self, scores: torch.Tensor, explained: torch.Tensor | None) -> None:
        for what, values in (("scores", scores), ("logits", explained)):
            if values is not None and not torch.isfinite(values).all():
                row = int((~torch.isfinite(values.reshape(len(values), -1)).all(-1)).int().argmax())
                raise ValueError(
                    f"The {what} that {self.name} finds for text {row} are not finite. Known causes: weights that are NaN, "
                    f"and overflow in half precision (the model's dtype is {getattr(self.model, 'dtype', 'unknown')})."
                )


def captum_attr() -> Any:
    """The module of captum's methods.

    Raises:
        ImportError: captum is not installed.
    """
    return require("captum.attr", "eval")


def check_count(name: str, value: Any, least: int | None) -> int:
    """Refuses what is no integer or too small.

    Raises:
        ValueError: it is.
    """
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        wanted = "an integer" if least is None else f"an integer of at least {least}"
        raise ValueError(f"`{name}` must be {wanted}, got {value!r}.")
    return value
