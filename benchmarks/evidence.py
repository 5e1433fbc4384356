"""The evidence table: B-cos MiniLM beside the conventional fine-tune on four data sets, accuracy and faithfulness.

    python benchmarks/evidence.py --data ../shared/data --runs runs/evidence --output docs/evidence.md

Trains what is missing in `--runs`, measures what is missing, and writes the tables. Resumable; `--only train`, `measure` or
`report` does one of the three; several processes may share `--runs` while training and measuring. Uses a GPU where there
is one. The best use of n cores is n processes with `OMP_NUM_THREADS=1`: three hours of training and three of explaining on
one core, as recorded in results and cells, and the passes of the metrics on top. `--full` measures with the larger budget (200 texts
a data set, 120 of IMDb, every method everywhere but Shapley values and sequential integrated gradients on AG News and IMDb).
"""

import argparse
import dataclasses
import fcntl
import json
from pathlib import Path

import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bcos_transformers.evaluation.benchmark import FaithfulnessBenchmark
from bcos_transformers.evaluation.benchmark_cells import write_whole
from bcos_transformers.evaluation.reliability import explanations_under, masking_validity, stability
from bcos_transformers.evaluation.rows import Classifier, encode_rows
from evidence_report import report
from evidence_settings import (
    MAIN,
    MASKED,
    MASKED_MODEL,
    QUICK,
    SEEDS,
    SLOW,
    benchmark_of,
    examples_of,
    masked_conventional,
    models_of,
    settings_of,
)
from finetuning import TASKS, run
from recipe_search import RECIPE, SEARCHED


def train(args: argparse.Namespace) -> None:
    """Trains the models that are missing."""
    everything = [(seed, task) for task in args.tasks for seed in SEEDS[task]]
    for seed, task in sorted(everything, key=lambda one: one[0]):  # every data set first, then more seeds
        for setting in (
            *settings_of(task, seed, args.recipe),
            *([masked_conventional(task, seed)] * ((task, seed) in MASKED)),
        ):
            result = run(setting, args.data, args.runs, wait=False)
            if result:
                print(f"{setting.key}: {result['test_accuracy']:.2f}", flush=True)  # noqa: T201


def measure(args: argparse.Namespace) -> None:
    """Computes the cells that are missing, those of the main methods first."""
    measure_models(args)
    everything = [(task, seed) for task in args.tasks for seed in SEEDS[task]]
    for chosen in (MAIN, [method for method in QUICK if method not in MAIN], *([method] for method in SLOW)):
        for task, seed in everything:
            benchmark = benchmark_of(task, seed, args)
            if benchmark is None:
                continue
            (benchmark.output / "cells").mkdir(parents=True, exist_ok=True)
            for model in benchmark.models:
                for method in benchmark.methods:
                    left_out = (method == "bcos" and model != "B-cos") or (method in SLOW and model == MASKED_MODEL)
                    if method in chosen and not left_out:
                        _cell(benchmark, model, method)


def measure_models(args: argparse.Namespace) -> None:
    """Masking validity of both models of every data set, and stability of the B-cos explanations; first seed."""
    for task in args.tasks:
        for name, folder in models_of(task, 0, args).items():
            file = folder / "reliability.json"
            if file.exists():
                continue
            model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
            tokenizer = AutoTokenizer.from_pretrained(folder)
            examples = examples_of(task, args.data, 40 if task == "imdb" else 200)
            rows = encode_rows(tokenizer, [one.text for one in examples], TASKS[task].max_length)
            labels = [one.label for one in examples]
            found = dataclasses.asdict(masking_validity(Classifier(model, tokenizer), rows, labels, draws=1))
            if name == "B-cos":
                few = rows[:20]
                reference = explanations_under(model, tokenizer, few, "alone")
                for circumstance in ("batch", "eager", "bfloat16"):
                    compared = stability(explanations_under(model, tokenizer, few, circumstance), reference)
                    found[circumstance] = dataclasses.asdict(compared)
            write_whole(file, json.dumps(found))


def _cell(benchmark: FaithfulnessBenchmark, model: str, method: str) -> None:
    """One cell, unless another process is at it."""
    with (benchmark.output / "cells" / f"{model}--{method}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        cell = benchmark.cell(model, method)
        print(f"{benchmark.output.name}: {model}, {method}: {cell['seconds']}", flush=True)  # noqa: T201


def main() -> None:
    """Does what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--output", type=Path, help="docs/evidence.md for the default recipe")
    parser.add_argument("--cards", type=Path, default=Path("model_cards"))
    parser.add_argument("--only", choices=("train", "measure", "report"))
    parser.add_argument("--tasks", nargs="+", choices=SEEDS, default=list(SEEDS), help="train and measure these only")
    parser.add_argument("--full", action="store_true", help="the larger budget")
    parser.add_argument(
        "--teach-masked", action="store_true", help="the recipe with the teacher asked about masked texts too"
    )
    parser.add_argument("--b", type=float, default=RECIPE.b, help="another B than the recipe's")
    args = parser.parse_args()
    changed = args.teach_masked or args.b != RECIPE.b
    if changed and args.output is None and args.only in (None, "report"):
        parser.error("another recipe than the default needs --output: docs/evidence.md is about the default's models")
    args.output = args.output or Path("docs/evidence.md")
    args.recipe = dataclasses.replace(SEARCHED if args.teach_masked else RECIPE, b=args.b)
    transformers.logging.set_verbosity_error()
    for name, step in (("train", train), ("measure", measure), ("report", report)):
        if args.only in (None, name):
            step(args)


if __name__ == "__main__":
    main()
