"""The pipeline `bcos-text-classification`: labels and scores as from `text-classification`, each with its explanation."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TextClassificationPipeline

from .bcos_inputs import token_limit
from .bcos_targets import class_indices, index_of_label
from .bcos_text_units import check_granularity, check_knows_words, text_units, tokens_as_text

logger = logging.getLogger(__name__)

TASK = "bcos-text-classification"
FORMAT = "bcos-text-explanation/1"
ADDED = ("explain", "target", "contrast", "granularity")


@dataclass(frozen=True)
class _ReadText:
    """What the model reads of a text, and where each of its tokens, without padding, comes from."""

    texts: tuple[str, ...]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]
    segments: list[int | None]
    has_words: bool
    truncated: bool


class BcosTextClassificationPipeline(TextClassificationPipeline):
    """Text classification with exact explanations.

    Takes and returns what transformers' `text-classification` pipeline does; each label gets an `"explanation"` as well,
    a dict of plain values: `words` with their `scores`, `special_tokens_score`, `logit`, `residual` and more. It is what
    `bcos_transformers.TextExplanation.from_dict` reads. `sum(scores) + special_tokens_score + residual == logit`
    (arXiv 2502.12992, section 3.3).

    Texts that are longer than the model reads are cut, with a warning and `explanation["truncated"]`, unless
    `truncation=False` is given.

    Raises:
        TypeError: the model is not a B-cos model for sequence classification.
        ValueError: the tokenizer knows no words; it comes from a folder that holds none.

    Example:
        >>> import bcos_transformers  # or trust_remote_code=True
        >>> classify = pipeline("bcos-text-classification", model="org/bcos-bert-sst2")
        >>> classify("a gripping, funny film")[0]["explanation"]["scores"]
    """

    def __init__(self, **kwargs: Any) -> None:
        model = kwargs.get("model")
        if getattr(getattr(model, "config", None), "model_type", None) == "proto-lm":
            raise TypeError(
                f"bcos-text-classification is for B-cos models; {type(model).__name__} classifies by prototypes. Use "
                'pipeline("text-classification"), and for explanations bcos_transformers.ProtoExplainer(model, tokenizer).'
            )
        if getattr(model, "explanation_task", None) != "sequence-classification":
            raise TypeError(
                f"bcos-text-classification is for B-cos models for sequence classification, got {type(model).__name__}. "
                "Convert a conventional model with bcos_transformers.from_pretrained_bcos(name, "
                "task='sequence-classification') and fine-tune it; or use the pipeline 'text-classification', which "
                "explains nothing."
            )
        super().__init__(**kwargs)
        check_knows_words(self.tokenizer)

    def check_model_type(self, supported_models: list[str] | dict) -> None:
        """Nothing to check: `__init__` has refused other models."""

    def __call__(self, inputs: Any, **kwargs: Any) -> list[Any]:
        """Classifies and explains.

        Args:
            inputs: a text, a dict with `text` and `text_pair`, a list of those, a data set or a generator.
            **kwargs: arguments of the `text-classification` pipeline (`top_k`, `function_to_apply`, `batch_size`, those
                of the tokenizer), and
                `explain` (default True): whether to explain;
                `target`: labels to return and explain, instead of all: an index, a name, a list of those, or `"all"`;
                `contrast`: `"mean"` or a label whose logit is subtracted from the explained one;
                `granularity`: `"word"` (default), `"token"` or `"sentence"`.

        Returns:
            A list of dicts `label`, `score` and `explanation`, or with several inputs and `top_k` or `target` a list of
            such lists, sorted by score.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        if kwargs.get("target") is not None:
            kwargs.setdefault("top_k", None)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        given = {name: kwargs.pop(name) for name in ADDED if name in kwargs}
        if not isinstance(given.get("explain", True), bool):
            raise TypeError(f"`explain` must be True or False, got {given['explain']!r}.")
        if "granularity" in given:
            check_granularity(given["granularity"])
        if given.get("target") is not None:
            kwargs.setdefault("top_k", None)
            self._indices(given["target"], "target")
        if given.get("contrast") not in (None, "mean"):
            self._indices(given["contrast"], "contrast")
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        forward = {**forward, **{name: given[name] for name in ("explain", "target", "contrast") if name in given}}
        if "top_k" in postprocess:
            forward["top_k"] = postprocess["top_k"]
        return preprocess, forward, {**postprocess, **given}

    def preprocess(self, inputs: Any, **tokenizer_kwargs: Any) -> dict[str, Any]:
        options = {"truncation": True, **tokenizer_kwargs}
        if options["truncation"] and options.get("max_length") is None:
            options["max_length"] = self._token_limit()
        if options.get("max_length") is None and options["truncation"] is True:
            del options["truncation"]
        with _same_truncation(self.tokenizer):
            encoded = super().preprocess(inputs, **options)
        if len(encoded["input_ids"]) != 1:
            raise ValueError(
                "A text became several windows. This pipeline explains texts that the model reads at once; "
                "bcos_transformers.BcosExplainer(…, stride=…) explains long ones."
            )
        limit, length = self._token_limit(), encoded["input_ids"].shape[1]
        if limit is not None and length > limit:
            raise ValueError(
                f"A text has {length} tokens, but the model reads {limit}. Leave `truncation` on, or explain it in windows "
                "with bcos_transformers.BcosExplainer(…, stride=…)."
            )
        return {**encoded, "read_text": self._read(_texts(inputs), encoded)}

    def _forward(
        self,
        model_inputs: dict[str, Any],
        explain: bool = True,
        target: Any = None,
        contrast: Any = None,
        top_k: int | None = 1,
    ) -> Any:
        inputs = {name: value for name, value in model_inputs.items() if name != "read_text"}
        if not explain and target is None:
            return super()._forward(inputs)
        rows = len(inputs["input_ids"])
        if target is not None:
            targets = self._indices(target, "target").expand(rows, -1)
        else:
            targets = self._largest(super()._forward(dict(inputs)).logits, top_k)
        result = {"targets": targets}
        if explain:
            foil = contrast if contrast in (None, "mean") else int(self._indices(contrast, "contrast"))
            found = self.model.explain(
                **inputs, target=targets, contrast=foil, allow_large=target is not None or top_k is not None
            )
            result = {
                "logits": found.logits.detach(),
                **result,
                "values": found.values.detach(),
                "contributions": found.contributions,
                "attention_mask": inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])),
                "read_text": model_inputs["read_text"],
            }
        else:
            result = {"logits": super()._forward(dict(inputs)).logits, **result}
        return result

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        function_to_apply: Any = None,
        top_k: int | None = 1,
        _legacy: bool = True,
        explain: bool = True,
        target: Any = None,
        contrast: Any = None,
        granularity: str = "word",
    ) -> Any:
        if not explain and target is None:
            return super().postprocess(model_outputs, function_to_apply, top_k, _legacy)
        every = super().postprocess(model_outputs, function_to_apply, top_k=None, _legacy=True)
        answers = []
        for place, index in enumerate(model_outputs["targets"][0].tolist()):
            answers.append(dict(every[index]))
            if explain:
                answers[-1]["explanation"] = self._explanation(model_outputs, place, index, contrast, granularity)
        answers.sort(key=lambda answer: -answer["score"])
        return answers[0] if top_k == 1 and _legacy else answers[:top_k]

    def _explanation(
        self, outputs: dict[str, Any], place: int, index: int, contrast: Any, granularity: str
    ) -> dict[str, Any]:
        """The explanation of one label in plain values, as `TextExplanation.to_dict` writes them."""
        read: _ReadText = outputs["read_text"]
        scores = outputs["contributions"][0, place][outputs["attention_mask"][0].bool()].tolist()
        granularity = granularity if read.has_words else "token"
        units = text_units(read.texts, read.offsets, read.word_ids, read.segments, granularity)
        sums, special = units.sums(scores)
        logit = outputs["values"][0, place].item()
        names = self.model.config.id2label
        foil = contrast if contrast in (None, "mean") else names[int(self._indices(contrast, "contrast"))]
        return {
            "format": FORMAT,
            "text": read.texts[0],
            "words": [read.texts[s][a:b] for s, (a, b) in zip(units.segments, units.spans, strict=True)],
            "offsets": [list(span) for span in units.spans],
            "scores": sums,
            "special_tokens_score": special,
            "target": index,
            "label": str(names[index]),
            "logit": logit,
            "probability": self._probability(outputs["logits"][0], index),
            "residual": logit - (sum(sums) + special),
            "tokens": read.tokens,
            "token_scores": scores,
            "unit_of_token": units.of_token,
            "segments": units.segments,
            "text_pair": read.texts[1] if len(read.texts) == 2 else None,
            "outside_score": 0.0,
            "contrast": foil,
            "position": None,
            "task": self.model.explanation_task,
            "granularity": granularity,
            "truncated": read.truncated,
            "windows": [],
        }

    def _read(self, texts: tuple[str, ...], encoded: Any) -> _ReadText:
        ids = encoded["input_ids"][0].tolist()
        kept = [i for i, real in enumerate(encoded.get("attention_mask", torch.ones(1, len(ids)))[0].tolist()) if real]
        if self.tokenizer.is_fast:
            (encoding,) = encoded.encodings
            truncated = bool(encoding.overflowing)
            per_token = [encoding.tokens, encoding.offsets, encoding.word_ids, encoding.sequence_ids]
            tokens, offsets, words, segments = ([values[i] for i in kept] for values in per_token)
        else:
            logger.warning_once(
                f"{type(self.tokenizer).__name__} does not know where in the text its tokens come from, so explanations "
                "show the tokens themselves instead of the words."
            )
            ids = [ids[i] for i in kept]
            special = self.tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
            tokens, shown = self.tokenizer.convert_ids_to_tokens(ids), [not s for s in special]
            truncated = len(ids) < len(self.tokenizer(*texts, verbose=False)["input_ids"])
            text, offsets = tokens_as_text(tokens, shown)
            texts, segments = (text,), [0 if visible else None for visible in shown]
            words = [i if visible else None for i, visible in enumerate(shown)]
        if truncated:
            logger.warning("A text has more tokens than the %d that are read and was cut.", len(kept))
        return _ReadText(texts, tokens, offsets, words, segments, self.tokenizer.is_fast, truncated)

    def _token_limit(self) -> int | None:
        limits = (token_limit(self.model), self.tokenizer.model_max_length)
        # Tokenizers that know no limit say 1e30.
        return min((int(limit) for limit in limits if limit is not None and limit < 10**9), default=None)

    def _indices(self, target: Any, name: str) -> torch.Tensor:
        """Labels by index or name, `(1, targets)`."""
        config = self.model.config
        several = target if isinstance(target, (list, tuple)) else [target]
        if not several or any(one is None for one in several):
            raise ValueError(f"`{name}` must be a label, a list of labels or 'all', got {target!r}.")
        blank = torch.zeros(1, config.num_labels)
        found = torch.cat([class_indices(one, blank, name, index_of_label(config)) for one in several], dim=-1)
        if found.unique().numel() < found.numel():
            raise ValueError(f"`{name}` names a label twice: {target!r}.")
        return found

    def _largest(self, logits: torch.Tensor, top_k: int | None) -> torch.Tensor:
        """The labels with the largest scores, as many as are returned; of equal ones the first, as in transformers."""
        return logits.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]

    def _probability(self, logits: torch.Tensor, index: int) -> float | None:
        config = self.model.config
        if config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1):
            return None
        single = config.problem_type == "multi_label_classification" or config.num_labels == 1
        return (logits.float().sigmoid() if single else logits.float().softmax(-1))[index].item()


@contextmanager
def _same_truncation(tokenizer: Any) -> Iterator[None]:
    """Leaves the user's tokenizer as it was: fast ones remember how they last cut and padded a text."""
    backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    if backend is None:
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
        backend.enable_padding(**padding) if padding else backend.no_padding()


def _texts(inputs: Any) -> tuple[str, ...]:
    """The text or the two texts of a pair."""
    if isinstance(inputs, dict):
        texts = (inputs.get("text"), inputs.get("text_pair"))
    elif isinstance(inputs, list):
        texts = tuple(inputs[0])
    else:
        texts = (inputs, None)
    texts = tuple(text for text in texts if text is not None)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"A text is a string, or a dict with `text` and `text_pair`, got {inputs!r:.80}.")
    return texts
