"""Which recipe closes the accuracy gap of B-cos MiniLM on SST-2: what was tried, and a table of it.

    python benchmarks/recipe_search.py --data ../shared/data --runs runs/recipe --output docs/recipe-table.md

Every setting changes one thing of the recipe. `--small` trains each on 1,000 of the 6,920 sentences for two epochs
(with the teacher that has seen all), which is a tenth of the work. Resumable: finished runs are kept in `--runs`, which
several processes may share; the best use of n cores is n processes with `OMP_NUM_THREADS=1`. `--only report` writes the
table of what is there.
"""

import argparse
import dataclasses
import json
import platform
from pathlib import Path

import torch
import transformers

from finetuning import TASKS, Setting, conventional, run

SEARCHED = Setting("sst2", b=1.25, lr=2e-4, epochs=3)
change = dataclasses.replace
# What benchmarks/evidence.py trains and examples/run_classification.py has as its defaults.
RECIPE = change(SEARCHED, teach_masked=False)
RISING = (1.1, 1.2, 1.3, 1.5, 1.7, 1.9)
VARIATIONS = {
    "the recipe": RECIPE,
    "teacher asked about masked texts too; the rows below change this": SEARCHED,
    "scales not matched": change(SEARCHED, match_scales=False),
    "weights normalized (scales have no effect)": change(SEARCHED, normalize_weights=True, match_scales=False),
    "query/key biases dropped": change(SEARCHED, qk_bias=False),
    "no distillation, start from the teacher": change(SEARCHED, distil=False),
    "no distillation, start from the pretrained model": change(SEARCHED, distil=False, from_teacher=False),
    "no masking": change(SEARCHED, mask_share=0.0),
    "masking share 0.25": change(SEARCHED, mask_share=0.25),
    "masking share 1": change(SEARCHED, mask_share=1.0),
    "teacher fine-tuned with masking": change(SEARCHED, masked_teacher=True),
    "B = 1.1": change(SEARCHED, b=1.1),
    "B = 1.5": change(SEARCHED, b=1.5),
    "B = 1.5, scales not matched": change(SEARCHED, b=1.5, match_scales=False),
    "B = 1.5, learning rate 1e-4": change(SEARCHED, b=1.5, lr=1e-4),
    "B = 1.75": change(SEARCHED, b=1.75),
    "B = 2": change(SEARCHED, b=2.0),
    "B rising with depth, 1.1 … 1.9": change(SEARCHED, b_per_layer=RISING),
    # Scales are matched for the final B, so not where B starts at 1.
    "B annealed from 1 over half of training, scales not matched": change(SEARCHED, anneal=0.5, match_scales=False),
    "cross-entropy instead of binary cross-entropy": change(SEARCHED, loss="ce"),
    "learning rate 5e-5": change(SEARCHED, lr=5e-5),
    "learning rate 1e-4": change(SEARCHED, lr=1e-4),
    "learning rate 4e-4": change(SEARCHED, lr=4e-4),
    "one epoch more of label-free adaptation first": change(SEARCHED, adapt_epochs=1),
    "more epochs": change(SEARCHED, epochs=5),
}
# Whether the conventional model would have gained from what the B-cos model gets: another learning rate, six epochs.
CONVENTIONAL = {
    "conventional fine-tune": conventional("sst2", 0),
    "conventional, learning rate 1e-4": change(conventional("sst2", 0), lr=1e-4),
    "conventional, learning rate 2e-4": change(conventional("sst2", 0), lr=2e-4),
    "conventional, six epochs": change(conventional("sst2", 0), epochs=6),
}
TEXTS = 6920
SMALL_TEXTS, SMALL_EPOCHS = 1000, 2


def settings(small: bool, seed: int) -> dict[str, Setting]:
    """The runs by name."""
    if not small:
        return {name: change(setting, seed=seed) for name, setting in {**CONVENTIONAL, **VARIATIONS}.items()}
    return {
        name: change(setting, seed=seed, train_texts=SMALL_TEXTS, epochs=4 if setting.epochs == 5 else SMALL_EPOCHS)
        for name, setting in VARIATIONS.items()
    }


def report(args: argparse.Namespace) -> str:
    """The table of what is there."""
    lines = [
        "| change of the recipe | validation | test | validation, small | test, small |",
        "|---|---|---|---|---|",
    ]
    for name in settings(small=False, seed=0):
        cells = []
        for small in (False, True):
            runs = [settings(small, seed)[name] for seed in args.seeds if name in settings(small, seed)]
            files = [args.runs / setting.key / "result.json" for setting in runs]
            results = [json.loads(file.read_text()) for file in files if file.exists()]
            for split in ("validation", "test"):
                found = [result[f"{split}_accuracy"] for result in results]
                cells.append(_in_words(found) if found else "not run")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    where = f"{platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}, bf16 autocast"
    about = (
        f"all-MiniLM-L6-v2, SST-2, {where}. Accuracies in percent: with all {TEXTS:,} sentences for {TASKS['sst2'].epochs} epochs "
        f"(more where the row says so), and small, {SMALL_TEXTS:,} sentences for {SMALL_EPOCHS} epochs (`more epochs`: 4). Means, and "
        "in brackets the seeds 0, 1, … where there are several. The teacher of every run has seen all sentences for three epochs. "
        "872 validation and 1,821 test sentences: one standard error of an accuracy is about 1.1 and 0.8."
    )
    return "\n".join([about, "", *lines]) + "\n"


def _in_words(values: list[float]) -> str:
    each = f" ({', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.1f}{each}"


def main() -> None:
    """Runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--output", type=Path, default=Path("docs/recipe-table.md"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds to run, and to report")
    parser.add_argument("--small", action="store_true", help="1,000 texts and two epochs each")
    parser.add_argument("--only", choices=("train", "report"))
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if args.only != "report":
        for seed in args.seeds:
            for name, setting in settings(args.small, seed).items():
                result = run(setting, args.data, args.runs, wait=False)
                if result:
                    print(f"{result['validation_accuracy']:.2f} {result['test_accuracy']:.2f} {name}", flush=True)  # noqa: T201
    if args.only != "train":
        args.output.write_text(report(args))


if __name__ == "__main__":
    main()
