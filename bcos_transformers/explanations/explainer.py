"""Texts in, explanations of words out: the B-cos model's own contributions, summed over the tokens of each word."""

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bcos_transformers.explanations.assembly import Assembler, RowScores
from bcos_transformers.explanations.encoding import EncodedText, TextEncoder, cut, padded, windows
from bcos_transformers.explanations.inputs import TextInputs, check_model_and_tokenizer, has_prototypes, read_inputs
from bcos_transformers.explanations.targets import LANGUAGE_MODELS, TargetNames, Targets, probabilities
from bcos_transformers.loading import load_bcos_model
from bcos_transformers.modeling.bcos_inputs import token_limit
from bcos_transformers.modeling.bcos_text_units import check_granularity

logger = logging.getLogger(__name__)

BLOCK = 1024  # texts that are sorted by length, and whose explanations are held, at a time
MAX_LOGITS = 2**27  # of a language model's batch: one number for every token of the vocabulary at every position
MAX_WITHOUT_LIMIT = 100_000  # tokenizers that know no limit say 1e30


class BcosExplainer:
    """Explains the predictions of a B-cos model word by word.

    The contributions are exact (arXiv 2502.12992, section 3.3): those of a word's tokens are summed, so the total stays
    the logit. Neither model nor tokenizer is changed; several threads may share one explainer.

    Args:
        model: a B-cos model for sequence or token classification, question answering, masked or causal language
            modelling.
        tokenizer: its tokenizer.
        batch_size: texts a batch; texts are sorted by length first, and returned in their order.
        max_length: tokens a text may have; at most what model and tokenizer permit, which is the default. A longer text
            is cut, with a warning and `explanation.truncated`: its end, for causal language models its beginning.
        stride: read longer texts in windows instead that share so many tokens, as in transformers (classifiers only).
        granularity: `"token"`, `"word"` or `"sentence"`.
        chunk_size: targets one backward pass takes; bounds the memory.
        progress: show a progress bar; None shows one in terminals, for work of several batches.

    Raises:
        TypeError: the model is not a B-cos model with a head, or one with prototypes (`ProtoExplainer` explains those).
        ValueError: the tokenizer does not fit the model, or an option is out of range.

    Example:
        >>> explainer = BcosExplainer(model, tokenizer)
        >>> explanation = explainer("a gripping, funny film")
        >>> explanation.top(2)
        [WordScore(word='gripping,', score=1.2, offset=(2, 11)), WordScore(word='funny', score=0.8, offset=(12, 17))]
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        stride: int | None = None,
        granularity: str = "word",
        chunk_size: int = 16,
        progress: bool | None = None,
    ) -> None:
        if has_prototypes(model):
            raise TypeError(
                f"{type(model).__name__} classifies by prototypes: ProtoExplainer(model, tokenizer) explains its predictions."
            )
        check_model_and_tokenizer(model, tokenizer)
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("max_length", max_length, 1),
            ("stride", stride, 0),
        ):
            if name == "batch_size" or value is not None:
                _check_count(name, value, least)
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.chunk_size, self.progress = batch_size, chunk_size, progress
        self.granularity, self.stride = check_granularity(granularity), stride
        self.max_length = min(n for n in (max_length, *_limits(model, tokenizer)) if n is not None)
        self._accepts_types = "token_type_ids" in inspect.signature(_inner(model).forward).parameters
        self._encoder = TextEncoder(tokenizer, self._accepts_types)
        self._names = TargetNames(model, tokenizer)
        self._check_stride(stride)

    @classmethod
    def from_pretrained(cls, name_or_path: str, *, device: Any = None, **options: Any) -> "BcosExplainer":
        """Loads a saved B-cos model, for the task it was saved for, and its tokenizer.

        Args:
            name_or_path: directory or Hub id of a B-cos model.
            device: where to put it.
            **options: of `BcosExplainer`, and `revision`, `token`, `cache_dir` and `dtype` for loading.

        Raises:
            ValueError: it is not a B-cos model, or has no head.
        """
        loading = {
            k: options.pop(k) for k in ("revision", "token", "cache_dir", "dtype", "device_map") if k in options
        }
        model = load_bcos_model(name_or_path, **loading)
        files = {k: v for k, v in loading.items() if k not in ("dtype", "device_map")}
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **files)
        return cls(model if device is None else model.to(device), tokenizer, **options)

    def __call__(
        self,
        texts: Any,
        text_pair: Any = None,
        *,
        target: Any = None,
        contrast: Any = None,
        position: Any = None,
        granularity: str | None = None,
        stride: int | None = None,
        is_split_into_words: bool = False,
        allow_large: bool = False,
    ) -> Any:
        """Explains a text or several.

        Args:
            texts: a string, a pair of strings (a tuple), a list (or data set column) of those, a mapping with `text` and
                `text_pair`, the tokenizer's output, or with `is_split_into_words` a list of words or of such lists.
            text_pair: the second texts, shaped like `texts`.
            target: what to explain: None (the prediction; regression and multi-label: every output), a class by index or
                name, a token by id or text, `"start"`, `"end"` or `"span"` of an answer, `"all"`, or a list of those
                for every text. A tensor holds targets text by text, `(texts,)` or `(texts, targets)`.
            contrast: `"mean"`, or a foil that is subtracted: a class, a token, or for answers a position or a span.
            position: the token whose logit is explained; see `model.explain`. Token classification: an int, a list, or
                None for the first token of every word.
            granularity: see the class.
            stride: see the class.
            is_split_into_words: whether texts come as lists of words.
            allow_large: permit more than 1,000 targets a text.

        Returns:
            A `TextExplanation`, or a list of them where `texts` is a list. Token classification without a single
            `position`: for each text a list, one explanation a word.

        Raises:
            TypeError, ValueError: the input is none of these; see also `model.explain`.
        """
        options = locals()
        inputs = read_inputs(texts, text_pair, is_split_into_words)
        options = {
            name: options[name] for name in ("target", "contrast", "position", "granularity", "stride", "allow_large")
        }
        explained = list(self._explain_all(inputs, **options))
        return explained[0] if inputs.single else explained

    def iterate(self, texts: Iterable[Any], **options: Any) -> Iterator[Any]:
        """Explains many texts one after the other, in order, without holding more than a block of them.

        Args:
            texts: any iterable of texts, also one that never ends; `target` must not be a tensor.
            **options: of `__call__`.
        """
        block: list[Any] = []
        for text in texts:
            block.append(text)
            if len(block) == BLOCK:
                yield from self(block, **options)
                block = []
        yield from self(block, **options) if block else ()

    def _explain_all(
        self,
        inputs: TextInputs,
        target: Any,
        contrast: Any,
        position: Any,
        granularity: str | None,
        stride: int | None,
        allow_large: bool,
    ) -> Iterator[Any]:
        granularity = check_granularity(self.granularity if granularity is None else granularity)
        if stride is not None:
            _check_count("stride", stride, 0)
        self._check_stride(stride)
        stride = self.stride if stride is None else stride
        targets = self._names.read(target, len(inputs))
        contrast = self._names.read_contrast(contrast)
        with self._bar(len(inputs)) as bar:
            for begin in range(0, len(inputs), BLOCK):
                texts = range(begin, min(begin + BLOCK, len(inputs)))
                yield from self._explain_block(
                    inputs, texts, targets, contrast, position, granularity, stride, allow_large, bar
                )

    def _explain_block(
        self,
        inputs: TextInputs,
        texts: range,
        targets: Targets,
        contrast: Any,
        position: Any,
        granularity: str,
        stride: int | None,
        allow_large: bool,
        bar: tqdm,
    ) -> list[Any]:
        whole = inputs.encode(self._encoder, texts)
        rows: list[tuple[int, EncodedText]] = []
        for text, encoded in zip(texts, whole, strict=True):
            if not len(encoded):
                raise ValueError(f"Text {text} has no tokens, so there is nothing to explain: {encoded.texts!r}.")
            if stride is None:
                rows.append((text, cut(encoded, self.max_length, keep_end=self._names.task == "causal-lm")))
            else:
                rows += [(text, window) for window in windows(encoded, self.max_length, stride)]
        shortened = sum(row.truncated for _, row in rows)
        if shortened:
            advice = "" if self._names.task in LANGUAGE_MODELS else " `stride=` explains long texts in windows."
            logger.warning(
                "%d of %d texts have more than %d tokens and were cut.%s",
                shortened,
                len(texts),
                self.max_length,
                advice,
            )
        assemble = Assembler(self._names, granularity, targets.several, self._names.contrast_name(contrast))
        fixed = self._targets_of_windows(rows, targets)
        scores: list[RowScores | None] = [None] * len(rows)
        for batch in self._batches(rows, fixed):
            encoded = [rows[i][1] for i in batch]
            target = (
                torch.tensor([fixed[i] for i in batch])
                if batch[0] in fixed
                else targets.of([rows[i][0] for i in batch])
            )
            places = self._positions(encoded, position, assemble)
            batch_inputs = padded(encoded, self._padding(), self.model.device)
            out = self.model.explain(
                **batch_inputs,
                target=target,
                contrast=contrast,
                position=places,
                chunk_size=self.chunk_size,
                allow_large=allow_large,
            )
            known = probabilities(self.model, out, batch_inputs["attention_mask"])
            for place, i in enumerate(batch):
                scores[i] = RowScores.of(out, known, place, rows[i][1])
            bar.update(sum(i == 0 or rows[i - 1][0] != rows[i][0] for i in batch))
        return assemble.texts(whole, rows, scores, single_position=isinstance(position, int))

    def _targets_of_windows(self, rows: list[tuple[int, EncodedText]], targets: Targets) -> dict[int, list[int]]:
        """The predicted class of texts in several windows, by row: that of the windows' mean logits."""
        if targets.target is not None or targets.per_text is not None or self._names.task != "sequence-classification":
            return {}
        if self._names.every_output_by_default:
            return {}
        of_text: dict[int, list[int]] = {}
        for i, (text, _) in enumerate(rows):
            of_text.setdefault(text, []).append(i)
        split = [i for group in of_text.values() if len(group) > 1 for i in group]
        logits: dict[int, torch.Tensor] = {}
        with torch.inference_mode():
            for begin in range(0, len(split), self.batch_size):
                batch = split[begin : begin + self.batch_size]
                inputs = padded([rows[i][1] for i in batch], self._padding(), self.model.device)
                logits.update(zip(batch, _evaluated(self.model, inputs), strict=True))
        return {
            i: [int(torch.stack([logits[j] for j in group]).mean(0).argmax())]
            for group in of_text.values()
            if len(group) > 1
            for i in group
        }

    def _batches(self, rows: list[tuple[int, EncodedText]], fixed: Mapping[int, Any]) -> Iterator[list[int]]:
        """Rows of similar length together, those whose target is known already apart from the others."""
        order = sorted(range(len(rows)), key=lambda i: (i in fixed, -len(rows[i][1])))
        batch: list[int] = []
        for i in order:
            if batch and (len(batch) >= self._room(len(rows[batch[0]][1])) or (i in fixed) != (batch[0] in fixed)):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _room(self, tokens: int) -> int:
        """How many texts of this length one batch takes."""
        if self._names.task == "causal-lm" or self._names.task == "masked-lm":
            return max(1, min(self.batch_size, MAX_LOGITS // (tokens * self.model.config.vocab_size)))
        if self.model.config.pad_token_id is None:  # classifiers of decoders would not know where a text ends
            return 1 if self._names.task == "sequence-classification" else self.batch_size
        return self.batch_size

    def _positions(self, rows: Sequence[EncodedText], position: Any, assemble: Assembler) -> Any:
        if self._names.task != "token-classification" or position is not None:
            return position
        places = [assemble.first_tokens(row) for row in rows]
        for row, found in zip(rows, places, strict=True):
            if not found:
                raise ValueError(f"A text has no words, so there is no token to explain: {row.texts!r}.")
        most = max(map(len, places))
        filled = torch.tensor([found + [found[-1]] * (most - len(found)) for found in places])
        return list(filled.T)

    def _padding(self) -> int:
        known = (self.model.config.pad_token_id, self.tokenizer.pad_token_id)
        return next((token for token in known if token is not None), 0)

    def _check_stride(self, stride: int | None) -> None:
        if stride is not None and self._names.task not in ("sequence-classification", "token-classification"):
            raise ValueError(
                f"Windows (`stride`) are for classifiers; a {self._names.task} model predicts from one text that it reads "
                "as a whole."
            )

    def _bar(self, texts: int) -> tqdm:
        disable = (None if texts > 2 * self.batch_size else True) if self.progress is None else not self.progress
        return tqdm(total=texts, desc="Explaining", unit="text", disable=disable)


def _evaluated(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits as an explanation would see them, whichever mode the model is in."""
    from bcos_transformers.modeling.bcos_eval_mode import evaluation_mode

    with evaluation_mode(_inner(model)):
        return model(**inputs).logits.float()


def _inner(model: Any) -> PreTrainedModel:
    """The B-cos model inside of adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _limits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    own = token_limit(_inner(model)) or getattr(model.config, "max_position_embeddings", None)
    known = tokenizer.model_max_length
    return own, known if known is not None and known < MAX_WITHOUT_LIMIT else None


def _check_count(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")
