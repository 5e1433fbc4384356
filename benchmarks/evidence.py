"""The evidence table: B-cos MiniLM beside the conventional fine-tune on four data sets, accuracy and faithfulness.

    python benchmarks/evidence.py --data ../shared/data --runs runs/evidence --output docs/evidence.md

Trains what is missing in `--runs`, measures what is missing, and writes the tables. Resumable; `--only train`, `measure` or
`report` does one of the three; several processes may share `--runs` while training and measuring. Uses a GPU where there
is one. The best use of n cores is n processes with `OMP_NUM_THREADS=1`. `--full` measures with the larger budget (200 texts
a data set, 120 of IMDb, every method everywhere but Shapley values on AG News and IMDb).
"""

import argparse
import dataclasses
import fcntl
import json
import platform
from pathlib import Path

import torch
import transformers
from recipe_search import RECIPE

from bcos_transformers.evaluation.benchmark import SEARCH, BenchmarkSettings, FaithfulnessBenchmark
from bcos_transformers.evaluation.benchmark_data import Example, make_example
from bcos_transformers.evaluation.plausibility import treebank_rationale
from bcos_transformers.evaluation.report import markdown, table, write_report
from finetuning import TASKS, Setting, conventional, read_rows, run

SEEDS = {"sst2": (0, 1, 2), "ag_news": (0,), "hatexplain": (0, 1, 2), "imdb": (0,)}
MAIN = ["bcos", "random", "occlusion", "integrated_gradients", "input_x_gradient"]
QUICK = [*MAIN, "saliency", "deep_lift", "gradient_shap", "attention", "attention_rollout"]
SLOW = [SEARCH, "lime", "kernel_shap", "sequential_integrated_gradients", "shapley_value_sampling"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What is measured of a data set: how many texts and pairs, which methods for the first seed and for the others."""

    texts: int
    pairs: int
    methods: list[str]
    more_seeds: list[str] = dataclasses.field(default_factory=list)


SMALL = {
    "sst2": Budget(60, 20, [*QUICK, *SLOW], MAIN),
    "hatexplain": Budget(60, 20, QUICK, MAIN),
    "ag_news": Budget(60, 20, QUICK),
    "imdb": Budget(20, 20, QUICK),
}
FULL = {
    "sst2": Budget(200, 100, [*QUICK, *SLOW], [*QUICK, *SLOW]),
    "hatexplain": Budget(200, 100, [*QUICK, *SLOW], [*QUICK, *SLOW]),
    "ag_news": Budget(200, 100, [*QUICK, *SLOW[:-1]]),
    "imdb": Budget(120, 100, [*QUICK, *SLOW[:-1]]),
}
METHOD_OPTIONS = {"sequential_integrated_gradients": {"n_steps": 5}}
MIN_PROBABILITY = {"hatexplain": 0.7}


def settings_of(task: str, seed: int) -> tuple[Setting, Setting]:
    """The conventional and the B-cos run."""
    return conventional(task, seed), dataclasses.replace(RECIPE, task=task, seed=seed)


def examples_of(task: str, data: Path, limit: int) -> list[Example]:
    """Test texts: the first ones of a fixed shuffle; on HateXplain and SST-2 with the words that people marked."""
    rows = read_rows(TASKS[task], data, "test")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    trees = {}
    if task == "sst2":
        with (data / "sst_trees" / "test.jsonl").open(encoding="utf-8") as file:
            trees = {row["text"]: row for row in map(json.loads, file)}
    examples = []
    for i in order[:limit]:
        row = rows[i]
        example = make_example(row["text"], row["label"])
        if task == "hatexplain" and row["label"] == 1 and any(row["rationale"]):
            example = make_example(row["text"], 1, row["rationale"])
        elif row["text"] in trees:
            tree = trees[row["text"]]
            marks = treebank_rationale(tree["token_labels"], row["label"])
            phrases = tuple(tuple(span) for span in tree["spans"])
            example = dataclasses.replace(make_example(row["text"], row["label"], marks), phrases=phrases)
        examples.append(example)
    return examples


def benchmark_of(task: str, seed: int, args: argparse.Namespace) -> FaithfulnessBenchmark:
    """The benchmark of a data set and seed."""
    budget = (FULL if args.full else SMALL)[task]
    settings = BenchmarkSettings(
        max_length=TASKS[task].max_length,
        limit=budget.texts,
        pairs=budget.pairs,
        min_probability=MIN_PROBABILITY.get(task, 0.8),
        search_budget=200,
        seed=seed,
        method_options=METHOD_OPTIONS,
    )
    models = {
        name: str(args.runs / setting.key)
        for name, setting in zip(("conventional", "B-cos"), settings_of(task, seed), strict=True)
    }
    output = args.runs / f"faithfulness-{'full' if args.full else 'small'}" / f"{task}-seed{seed}"
    methods = budget.methods if seed == 0 else budget.more_seeds
    return FaithfulnessBenchmark(models, examples_of(task, args.data, budget.texts), output, methods, settings)


def train(args: argparse.Namespace) -> None:
    """Trains the models that are missing."""
    everything = [(seed, task) for task, seeds in SEEDS.items() for seed in seeds]
    for seed, task in sorted(everything, key=lambda one: one[0]):  # every data set first, then more seeds
        for setting in settings_of(task, seed):
            result = run(setting, args.data, args.runs, wait=False)
            if result:
                print(f"{setting.key}: {result['test_accuracy']:.2f}", flush=True)  # noqa: T201


def measure(args: argparse.Namespace) -> None:
    """Computes the cells that are missing, those of the main methods first."""
    everything = [(task, seed) for task, seeds in SEEDS.items() for seed in seeds]
    for chosen in (MAIN, QUICK, SLOW):
        for task, seed in everything:
            if not all((args.runs / setting.key / "result.json").exists() for setting in settings_of(task, seed)):
                continue
            benchmark = benchmark_of(task, seed, args)
            (benchmark.output / "cells").mkdir(parents=True, exist_ok=True)
            for model in benchmark.models:
                for method in benchmark.methods:
                    if method in chosen and (method != "bcos" or model == "B-cos"):
                        _cell(benchmark, model, method)


def _cell(benchmark: FaithfulnessBenchmark, model: str, method: str) -> None:
    """One cell, unless another process is at it."""
    with (benchmark.output / "cells" / f"{model}--{method}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        cell = benchmark.cell(model, method)
        print(f"{benchmark.output.name}: {model}, {method}: {cell['seconds']}", flush=True)  # noqa: T201


def report(args: argparse.Namespace) -> None:
    """Writes the tables of what is there."""
    lines = [
        "# Evidence: accuracy and faithfulness on four data sets",
        "",
        f"`python benchmarks/evidence.py --data ../shared/data{' --full' if args.full else ''}`",
        "",
        "all-MiniLM-L6-v2 (not BERT-base), "
        f"{platform.machine()} with {'a GPU' if torch.cuda.is_available() else 'CPU only'}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}. The recipe is that of [recipe.md](recipe.md).",
        "",
        "## Accuracy",
        "",
        *accuracy_table(args),
        "",
        "## Faithfulness",
        "",
        "Areas under the curve, SeqPG and agreement are × 100, ± half the width of the 95 % bootstrap interval over texts. "
        "`search` is the best ranking that a search found; normalized scores lie between a random ranking (0) and the best "
        "ranking of each text that any method or the search found (100). Cost is in forward passes, a backward pass to the "
        "embeddings counting as one. Agreement: with rationales on HateXplain, with the words of the sentence's "
        "sentiment and the phrases of the treebank on SST-2.",
    ]
    for task, seeds in SEEDS.items():
        for seed in seeds:
            lines += faithfulness_section(task, seed, args)
    args.output.write_text("\n".join(lines) + "\n")


def accuracy_table(args: argparse.Namespace) -> list[str]:
    """Test accuracies, and their gaps."""
    lines = ["| data | seeds | conventional | B-cos | gap |", "|---|---|---|---|---|"]
    gaps = []
    for task, seeds in SEEDS.items():
        pairs = []
        for seed in seeds:
            files = [args.runs / setting.key / "result.json" for setting in settings_of(task, seed)]
            if all(file.exists() for file in files):
                pairs.append([json.loads(file.read_text())["test_accuracy"] for file in files])
        if not pairs:
            lines.append(f"| {task} | {len(seeds)} | not run | not run | – |")
            continue
        plain, bcos = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        gaps.append(plain - bcos)
        each = ", ".join(f"{a:.1f}/{b:.1f}" for a, b in pairs)
        lines.append(f"| {task} | {len(pairs)} ({each}) | {plain:.1f} | {bcos:.1f} | {plain - bcos:.1f} |")
    if gaps:
        lines.append(f"| mean | | | | {sum(gaps) / len(gaps):.1f} |")
    return lines


def faithfulness_section(task: str, seed: int, args: argparse.Namespace) -> list[str]:
    """One data set and seed."""
    budget = (FULL if args.full else SMALL)[task]
    heading = ["", f"### {task}, seed {seed}", ""]
    if not all((args.runs / setting.key / "result.json").exists() for setting in settings_of(task, seed)):
        return [*heading, "not run"]
    benchmark = benchmark_of(task, seed, args)
    cells = benchmark.finished() if benchmark.output.exists() else []
    if not cells:
        return [*heading, "not run"]
    write_report(cells, benchmark.output)
    done = {(cell["model"], cell["method"]) for cell in cells}
    every = [*QUICK, *SLOW]
    missing = [
        f"{method.replace('_', ' ')} ({model})"
        for model in benchmark.models
        for method in every
        if (model, method) not in done and (method != "bcos" or model == "B-cos")
    ]
    rest = ["", f"Not run: {', '.join(missing)}."] if missing else []
    note = f"{cells[0]['texts']} test texts, {budget.pairs} pairs at most for SeqPG."
    return [*heading, note, "", markdown(table(cells)).rstrip(), *rest]


def main() -> None:
    """Does what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--output", type=Path, default=Path("docs/evidence.md"))
    parser.add_argument("--only", choices=("train", "measure", "report"))
    parser.add_argument("--full", action="store_true", help="the larger budget")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    for name, step in (("train", train), ("measure", measure), ("report", report)):
        if args.only in (None, name):
            step(args)


if __name__ == "__main__":
    main()
