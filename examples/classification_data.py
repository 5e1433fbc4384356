"""The data of the classification examples: a data set of the Hub, files, or the embedded reviews."""

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, load_dataset

from bcos_transformers.data import LABELS, load_reviews

logger = logging.getLogger(__name__)


@dataclass
class DataArguments:
    """Which data. Default: the embedded reviews."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_file: str | None = field(default=None, metadata={"help": "csv, json, jsonl or parquet file."})
    validation_file: str | None = field(default=None, metadata={"help": "The same, for evaluation while training."})
    test_file: str | None = field(default=None, metadata={"help": "The same, for the reported numbers."})
    text_column: str = field(default="text", metadata={"help": "Name of the column with the text."})
    label_column: str = field(default="label", metadata={"help": "Name of the column with the label."})
    class_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the labels 0, 1, …, where the data have none."}
    )
    data_name: str | None = field(default=None, metadata={"help": "What the model card calls the data."})
    max_length: int = field(default=256, metadata={"help": "Longer texts are cut to so many tokens, with a warning."})
    explain_samples: int = field(default=6, metadata={"help": "How many test texts are explained in the terminal."})
    explain_html_samples: int = field(default=60, metadata={"help": "How many go into explanations.html."})


@dataclass
class Data:
    """The data with the columns `text` and `label`, and what to call its parts."""

    splits: DatasetDict
    labels: list[str]
    name: str
    test_name: str


def load_data(args: DataArguments) -> Data:
    """Loads the data that the arguments name, or the embedded reviews."""
    if args.dataset_name or args.train_file:
        splits, name = named_splits(args)
    else:
        splits = DatasetDict({s: Dataset.from_list(load_reviews(s)) for s in ("train", "validation", "test")})
        splits, name = splits.cast_column("label", ClassLabel(names=list(LABELS))), "the embedded reviews"
    for column, wanted in ((args.text_column, "text"), (args.label_column, "label")):
        present = splits["train"].column_names
        if column not in present:
            raise SystemExit(f"There is no column {column!r}; there are: {', '.join(present)}.")
        if column != wanted:
            splits = splits.rename_column(column, wanted)
    if "test" in splits and min(splits["test"]["label"]) == -1:  # hidden labels, as in GLUE
        del splits["test"]
    test_name = complete_splits(splits)
    if not isinstance(splits["train"].features["label"], ClassLabel):
        splits = encode_labels(splits)
    labels = [str(label) for label in splits["train"].features["label"].names]
    if args.class_names:
        if len(args.class_names) != len(labels):
            raise SystemExit(f"--class_names names {len(args.class_names)} labels, the data have {', '.join(labels)}.")
        labels = args.class_names
    return Data(splits, labels, args.data_name or name, test_name)


def named_splits(args: DataArguments) -> tuple[DatasetDict, str]:
    """The splits that the arguments name, as they are, and their name."""
    if args.dataset_name:
        return load_dataset(args.dataset_name, args.dataset_config_name), args.dataset_name
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    splits = DatasetDict({split: load_file(file) for split, file in files.items() if file})
    return splits, Path(args.train_file).stem


def complete_splits(splits: DatasetDict) -> str:
    """Adds the `validation` and `test` splits that are missing, with a warning; what to call the latter."""
    test_name = "test split"
    if "validation" not in splits and "test" not in splits:
        halves = splits["train"].train_test_split(0.1, seed=0)
        splits["train"], splits["validation"] = halves["train"], halves["test"]
        logger.warning("No validation or test data: a tenth of the training data is set aside for evaluation.")
        test_name = "a tenth of the training split that was set aside"
    if "test" not in splits:
        splits["test"] = splits["validation"]
        test_name = test_name if test_name != "test split" else "validation split"
        logger.warning("No labelled test data: numbers and explanations are of the validation data.")
    splits.setdefault("validation", splits["test"])
    return test_name


def load_file(file: str) -> Dataset:
    """One csv, json, jsonl or parquet file."""
    kind = {"csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet"}.get(Path(file).suffix.lstrip("."))
    if kind is None:
        raise SystemExit(f"{file} is none of csv, json, jsonl, parquet.")
    return load_dataset(kind, data_files=file, split="train")


def encode_labels(splits: DatasetDict) -> DatasetDict:
    """Labels as indices into the sorted labels of the training data, the same for every split."""
    splits = splits.map(lambda row: {"label": str(row["label"])}, desc="Reading labels")
    names = sorted(set(splits["train"]["label"]))
    for split, rows in splits.items():
        unknown = sorted(set(rows["label"]) - set(names))
        if unknown:
            raise SystemExit(f"The {split} data have labels that the training data lack: {', '.join(unknown)}.")
    return splits.cast_column("label", ClassLabel(names=names))


def digest(splits: DatasetDict) -> str:
    """A hash of every text and label, by which an earlier run's data are recognised."""
    sha = hashlib.sha256()
    for name, rows in sorted(splits.items()):
        sha.update(name.encode())
        for row in rows.select_columns(["text", "label"]):
            sha.update(json.dumps([row["text"], row["label"]]).encode())
    return sha.hexdigest()
