"""Model cards: what a model is, which prototypes it has, how to load it, what was measured, and what it cannot do."""

import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from bcos_transformers.extras import require
from bcos_transformers.modeling.bcos_inputs import token_limit
from bcos_transformers.modeling.configuration_proto import ProtoConfig

TAGS = ["bcos", "explainable-ai", "interpretability"]
PIPELINE_TAGS = {
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "masked-lm": "fill-mask",
    "causal-lm": "text-generation",
    "base": "feature-extraction",
}
FIRST_FIELDS = ["language", "license", "library_name", "base_model", "base_model_relation", "pipeline_tag", "tags"]
NOT_A_SHARE = ("loss", "perplexity", "bits", "error", "mse", "mae", "correlation", "matthews")
# Columns of the table of faithfulness; those of agreement with people are shown where there are numbers.
AREAS = {"comprehensiveness": "comprehensiveness", "sufficiency": "sufficiency", "seqpg": "SeqPG"}
AGREEMENT = {"f1": "F1", "auprc": "AUPRC", "mrr": "MRR", "phrases": "phrases"}
FAITHFULNESS = (*AREAS, "cost", *AGREEMENT)
PROTO_TAGS = ["proto-lm", "prototypes", "explainable-ai", "interpretability"]
MAX_LABELS = 20  # that the card lists
MAX_PROTOTYPES = 3  # of each label that the card lists
MAX_PROTOTYPE_LENGTH = 200  # characters


@dataclass
class CardFacts:
    """What the card says beyond the model's own configuration. Only measured numbers belong here.

    Attributes:
        name: repository or model name; the code of the card loads from there.
        dataset: what it was fine-tuned on, in words.
        results: accuracy and the like by name, as fractions, measured on `evaluated_on`; losses and perplexities as they
            are.
        evaluated_on: which data the results are from.
        conventional_results: the same for the conventional model fine-tuned alike, if there is one.
        faithfulness: how faithful explanations are, one line for each model and method: `model` and `method` in words,
            `comprehensiveness`, `sufficiency` and `seqpg` as areas and shares, `cost` in forward passes, and where people
            marked words their agreement with these: `f1`, `auprc`, `mrr`, and `phrases`, a correlation. Numbers may be None
            or missing.
        faithfulness_of: on what that was measured, in words.
        setup: machine, seed, epochs and learning rate, in words.
        largest_residual: largest |logit − Σ contributions| / max |contribution| that was seen.
        conversion: the conversion report in words; by default the model's own, if it was converted in this process.
        licence: Hub name of the licence; it depends on the base model and the data.
        language: language code, or several.
        dataset_id: Hub id of the data set, if it is there; the results then go into `.eval_results` as well.
        dataset_config: configuration of the data set that the results are from.
        dataset_split: split of the data set that the results are from.
        base_model: Hub id of the conventional model; by default the one that the configuration remembers.
        intended_use: what it is for, in words, instead of the general sentence.
        limits: what it cannot do, in words, beside the general sentences.
        example_text: text of the card's code.
        date: when the results were measured, as ISO 8601.
        source_url: where the measurement can be looked up.

    Raises:
        TypeError: a field of the wrong kind.
        ValueError: no name, or a number that is not finite.
    """

    name: str
    dataset: str = ""
    results: dict[str, float] = field(default_factory=dict)
    evaluated_on: str = ""
    conventional_results: dict[str, float] = field(default_factory=dict)
    faithfulness: list[dict[str, Any]] = field(default_factory=list)
    faithfulness_of: str = ""
    setup: str = ""
    largest_residual: float | None = None
    conversion: str = ""
    licence: str | None = None
    language: str | list[str] | None = None
    dataset_id: str | None = None
    dataset_config: str | None = None
    dataset_split: str | None = None
    base_model: str | None = None
    intended_use: str = ""
    limits: str = ""
    example_text: str | None = None
    date: str | None = None
    source_url: str | None = None

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuses what cannot be printed; called again when the card is written."""
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"A card needs the name of the model or its repository, got {self.name!r}.")
        for name in ("dataset", "evaluated_on", "faithfulness_of", "setup", "conversion", "intended_use", "limits"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"`{name}` of a card is a string, got {getattr(self, name)!r}.")
        for name in ("licence", "dataset_id", "dataset_config", "dataset_split", "base_model", "example_text", "date"):
            if not isinstance(getattr(self, name), str | None):
                raise TypeError(f"`{name}` of a card is a string or None, got {getattr(self, name)!r}.")
        languages = self.language if isinstance(self.language, list) else [self.language]
        if not all(isinstance(language, str | None) for language in languages):
            raise TypeError(f"`language` of a card is a language code or a list of those, got {self.language!r}.")
        for name in ("results", "conventional_results"):
            results = getattr(self, name)
            if not isinstance(results, dict) or not all(isinstance(metric, str) for metric in results):
                raise TypeError(f"`{name}` of a card are numbers by name, got {results!r}.")
            for metric, value in results.items():
                if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
                    raise ValueError(f"`{name}[{metric!r}]` of a card must be a finite number, got {value!r}.")
        for line in self.faithfulness:
            numbers = [line.get(name) for name in FAITHFULNESS]
            names = isinstance(line.get("model"), str) and isinstance(line.get("method"), str)
            finite = all(n is None or (isinstance(n, Real) and math.isfinite(n)) for n in numbers)
            if not names or not finite:
                raise ValueError(
                    "`faithfulness` of a card has lines with `model` and `method`, and finite numbers or None for "
                    f"{', '.join(FAITHFULNESS)}; got {line!r}."
                )
        residual = self.largest_residual
        if residual is not None and (not isinstance(residual, Real) or not math.isfinite(residual)):
            raise ValueError(f"`largest_residual` of a card must be a finite number, got {residual!r}.")


def render_model_card(model: Any, facts: CardFacts, *, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The card as Markdown with its metadata block.

    Texts of users are escaped: they show as they are, whatever Markdown, HTML or YAML they contain.

    Args:
        model: the B-cos model, or one with prototypes.
        facts: what was measured.
        pictures: of explanations: file name in the repository, and the explained text.

    Raises:
        ImportError: jinja2 is not installed.
        TypeError, ValueError: the facts cannot be printed.
    """
    jinja2 = require("jinja2", "viz")
    facts.check()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown has rules of its own: the filters below
    )
    environment.filters.update(words=escape_markdown, literal=_literal, amount=_amount)
    task, proto = task_of(model), is_proto(model)
    body = environment.get_template("model_card.md.jinja").render(
        auto_class=model._auto_class,
        bcos=model.config if not proto else model.config.backbone_config if model.config.is_bcos else None,
        config=model.config,
        conversion=facts.conversion or conversion_in_words(model),
        custom_pipeline=task == "sequence-classification" and not proto,
        facts=facts,
        faithfulness_columns=_columns(facts),
        labels=list(model.config.id2label.items()) if _has_labels(model) else [],
        max_labels=MAX_LABELS,
        model_class=type(model).__name__,
        on_hub=re.fullmatch(r"[\w.-]+/[\w.-]+", facts.name) is not None,
        pictures=pictures,
        pipeline_tag=PIPELINE_TAGS[task],
        proto=proto,
        prototypes=_first_prototypes(model.config) if proto else [],
        token_limit=token_limit(model),
        task=task,
    )
    return f"---\n{card_metadata(model, facts).to_yaml(original_order=FIRST_FIELDS)}\n---\n\n{body}"


def _columns(facts: CardFacts) -> dict[str, str]:
    """Titles of the columns of areas and shares, by name."""
    agreement = {
        name: title
        for name, title in AGREEMENT.items()
        if any(line.get(name) is not None for line in facts.faithfulness)
    }
    return AREAS | agreement


def card_metadata(model: Any, facts: CardFacts) -> ModelCardData:
    """The metadata of the card; `str()` of it is YAML."""
    converted = getattr(model.config, "backbone_config", model.config)
    base = _one_line(facts.base_model or getattr(converted, "converted_from", None))
    pipeline_tag = PIPELINE_TAGS[task_of(model)]
    dataset = _one_line(facts.dataset_id or facts.dataset or facts.evaluated_on) or "unknown"
    results = [
        EvalResult(
            task_type=pipeline_tag,
            dataset_type=_one_line(facts.dataset_id) or _file_name(dataset),
            dataset_name=dataset,
            dataset_config=_one_line(facts.dataset_config),
            dataset_split=_one_line(facts.dataset_split),
            metric_type=_file_name(name),
            metric_name=_one_line(name),
            metric_value=float(value),
            source_url=_one_line(facts.source_url),
        )
        for name, value in facts.results.items()
    ]
    language = facts.language
    return ModelCardData(
        language=[_one_line(code) for code in language] if isinstance(language, list) else _one_line(language),
        license=_one_line(facts.licence),
        library_name="transformers",
        base_model=base,
        base_model_relation="finetune" if base else None,
        pipeline_tag=pipeline_tag,
        tags=_tags(model),
        datasets=[_one_line(facts.dataset_id)] if facts.dataset_id else None,
        metrics=[_file_name(name) for name in facts.results] or None,
        model_name=_one_line(facts.name.rpartition("/")[2] or facts.name) if results else None,
        eval_results=results or None,
    )


def eval_result_files(facts: CardFacts) -> dict[str, str]:
    """Files of `.eval_results`, one a metric: YAML by path in the repository.

    Empty unless `facts.dataset_id` says which data set of the Hub the results are from: entries belong to one.
    """
    if not facts.dataset_id:
        return {}
    files = {}
    for name, value in facts.results.items():
        split = f", {facts.dataset_split} split" if facts.dataset_split else ""
        entry = EvalResultEntry(
            dataset_id=_one_line(facts.dataset_id),
            task_id=_one_line(facts.dataset_config) or "default",
            value=float(value),
            date=_one_line(facts.date),
            source_url=_one_line(facts.source_url),
            notes=f"{_one_line(name)}{split}",
        )
        path = f".eval_results/bcos_{_file_name(facts.dataset_id)}_{_file_name(name)}.yaml"
        files[path] = yaml_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    return files


def conversion_in_words(model: Any) -> str:
    """What `from_pretrained_bcos` dropped, without the path of a local checkpoint; empty for a model loaded anew."""
    report = getattr(model, "conversion_report", None) or getattr(
        getattr(model, "backbone", None), "conversion_report", None
    )
    if report is None:
        return ""
    source = str(report.source)
    return str(report).replace(source, Path(source).name or source) if Path(source).exists() else str(report)


def is_proto(model: Any) -> bool:
    """Whether a model classifies by prototypes, whichever copy of the code it comes from."""
    return getattr(getattr(model, "config", None), "model_type", None) == ProtoConfig.model_type


def _has_labels(model: Any) -> bool:
    return task_of(model).endswith("-classification") and not (is_proto(model) and model.config.is_regression)


def _tags(model: Any) -> list[str]:
    if not is_proto(model):
        return list(TAGS)
    return [*PROTO_TAGS, *(["bcos"] if model.config.is_bcos else [])]


def _first_prototypes(config: ProtoConfig) -> list[tuple[int, str, str]]:
    """The first few prototypes of each class or bin: number, label and text."""
    shown = []
    for index, prototype in enumerate(config.prototypes or []):
        of_class, place = divmod(index, config.prototypes_per_class)
        if of_class < MAX_LABELS and place < MAX_PROTOTYPES:
            text = _one_line(prototype["text"]) or ""
            cut = text if len(text) <= MAX_PROTOTYPE_LENGTH else text[:MAX_PROTOTYPE_LENGTH].rstrip() + " …"
            shown.append((index, str(prototype["label"]), cut))
    return shown


def task_of(model: Any) -> str:
    """The task of a B-cos model, `"base"` for one without a head."""
    return model.explanation_task or "base"


def escape_markdown(text: Any) -> str:
    """A user's text as one line of Markdown that shows it as it is, also in a table."""
    text = html.escape(_one_line(text) or "", quote=False)
    return re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", lambda found: f"\\{found[0]}", text)


def _literal(text: str) -> str:
    """A string literal of Python."""
    return json.dumps(_one_line(text), ensure_ascii=False)


def _one_line(text: Any) -> str | None:
    if text is None:
        return None
    return " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split()) or None


def _file_name(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_").lower() or "unnamed"


def _amount(value: float | None, name: str) -> str:
    """A result for people: shares in percent, everything else as a number."""
    if value is None:
        return "–"
    if any(word in name.lower() for word in NOT_A_SHARE) or not 0 <= value <= 1:
        return f"{value:.4g}"
    return f"{100 * value:.1f} %"
