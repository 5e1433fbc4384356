"""Texts in, explanations by prototypes out: which training texts a text looks like, and what each adds to the logit."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from bcos_transformers.explanations.encoding import EncodedText, TextEncoder, cut, padded
from bcos_transformers.explanations.inputs import TextInputs, check_model_and_tokenizer, has_prototypes, read_inputs
from bcos_transformers.explanations.targets import TargetNames, Targets, probabilities
from bcos_transformers.modeling.bcos_text_units import TextUnits, text_units
from bcos_transformers.modeling.modeling_proto import ProtoForSequenceClassification
from bcos_transformers.modeling.proto_explanation import ProtoExplanation
from bcos_transformers.prototypes.text_explanation import PrototypeExplanation, PrototypeShare
from bcos_transformers.prototypes.texts import position_limit

logger = logging.getLogger(__name__)

MAX_WITHOUT_LIMIT = 100_000  # tokenizers that know no limit say 1e30


class ProtoExplainer:
    """Explains predictions of a model with prototypes by the training texts that a text looks like.

    Shares of prototypes are exact: weight × similarity (arXiv 2311.01732, section 3.1). Over a B-cos encoder with
    `distance="cosine"` each share is also split, exactly, over the words. Neither model nor tokenizer is changed.

    Args:
        model: a `ProtoForSequenceClassification`.
        tokenizer: its tokenizer.
        max_length: tokens a text may have; at most what model and tokenizer permit, which is the default. The end of a
            longer text is cut, with a warning and `explanation.truncated`.
        batch_size: texts a batch; texts are sorted by length first, and returned in their order.
        top_k: how many prototypes an explanation names; the others are summed.
        progress: show a progress bar; None shows one in terminals, for work of several batches.

    Raises:
        TypeError: the model has no prototypes, or the tokenizer is none.
        ValueError: the tokenizer does not fit the model, or an option is out of range.

    Example:
        >>> explainer = ProtoExplainer(model, tokenizer)
        >>> share = explainer("a gripping, funny film").top(1)[0]
        >>> share.text, share.label, share.contribution
        ('funny and gripping from the start', 'positive', 1.93)
    """

    def __init__(
        self,
        model: ProtoForSequenceClassification,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        batch_size: int = 32,
        top_k: int = 5,
        progress: bool | None = None,
    ) -> None:
        if not has_prototypes(model):
            advice = (
                "it is a B-cos model, which BcosExplainer explains"
                if hasattr(model, "explain")
                else "bcos_transformers.from_pretrained_proto(name) builds a model with prototypes over an encoder"
            )
            raise TypeError(f"{type(model).__name__} has no prototypes to explain texts by; {advice}.")
        check_model_and_tokenizer(model, tokenizer)
        options = {"max_length": 1 if max_length is None else max_length, "batch_size": batch_size, "top_k": top_k}
        for name, value in options.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.top_k, self.progress = batch_size, top_k, progress
        limits = (max_length, position_limit(model), tokenizer.model_max_length)
        self.max_length = min((n for n in limits if n is not None and n < MAX_WITHOUT_LIMIT), default=None)
        takes_types = "token_type_ids" in inspect.signature(model.backbone.forward).parameters
        self._encoder = TextEncoder(tokenizer, takes_types)
        self._names = TargetNames(model, tokenizer)

    def __call__(self, texts: Any, *, target: Any = None, contrast: Any = None) -> Any:
        """Explains a text or several.

        Args:
            texts: a string, a list (or data set column) of strings, or the tokenizer's output.
            target: what to explain: None (the prediction), a class by index or name, or a tensor `(texts,)` with a class
                for each text. Several classes are asked for one after the other.
            contrast: `"mean"` (minus the mean of all logits), or a class whose logit is subtracted, by index or name.

        Returns:
            A `PrototypeExplanation`, or a list of them where `texts` is a list.

        Raises:
            TypeError: the input is no text, or a pair of texts.
            ValueError: a text without words, an unknown class, or several targets.
        """
        inputs = read_inputs(texts)
        rows = self._encode(inputs)
        targets, contrast = self._read_target(target, len(rows)), self._names.read_contrast(contrast)
        found: list[PrototypeExplanation | None] = [None] * len(rows)
        disable = (None if len(rows) > 2 * self.batch_size else True) if self.progress is None else not self.progress
        with tqdm(total=len(rows), desc="Explaining", unit="text", disable=disable) as bar:
            for batch in self._batches(rows):
                explained = self._explain([rows[i] for i in batch], targets.of(batch), contrast)
                for i, explanation in zip(batch, explained, strict=True):
                    found[i] = explanation
                bar.update(len(batch))
        return found[0] if inputs.single else found

    def _encode(self, inputs: TextInputs) -> list[EncodedText]:
        for number, item in enumerate(inputs.items):
            if isinstance(item, tuple):
                raise TypeError(
                    f"Prototypes are single texts, so pairs cannot be compared with them, got a pair (entry {number})."
                )
        rows = []
        for number, encoded in enumerate(inputs.encode(self._encoder, range(len(inputs)))):
            if all(segment is None for segment in encoded.segments):
                raise ValueError(
                    f"Text {number} has no words to compare with prototypes: {encoded.texts[0]!r:.80}. Leave it out."
                )
            rows.append(encoded if self.max_length is None else cut(encoded, self.max_length))
        shortened = sum(row.truncated for row in rows)
        if shortened:
            logger.warning(
                "%d of %d texts have more than %d tokens and were cut.", shortened, len(rows), self.max_length
            )
        return rows

    def _read_target(self, target: Any, texts: int) -> Targets:
        targets = None if isinstance(target, (list, tuple)) else self._names.read(target, texts)
        if targets is None or targets.several:
            raise ValueError(
                "An explanation by prototypes is of one target: ask for several one after the other. A tensor of shape "
                f"(texts,) holds a target for each text. Got {target!r:.80}."
            )
        return targets

    def _batches(self, rows: Sequence[EncodedText]) -> Iterator[list[int]]:
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        for begin in range(0, len(order), self.batch_size):
            yield order[begin : begin + self.batch_size]

    def _explain(self, rows: Sequence[EncodedText], target: Any, contrast: Any) -> list[PrototypeExplanation]:
        model = self.model
        known = (model.config.pad_token_id, self.tokenizer.pad_token_id)
        padding = next((token for token in known if token is not None), 0)
        inputs = padded(rows, padding, model.device)
        split = model.splits_over_tokens
        out = model.explain(**inputs, target=target, contrast=contrast, top_k=self.top_k if split else None)
        probability = None if model.config.is_regression else probabilities(model, out, inputs["attention_mask"])
        weights = self._weights(out, contrast)
        name = self._names.contrast_name(contrast)
        return [
            self._explanation(
                encoded,
                out,
                row,
                weights[row].tolist(),
                None if probability is None else probability[row].item(),
                name,
            )
            for row, encoded in enumerate(rows)
        ]

    def _weights(self, out: ProtoExplanation, contrast: Any) -> torch.Tensor:
        """`(batch, prototypes)`, the weight of each similarity in the explained quantity."""
        weight, _ = self.model.last_layer(out.similarities)
        weights = weight[out.target[:, 0]]
        if contrast is None:
            return weights.double()
        return (weights - (weight.mean(0) if isinstance(contrast, str) else weight[contrast])).double()

    def _explanation(
        self,
        encoded: EncodedText,
        out: ProtoExplanation,
        row: int,
        weights: list[float],
        probability: float | None,
        contrast: str | None,
    ) -> PrototypeExplanation:
        granularity = "word" if encoded.has_words else "token"
        units = text_units(encoded.texts, encoded.offsets, encoded.word_ids, encoded.segments, granularity)
        contributions = out.contributions[row, 0].double()
        if out.token_prototypes is None:
            chosen = contributions.abs().topk(min(self.top_k, len(contributions))).indices.tolist()
        else:
            chosen = out.token_prototypes[row, 0].tolist()
        shares = []
        for place, number in enumerate(chosen):
            share = {
                "similarity": out.similarities[row, number].item(),
                "weight": weights[number],
                "contribution": contributions[number].item(),
            }
            if out.token_contributions is not None:
                tokens = out.token_contributions[row, 0, place, : len(encoded)].double().tolist()
                share |= _split(units, tokens, share["contribution"], "residual")
            shares.append(PrototypeShare(number=number, **self._identity(number), **share))
        kept = set(chosen)
        others = sum(value for number, value in enumerate(contributions.tolist()) if number not in kept)
        logit, bias = out.values[row, 0].item(), out.bias[row, 0].item()
        whole = {}
        if out.input_contributions is not None:
            tokens = out.input_contributions[row, 0, : len(encoded)].double().tolist()
            whole = _split(units, tokens, logit - bias, "words_residual")
        token_attention = out.token_attention[row, : len(encoded)].double().tolist()
        attention, special = units.sums(token_attention)
        target = out.target[row, 0].item()
        return PrototypeExplanation(
            text=encoded.texts[0],
            words=[encoded.texts[0][begin:end] for begin, end in units.spans],
            offsets=units.spans,
            attention=attention,
            special_tokens_attention=special,
            prototypes=shares,
            other_prototypes=len(contributions) - len(shares),
            other_prototypes_contribution=others,
            bias=bias,
            target=target,
            label=self._names.name(target),
            logit=logit,
            probability=probability,
            residual=logit - bias - others - sum(share.contribution for share in shares),
            tokens=encoded.tokens,
            token_attention=token_attention,
            unit_of_token=units.of_token,
            contrast=contrast,
            distance=self.model.config.distance,
            granularity=granularity,
            truncated=encoded.truncated,
            **whole,
        )

    def _identity(self, number: int) -> dict[str, Any]:
        """Text, label and index of a prototype."""
        config = self.model.config
        if config.prototypes is not None:
            known = config.prototypes[number]
            label = known["label"]
            label = f"{label:g}" if isinstance(label, (int, float)) else str(label)
            return {"text": known["text"], "label": label, "index": known.get("index")}
        group = number // config.prototypes_per_class
        if not config.is_regression:
            label = str(config.id2label[group])
        elif config.regression_values is None:
            label = self._names.name(0)
        else:
            label = f"{config.regression_values[group]:g}"
        return {"text": None, "label": label, "index": None}


def _split(units: TextUnits, tokens: list[float], whole: float, residual: str) -> dict[str, Any]:
    """What the words contribute to a share or a logit, and under the name `residual` what they miss it by."""
    scores, special = units.sums(tokens)
    return {
        "scores": scores,
        "special_tokens_score": special,
        "token_scores": tokens,
        residual: whole - sum(scores) - special,
    }
