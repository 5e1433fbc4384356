"""Which recipe closes the accuracy gap of B-cos MiniLM on SST-2: the settings that were tried, and a table of them.

    python benchmarks/recipe_search.py --data ../shared/data --runs runs/recipe --output docs/recipe-table.md

Resumable: finished runs are kept in `--runs`, which several processes may share. The best use of a machine with n cores
is n processes with `OMP_NUM_THREADS=1`.
"""

import argparse
import dataclasses
from pathlib import Path

import transformers

from finetuning import Setting, conventional, run

BASE = Setting("sst2", b=1.5, lr=2e-4, epochs=3, match_scales=False)
change = dataclasses.replace
RECIPE = change(BASE, match_scales=True)  # what benchmarks/evidence.py trains
SETTINGS = {
    "conventional": conventional("sst2", 0),
    "base: B=1.5, distilled, masked, not normalized, q/k biases, lr 2e-4, 3 epochs": BASE,
    "base + matched scales": change(BASE, match_scales=True),
    "base + matched scales, lr 1e-4": change(BASE, match_scales=True, lr=1e-4),
    "base + matched scales, B=1.25": change(BASE, match_scales=True, b=1.25),
    "base + matched scales, lr 5e-5": change(BASE, match_scales=True, lr=5e-5),
    "base + matched scales, cross-entropy": change(BASE, match_scales=True, loss="ce"),
    "base + matched scales, masked teacher": change(BASE, match_scales=True, masked_teacher=True),
    "base + matched scales, masking share 0.25": change(BASE, match_scales=True, mask_share=0.25),
    "base + matched scales, no distillation": change(BASE, match_scales=True, distil=False),
}


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/recipe"))
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    for name, setting in SETTINGS.items():
        result = run(setting, args.data, args.runs, wait=False)
        if result:
            print(f"{result['validation_accuracy']:.2f} {result['test_accuracy']:.2f} {name}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
