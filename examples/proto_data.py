"""The data of run_proto_classification.py: as in the other classification examples, and values to predict."""

import math

from datasets import Dataset, DatasetDict, Value

from classification_data import Data, DataArguments, complete_splits, load_data, named_splits


def load_proto_data(args: DataArguments, regression: bool) -> Data:
    """Loads the data that the arguments name; those of a regression have no labels, but values.

    Args:
        args: which data.
        regression: whether labels are values to predict; a column of floats is taken for that in any case.

    Raises:
        SystemExit: a missing column, or values that are none.
    """
    named = bool(args.dataset_name or args.train_file)
    if not named:
        if regression:
            raise SystemExit(
                "The embedded reviews have classes, no values: name data with --train_file or --dataset_name."
            )
        return load_data(args)
    splits, name = named_splits(args)
    features = splits["train"].features
    if args.label_column not in features:
        raise SystemExit(f"There is no column {args.label_column!r}; there are: {', '.join(features)}.")
    floats = getattr(features[args.label_column], "dtype", "").startswith("float")
    if not regression and not floats:
        return load_data(args)
    if args.class_names:
        raise SystemExit(
            f"--class_names names classes, but {args.label_column!r} holds values to predict: leave it out."
        )
    return _with_values(splits, args, name)


def _with_values(splits: DatasetDict, args: DataArguments, name: str) -> Data:
    columns = [args.text_column, args.label_column]
    for split, rows in splits.items():
        for column in columns:
            if column not in rows.column_names:
                raise SystemExit(
                    f"The {split} data have no column {column!r}; there are: {', '.join(rows.column_names)}."
                )
    splits = DatasetDict({split: _values(rows.select_columns(columns), args, split) for split, rows in splits.items()})
    test_name = complete_splits(splits)
    return Data(splits, [], args.data_name or name, test_name)


def _values(rows: Dataset, args: DataArguments, split: str) -> Dataset:
    """The columns `text` and `label`, the latter as float32 as a Trainer hands it to the model."""
    found = []
    for i, label in enumerate(rows[args.label_column]):
        try:
            found.append(float(label))
        except (TypeError, ValueError):
            found.append(math.nan)
        if not math.isfinite(found[-1]):
            raise SystemExit(
                f"Values to predict must be finite numbers, got {label!r} in row {i} of the {split} data."
            )
    return Dataset.from_dict({"text": rows[args.text_column], "label": found}).cast_column("label", Value("float32"))
