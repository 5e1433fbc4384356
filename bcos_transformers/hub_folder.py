"""A B-cos model, or one with prototypes, as a folder: what a repository on the Hub needs, its code and card included."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import custom_object_save

from bcos_transformers.explanations.inputs import check_model_and_tokenizer, read_inputs
from bcos_transformers.model_card import CardFacts, eval_result_files, is_proto, render_model_card, task_of
from bcos_transformers.modeling.bcos_peft import has_adapters
from bcos_transformers.modeling.modeling_proto import PROTOTYPES_FILE, save_prototypes

MAX_PICTURES = 3


@dataclass(frozen=True)
class Picture:
    """A drawn explanation.

    Attributes:
        file: its name in the repository.
        text: the explained text.
        figure: the matplotlib figure.
    """

    file: str
    text: str
    figure: Any


def check_pushable(model: Any, tokenizer: Any) -> None:
    """Refuses what would not be a whole B-cos model on the Hub.

    Raises:
        TypeError: not a B-cos model, or not a tokenizer.
        ValueError: the model carries adapters, or the tokenizer belongs to another model.
    """
    if hasattr(model, "explain") and (getattr(model, "_hf_peft_config_loaded", False) or has_adapters(model)):
        raise ValueError(
            "This model carries adapters, and a push holds one whole model. Push `peft_model.merge_and_unload()`; or push "
            "the base model before it gets adapters, then the adapters alone by `peft_model.push_to_hub(repo_id)`."
        )
    if hasattr(model, "explain") and task_of(model) == "base":
        check_model_and_tokenizer(_WithHead(model), tokenizer)
    else:
        check_model_and_tokenizer(model, tokenizer)


class _WithHead:
    """A base model for checks that ask for a head: it can be pushed, though not explained."""

    explanation_task = "masked-lm"

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def draw(explanations: Sequence[Any]) -> list[Picture]:
    """Draws the first few explanations.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: something that has no `plot` method.
    """
    pictures = []
    for explanation in explanations[:MAX_PICTURES]:
        if not hasattr(explanation, "plot"):
            raise TypeError(
                f"`explanations` are TextExplanation objects, as a BcosExplainer makes them (with prototypes, "
                f"PrototypeExplanation objects of a ProtoExplainer), got {type(explanation).__name__}."
            )
        texts = [explanation.text, getattr(explanation, "text_pair", None)]
        file = f"explanation{f'_{len(pictures) + 1}' if pictures else ''}.png"
        pictures.append(Picture(file, " / ".join(text for text in texts if text), explanation.plot()))
    return pictures


def build_folder(
    folder: Path,
    model: Any,
    tokenizer: Any,
    facts: CardFacts,
    pictures: Sequence[Picture] = (),
    max_shard_size: int | str = "50GB",
) -> str:
    """Writes weights, configuration, code, tokenizer, pipeline, card, pictures and results into an empty folder.

    The configuration of `model` gets its `auto_map` and its pipeline, as whenever it is saved; nothing else about it changes.

    Returns:
        The card.
    """
    before = (model.name_or_path, getattr(model, "_saved_to", None))
    try:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    finally:
        model.name_or_path, model._saved_to = before  # the folder will be gone again
    tokenizer.save_pretrained(folder)
    return _write_card(folder, model, facts, pictures)


def save_card(folder: str | os.PathLike, model: Any, facts: CardFacts, explanations: Sequence[Any] = ()) -> str:
    """Writes a model's card into the folder that it is saved in, with pictures of the first few explanations.

    Args:
        folder: where the model is saved.
        model: the B-cos model, or one with prototypes.
        facts: what was measured.
        explanations: `TextExplanation` or `PrototypeExplanation` objects; the first is the example of the card's code.

    Returns:
        The card.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
        TypeError, ValueError: the facts cannot be printed.
    """
    return _write_card(Path(folder), model, with_example(facts, explanations), draw(explanations))


def _write_card(folder: Path, model: Any, facts: CardFacts, pictures: Sequence[Picture]) -> str:
    card = render_model_card(model, facts, pictures=[(p.file, p.text) for p in pictures])
    for picture in pictures:
        picture.figure.savefig(folder / picture.file, dpi=150)
    for path, content in eval_result_files(facts).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(content, encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    return card


def write_code(model: Any, folder: str | os.PathLike) -> None:
    """Writes the code that the configuration of a saved B-cos model names into a folder."""
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="_code") as parts:
        for owner in (model, model.config):
            custom_object_save(owner, parts)
        for file in os.listdir(parts):
            os.replace(os.path.join(parts, file), os.path.join(folder, file))


def write_prototypes(model: Any, folder: str | os.PathLike) -> None:
    """Writes the list of prototypes, where a model has them, into the folder that a `Trainer` uploads."""
    if is_proto(model):
        os.makedirs(folder, exist_ok=True)
        save_prototypes(Path(folder, PROTOTYPES_FILE), model.config.prototypes)


def with_prototype_example(facts: CardFacts, model: Any, tokenizer: Any, example_texts: Any) -> CardFacts:
    """Adds to the facts of a model with prototypes a text for the card's code, and the residual on the example texts."""
    items = read_inputs(example_texts).items
    if not items:
        return facts
    seen = facts.largest_residual
    if seen is None:
        encoded = tokenizer(items, padding=True, truncation=True, return_tensors="pt").to(model.device)
        explanation = model.explain(**encoded)
        residuals = [explanation.residual, explanation.token_residual]
        largest = explanation.contributions.abs().amax(-1).clamp_min(1e-12)
        seen = max((r.to(largest).abs() / largest).max().item() for r in residuals if r is not None)
    first = items[0] if isinstance(items[0], str) else items[0][0]
    return replace(facts, example_text=facts.example_text or first, largest_residual=seen)


def with_example(facts: CardFacts, explanations: Sequence[Any]) -> CardFacts:
    """Adds to the facts what the explanations show: a text for the card's code, and the residual."""
    if not explanations:
        return facts
    first = explanations[0]
    text = getattr(first, "text_pair", None) if getattr(first, "task", "") == "question-answering" else first.text
    residuals = [residual for explanation in explanations for residual in _relative_residuals(explanation)]
    seen = max(residuals) if residuals else None
    return replace(
        facts,
        example_text=facts.example_text or text,
        largest_residual=seen if facts.largest_residual is None else facts.largest_residual,
    )


def _relative_residuals(explanation: Any) -> list[float]:
    singles = [explanation.for_target(t) for t in explanation.targets] if hasattr(explanation, "targets") else []
    return [abs(s.residual) / max(max(map(abs, s.token_scores), default=0.0), 1e-12) for s in singles]
