"""What a user may hand to the explainer, brought into one form, with sentences for what cannot be explained."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from bcos_transformers.explanations.encoding import EncodedText, TextEncoder
from bcos_transformers.modeling.bcos_peft import refuse_virtual_tokens
from bcos_transformers.modeling.bcos_text_units import check_knows_words

WANTED = (
    "a string, a pair of strings (a tuple), a list of those, a mapping with `text` and `text_pair`, or the tokenizer's "
    "output"
)


@dataclass(frozen=True)
class TextInputs:
    """Texts to explain.

    Attributes:
        items: strings, pairs of strings, or with `split` lists of words.
        single: whether one text was given, outside of a list.
        split: whether the texts are lists of words.
        tokenized: the texts, where they were tokenized already; then `items` is empty.
    """

    items: list[Any]
    single: bool
    split: bool = False
    tokenized: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        if self.tokenized is None:
            return len(self.items)
        ids = self.tokenized.get("input_ids", ())
        return 1 if _is_flat(ids) else len(ids)

    def encode(self, encoder: TextEncoder, texts: range) -> list[EncodedText]:
        """These texts as token ids."""
        if self.tokenized is not None:
            return encoder.tokenized(self.tokenized)[texts.start : texts.stop]
        return encoder.texts(self.items[texts.start : texts.stop], self.split)


def read_inputs(texts: Any, text_pair: Any = None, split: bool = False) -> TextInputs:
    """Brings what the user gave into one form.

    Raises:
        TypeError: it is not text; the message says which entry.
        ValueError: as many second texts as first ones are needed, and a text with words needs words.
    """
    if split:
        return _split_words(texts, text_pair)
    if isinstance(texts, Mapping) and "input_ids" in texts:
        if text_pair is not None:
            raise ValueError("Tokenized input holds both texts of a pair already; leave `text_pair` out.")
        return TextInputs([], single=_is_flat(texts["input_ids"]), tokenized=texts)
    if isinstance(texts, (str, tuple, Mapping)):
        if isinstance(texts, tuple) and len(texts) != 2:
            raise TypeError(f"A tuple is a pair of texts, got one of {len(texts)}; give several texts as a list.")
        return TextInputs([_pair(_one(texts), text_pair, "`text_pair`")], single=True)
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise TypeError(f"Expected {WANTED}; got {type(texts).__name__}.")
    items = [_one(text, f" (entry {i})") for i, text in enumerate(texts)]
    if text_pair is not None:
        if isinstance(text_pair, (str, bytes)) or not isinstance(text_pair, Iterable):
            raise TypeError(f"`text_pair` must be a list like `texts`, got {type(text_pair).__name__}.")
        seconds = list(text_pair)
        if len(seconds) != len(items):
            raise ValueError(f"{len(items)} texts need as many second texts, got {len(seconds)}.")
        items = [
            _pair(item, second, f"`text_pair` {i}")
            for i, (item, second) in enumerate(zip(items, seconds, strict=True))
        ]
    return TextInputs(items, single=False)


def _one(text: Any, where: str = "") -> str | tuple[str, str]:
    """A string or a pair of strings."""
    if isinstance(text, Mapping):
        unknown = text.keys() - {"text", "text_pair"}
        if unknown or "text" not in text:
            raise TypeError(
                f"A text as a mapping{where} has `text` and maybe `text_pair`, got {sorted(map(str, text))}."
            )
        return _pair(_one(text["text"], where), text.get("text_pair"), f"`text_pair`{where}")
    if isinstance(text, tuple) and len(text) == 2:
        return _pair(_one(text[0], where), text[1], f"The second text of a pair{where}")
    if not isinstance(text, str):
        raise TypeError(f"Expected {WANTED}; got {type(text).__name__}{where}: {text!r:.80}.")
    return text


def _pair(text: str | tuple[str, str], second: Any, name: str) -> str | tuple[str, str]:
    if second is None:
        return text
    if not isinstance(text, str) or not isinstance(second, str):
        raise TypeError(
            f"{name} must be a string beside one string, got {type(second).__name__} beside {type(text).__name__}."
        )
    return text, second


def _split_words(texts: Any, text_pair: Any) -> TextInputs:
    if text_pair is not None:
        raise ValueError("`is_split_into_words` is for single texts; leave `text_pair` out.")
    if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable):
        raise TypeError(f"With `is_split_into_words` a text is a list of words, got {type(texts).__name__}.")
    texts = list(texts)
    single = bool(texts) and isinstance(texts[0], str)
    rows = [list(words) if isinstance(words, (list, tuple)) else words for words in ([texts] if single else texts)]
    for i, words in enumerate(rows):
        if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
            raise TypeError(
                f"With `is_split_into_words` every text is a list of words, got {words!r:.80} (entry {i})."
            )
    return TextInputs([(words,) for words in rows], single, split=True)


def _is_flat(ids: Any) -> bool:
    """Whether these are the ids of one text, without a batch dimension."""
    if hasattr(ids, "dim") or hasattr(ids, "ndim"):
        return ids.ndim == 1
    return bool(ids) and isinstance(ids[0], int)


def has_prototypes(model: Any) -> bool:
    """Whether it is a model that classifies by prototypes, maybe inside of adapters."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    # By name: a model whose code came from the Hub has a class of its own.
    return "ProtoForSequenceClassification" in (kind.__name__ for kind in type(inner).__mro__)


def check_model_and_tokenizer(model: Any, tokenizer: Any) -> None:
    """Refuses what cannot be explained.

    Raises:
        TypeError: not a B-cos model, one without a head, or not a tokenizer.
        ValueError: the tokenizer knows no words or belongs to another model, or the model has virtual tokens in front of the text.
    """
    if not hasattr(model, "explain") or not hasattr(model, "explanation_task"):
        raise TypeError(
            f"{type(model).__name__} is not a B-cos model, so it cannot explain itself. Convert the pretrained model with "
            "bcos_transformers.from_pretrained_bcos(name, task=…) and fine-tune it; a saved B-cos model is loaded by "
            "AutoModelFor… after `import bcos_transformers`."
        )
    if model.explanation_task is None:
        raise TypeError(
            f"{type(model).__name__} has no head, so there is no logit to explain. Load it for a task, e.g. with "
            "AutoModelForSequenceClassification."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(f"`tokenizer` must be a tokenizer of transformers, got {type(tokenizer).__name__}.")
    check_knows_words(tokenizer)
    refuse_virtual_tokens(model)
    embedded = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embedded:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens but the model embeds {embedded}: it belongs to another model, or "
            "tokens were added without model.resize_token_embeddings(len(tokenizer))."
        )
    for name in ("pad_token_id", "mask_token_id"):
        wanted, has = getattr(model.config, name, None), getattr(tokenizer, name)
        matters = name == "mask_token_id" or model.explanation_task in (
            "sequence-classification",
            "token-classification",
        )
        if matters and wanted is not None and has is not None and wanted != has:
            raise ValueError(
                f"The model's {name} is {wanted}, the tokenizer's is {has}: does the tokenizer belong to this model? If it "
                f"does, set model.config.{name}."
            )
