"""From a data set and models to a table: how faithful explanations are, by every method, and what they cost.

    python benchmarks/faithfulness.py --file test.jsonl --output runs/faithfulness \
        --model conventional=runs/reviews/_conventional --model B-cos=runs/reviews

Without arguments the models of `examples/run_classification.py --compare` on the embedded reviews. Writes `table.csv`,
`table.md`, `table.tex`, `differences.csv`, `records.jsonl` and `faithfulness.png` into `--output`. Interrupted, it goes on where it stopped.
On several processes, with the same result: `accelerate launch --multi_gpu --num_processes 2 benchmarks/faithfulness.py …`,
which works without a GPU too (`--cpu` starts one process, whatever the number). Cells are the same to the last digit where
each process has as many threads, `OMP_NUM_THREADS=1`.
"""

import argparse
import logging
import os
from pathlib import Path

import torch
import transformers

from bcos_transformers.data import reviews_file
from bcos_transformers.evaluation.benchmark import BenchmarkSettings, FaithfulnessBenchmark
from bcos_transformers.evaluation.benchmark_data import read_examples
from bcos_transformers.evaluation.report import markdown, write_report


def main() -> None:
    """Runs what is missing, then writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="JSON lines with text and label; default: the embedded reviews")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--rationale-column", help="0/1 for each word, or character spans; default: none")
    parser.add_argument(
        "--model", action="append", help="NAME=directory or Hub id; the first makes the pairs of SeqPG"
    )
    parser.add_argument("--methods", nargs="+", help="default: all")
    parser.add_argument("--output", type=Path, default=Path("runs/faithfulness"))
    parser.add_argument("--limit", type=int, help="so many texts at most, chosen by --seed")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--min-probability", type=float, default=0.8, help="of the class of a text in a pair")
    parser.add_argument("--replacement", default="mask", choices=("mask", "attention"))
    parser.add_argument("--search-budget", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    transformers.logging.set_verbosity_error()
    given = args.model or ["conventional=runs/reviews/_conventional", "B-cos=runs/reviews"]
    if any("=" not in model for model in given):
        parser.error("--model needs NAME=directory or Hub id")
    models = dict(model.split("=", 1) for model in given)
    if len(models) != len(given):
        parser.error("--model needs a name of its own for every model")
    if args.file is None:
        examples = read_examples(reviews_file("test"), rationale_column="rationale")
    else:
        examples = read_examples(args.file, args.text_column, args.label_column, args.rationale_column)
    settings = BenchmarkSettings(
        max_length=args.max_length,
        limit=args.limit,
        replacement=args.replacement,
        pairs=args.pairs,
        min_probability=args.min_probability,
        search_budget=args.search_budget,
        seed=args.seed,
    )
    benchmark = FaithfulnessBenchmark(
        models,
        examples,
        args.output,
        args.methods,
        settings,
    )
    cells = benchmark.run()
    if int(os.environ.get("RANK", "0")) == 0:
        print(markdown(write_report(cells, args.output)))  # noqa: T201
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if all("error" in cell for cell in cells):
        parser.exit(1, "No method could be measured.\n")


if __name__ == "__main__":
    main()
