"""`bcos-transformers evaluate`: how often a classifier is right, and how exactly its explanations add up."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bcos_transformers.cli.explain import BatchSizeOption, MaxLengthOption, StrideOption
from bcos_transformers.cli.faithfulness import (
    AgainstOption,
    FaithfulnessOption,
    LimitOption,
    MethodsOption,
    PairsOption,
    RationaleOption,
    check_usage,
    faithfulness_table,
    json_rows,
    measure_faithfulness,
    prepare_faithfulness,
)
from bcos_transformers.cli.files import read_rationales, read_table
from bcos_transformers.cli.models import ModelArgument, RevisionOption, load_model, load_tokenizer
from bcos_transformers.cli.output import JsonOption, console, emit, facts_table
from bcos_transformers.cli.texts import DEFAULT_COLUMN, PairColumnOption, Text, check_unicode
from bcos_transformers.explanations import BcosExplainer, TextExplanation
from bcos_transformers.extras import require
from bcos_transformers.modeling.bcos_targets import index_of_label

TextColumnOption = Annotated[str, typer.Option("--text-column", metavar="NAME", help="Column of the text.")]
LabelColumnOption = Annotated[str, typer.Option("--label-column", metavar="NAME", help="Column of the label.")]


@dataclass(frozen=True)
class LabelledTexts:
    """Rows of a file.

    Attributes:
        texts: texts, or pairs of them.
        labels: as they stand in the file.
        places: where each row stands, in words.
    """

    texts: list[Text]
    labels: list[str]
    places: list[str]


@dataclass(frozen=True)
class Measured:
    """What was measured of a classifier.

    Attributes:
        texts: how many texts it was measured on.
        accuracy: share of the texts whose label was predicted.
        macro_f1: mean of the labels' F1.
        most_frequent_label: the label that most texts have.
        share_of_most_frequent_label: the accuracy of always predicting it.
        largest_residual: largest |logit − Σ contributions| / max |contribution of a token| of the predictions.
        truncated: how many texts were longer than what the model read.
    """

    texts: int
    accuracy: float
    macro_f1: float
    most_frequent_label: str
    share_of_most_frequent_label: float
    largest_residual: float
    truncated: int


def evaluate(
    model: ModelArgument,
    file: Annotated[
        Path, typer.Option(metavar="FILE", help="Labelled texts: .csv, .tsv, .jsonl or .parquet.", show_default=False)
    ],
    text_column: TextColumnOption = DEFAULT_COLUMN,
    label_column: LabelColumnOption = "label",
    pair_column: PairColumnOption = None,
    stride: StrideOption = None,
    max_length: MaxLengthOption = None,
    batch_size: BatchSizeOption = 32,
    faithfulness: FaithfulnessOption = None,
    against: AgainstOption = None,
    methods: MethodsOption = None,
    rationale_column: RationaleOption = None,
    limit: LimitOption = None,
    pairs: PairsOption = None,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a text classifier: accuracy, macro F1, and how exactly the contributions add up to the logits.

    Labels are names or indices of the model's labels. Every prediction is explained on the way.

    --faithfulness also measures how faithful the explanations are, beside those of post-hoc methods: comprehensiveness,
    sufficiency, the sequence pointing game, agreement with rationales, cost. It writes table.csv, table.md, table.tex,
    differences.csv, records.jsonl and faithfulness.png, and goes on where it was interrupted.
    """
    options = {
        **{"--against": against, "--methods": methods, "--rationale-column": rationale_column},
        **{"--limit": limit, "--pairs": pairs},
    }
    check_usage(model, faithfulness, options, pair_column, stride)
    require("sklearn.metrics", "eval")
    rows = read_labelled(file, text_column, label_column, pair_column)
    if not rows.texts:
        raise ValueError(f"{file} has no rows, so there is nothing to measure.")
    loaded = load_model(model, revision)
    check_classifier(loaded, model)
    labels = label_indices(rows, loaded.config)
    explainer = BcosExplainer(
        loaded, load_tokenizer(model, revision), batch_size=batch_size, max_length=max_length, stride=stride
    )
    benchmark = None
    if faithfulness is not None:
        benchmark = prepare_faithfulness(
            {model: (loaded, explainer.tokenizer), **{name: name for name in against or ()}},
            rows,
            labels,
            read_rationales(file, rationale_column) if rationale_column else None,
            faithfulness,
            methods,
            limit,
            pairs,
            explainer.max_length,
        )
    measured = measure(explainer, rows.texts, labels)
    document: dict[str, Any] = {"model": model, "file": str(file), **asdict(measured)}
    if not as_json:
        console().print(facts_table({"model": model, "file": file, **measured_rows(measured)}))
    if benchmark is not None:
        frame = measure_faithfulness(benchmark, faithfulness)
        document["faithfulness"] = json_rows(frame)
        if not as_json:
            console().print(faithfulness_table(frame))
            console().print(f"Table, figure and records: {faithfulness}")
    if as_json:
        emit(document)


def read_labelled(file: Path, text_column: str, label_column: str, pair_column: str | None) -> LabelledTexts:
    """Texts and labels of a file.

    Raises:
        ValueError, OSError: see `read_table`.
    """
    columns = [text_column, label_column] + ([] if pair_column is None else [pair_column])
    rows = read_table(file, columns)
    texts: list[Text] = [
        row.values[text_column] if pair_column is None else (row.values[text_column], row.values[pair_column])
        for row in rows
    ]
    places = [row.place for row in rows]
    return LabelledTexts(check_unicode(texts, places), [row.values[label_column] for row in rows], places)


def check_classifier(model: Any, name: str) -> None:
    """Refuses models that have no accuracy.

    Raises:
        ValueError: not a classifier of texts with one label each.
    """
    task, config = model.explanation_task, model.config
    if task != "sequence-classification":
        raise ValueError(f"{name!r} is for {task or 'no task'}; only models for sequence-classification are measured.")
    if config.num_labels == 1 or config.problem_type in ("regression", "multi_label_classification"):
        kind = "regression" if config.num_labels == 1 else config.problem_type.replace("_", " ")
        raise ValueError(f"{name!r} is for {kind}; only classifiers that give each text one label are measured.")


def label_indices(rows: LabelledTexts, config: Any) -> list[int]:
    """The labels, given by name or index, as indices.

    Raises:
        ValueError: a label that the model does not have; the message says where.
    """
    names = {str(name): int(index) for name, index in index_of_label(config).items()}
    known = {**{str(index): index for index in range(config.num_labels)}, **names}
    for label, place in zip(rows.labels, rows.places, strict=True):
        if label not in known:
            shown = ", ".join(list(names)[:12]) + (", …" if len(names) > 12 else "")
            raise ValueError(f"The model has no label {label!r} ({place}); its labels are: {shown}.")
    return [known[label] for label in rows.labels]


def measure(explainer: BcosExplainer, texts: Sequence[Text], labels: Sequence[int]) -> Measured:
    """Explains every text's prediction and compares it with the label.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    metrics = require("sklearn.metrics", "eval")
    predicted, residual, truncated = [], 0.0, 0
    for explanation in explainer.iterate(texts):
        predicted.append(explanation.target)
        residual = max(residual, relative_residual(explanation))
        truncated += explanation.truncated
    most, count = Counter(labels).most_common(1)[0]
    return Measured(
        texts=len(labels),
        accuracy=float(metrics.accuracy_score(labels, predicted)),
        macro_f1=float(metrics.f1_score(labels, predicted, average="macro", zero_division=0.0)),
        most_frequent_label=str(explainer.model.config.id2label[most]),
        share_of_most_frequent_label=count / len(labels),
        largest_residual=residual,
        truncated=truncated,
    )


def relative_residual(explanation: TextExplanation) -> float:
    """|logit − Σ contributions| / max |contribution of a token|; of a text in windows, the largest of theirs."""
    if explanation.windows:
        return max(map(relative_residual, explanation.windows))
    return abs(explanation.residual) / max(max(map(abs, explanation.token_scores)), 1e-30)


def measured_rows(measured: Measured) -> dict[str, str]:
    """The numbers in rows for people."""
    chance = f"{measured.share_of_most_frequent_label:.1%} by always answering {measured.most_frequent_label}"
    return {
        "texts": f"{measured.texts:,}" + (f", {measured.truncated:,} of them cut" if measured.truncated else ""),
        "accuracy": f"{measured.accuracy:.1%} ({chance})",
        "macro F1": f"{measured.macro_f1:.1%}",
        "largest residual": f"{measured.largest_residual:.1e} of the largest contribution",
    }
