r"""Evidence ranks and probability gaps of causal language models on minimal pairs.

    python benchmarks/decoder_minimal_pairs.py --data ../shared/data/decoder --limit 1000 \
        --model conventional=../shared/data/stories260K --model "B-cos B=1.25=runs/stories/b1.25"

`--model` takes a directory or a Hub id of any causal language model, with a name in front if wanted. B-cos models are
recognised; conventional ones have no explanation of their own and get gradient × input and occlusion only. A section
"What it shows" of an existing output file is kept.
"""

import argparse
import logging
import platform
import random
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

import bcos_transformers
from bcos_transformers.evaluation.contrastive import METHODS
from bcos_transformers.evaluation.minimal_pairs import (
    MinimalPair,
    MinimalPairResults,
    bootstrap_interval,
    evaluate_pairs,
    evidence_rank,
    load_pairs,
)

READING = "## What it shows"
HEADERS = {"bcos": "B-cos", "gradient_x_input": "gradient × input", "occlusion": "occlusion"}
BASELINES = ("random", "last first")
logger = logging.getLogger(__name__)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="[name=]directory or Hub id; repeatable")
    parser.add_argument("--tokenizer", help="directory or Hub id; default: each model's own")
    parser.add_argument("--data", type=Path, required=True, help="folder with CSV files, in subfolders or not")
    parser.add_argument("--limit", type=int, default=200, help="pairs a file, drawn at random where there are more")
    parser.add_argument("--evidence", default="target", help="column with the evidence")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn pairs and of the bootstrap")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("docs/results-decoder.md"))
    return parser.parse_args()


def read_data(args: argparse.Namespace) -> dict[str, list[MinimalPair]]:
    """The pairs of every file."""
    data = {}
    for file in sorted(args.data.rglob("*.csv")):
        pairs = load_pairs(file, args.evidence)
        data[file.stem] = random.Random(args.seed).sample(pairs, args.limit) if len(pairs) > args.limit else pairs
    if not data:
        raise SystemExit(f"There is no CSV file in {args.data}.")
    return data


def evaluate(
    source: str, data: dict[str, list[MinimalPair]], args: argparse.Namespace
) -> dict[str, MinimalPairResults]:
    """Results of one model, by file."""
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return {
        name: evaluate_pairs(model, tokenizer, pairs, batch_size=args.batch_size)
        for name, pairs in tqdm(data.items(), desc=source, disable=None)
    }


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return sum(values) / len(values) if values else float("nan")


def baselines(result: MinimalPairResults) -> list[list[float]]:
    """Reciprocal ranks, pair by pair, of a random order (expected) and of the order from the last word to the first."""
    recency = [1 / evidence_rank(range(len(pair.words)), pair.evidence) for pair in result.pairs]
    return [result.random_reciprocal_ranks, recency]


def paradigm_table(results: dict[str, MinimalPairResults], methods: list[str], seed: int) -> list[str]:
    """One row a paradigm and their mean, as Markdown lines."""
    lines = [
        "| paradigm | pairs | skipped | "
        + " | ".join([*(HEADERS[m] for m in methods), *BASELINES])
        + " | accuracy | gap |",
        "|---|" + "---|" * (len(methods) + 6),
    ]
    for name, result in results.items():
        ranks = [*(result.reciprocal_ranks(method) for method in methods), *baselines(result)]
        cells = [f"{mean(values):.3f}" for values in [*ranks, [result.accuracy]]] + [f"{mean(result.gaps):+.4f}"]
        skipped = sum(result.skipped.values())
        lines.append(f"| {name} | {len(result.pairs):,} | {skipped:,} | " + " | ".join(cells) + " |")
    pairs = sum(len(result.pairs) for result in results.values())
    skipped = sum(sum(result.skipped.values()) for result in results.values())
    cells = summary_cells(list(results.values()), methods, seed, only_correct=False)
    return [*lines, f"| **mean** | {pairs:,} | {skipped:,} | " + " | ".join(cells) + " |"]


def summary_cells(results: list[MinimalPairResults], methods: list[str], seed: int, only_correct: bool) -> list[str]:
    """Means over the paradigms, with the bootstrap interval of each method; "–" for a method that is not there.

    With `only_correct`, of the pairs with P(good) > P(bad), and without accuracy and gap.
    """
    keep = [[gap > 0 or not only_correct for gap in result.gaps] for result in results]

    def groups(lists: list[list[float]]) -> list[list[float]]:
        kept = [[x for x, k in zip(values, mask, strict=True) if k] for values, mask in zip(lists, keep, strict=True)]
        return [values for values in kept if values]

    cells = []
    for method in methods:
        if method not in results[0].ranks:
            cells.append("–")
            continue
        values = groups([result.reciprocal_ranks(method) for result in results])
        cells.append("{:.3f} [{:.3f}, {:.3f}]".format(*bootstrap_interval(values, seed)) if values else "–")
    for lists in zip(*map(baselines, results), strict=True):
        cells.append(f"{mean([mean(values) for values in groups(list(lists))]):.3f}")
    if only_correct:
        return [f"{sum(map(sum, keep)):,}", *cells]
    present = [result for result in results if result.pairs]
    accuracy, gap = mean([r.accuracy for r in present]), mean([mean(r.gaps) for r in present])
    return [*cells, f"{accuracy:.3f}", f"{gap:+.4f}"]


def summary_table(runs: dict[str, dict[str, MinimalPairResults]], seed: int, only_correct: bool) -> list[str]:
    """One row a model, as Markdown lines."""
    columns = ["model", *(["pairs"] if only_correct else []), *HEADERS.values(), *BASELINES]
    columns += [] if only_correct else ["accuracy", "gap"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for name, results in runs.items():
        cells = summary_cells(list(results.values()), list(METHODS), seed, only_correct)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def report(runs: dict[str, dict[str, MinimalPairResults]], args: argparse.Namespace, reading: str) -> str:
    """The whole page."""
    sizes = [len(result.pairs) + sum(result.skipped.values()) for result in next(iter(runs.values())).values()]
    lines = [
        "# Minimal pairs: rank of the evidence, and gap between the good and the bad word",
        "",
        f"`{shlex.join(['python', *sys.argv])}`",
        "",
        f"{sum(sizes):,} pairs from {len(sizes)} files, at most {args.limit:,} a file, seed {args.seed}; "
        f"{'GPU' if torch.cuda.is_available() else 'CPU'}, {platform.machine()}, float32, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, bcos_transformers {bcos_transformers.__version__}.",
        "",
        "Mean reciprocal rank of the evidence word among the whitespace words of the prefix, in descending order of the "
        "signed contributions to logit(good) − logit(bad), where a word is the sum of its tokens; ties count with their mean "
        "rank. *random*: closed-form expectation of a random ranking. *last first*: the last word of the prefix "
        "ranks first, whatever the model. *accuracy*: share of pairs with P(good) > P(bad). "
        "*gap*: mean P(good) − P(bad). Both words are represented by the first token where they differ, after the tokens "
        "that they share. Means over paradigms are unweighted; in brackets 95 % percentile bootstrap intervals (2,000 "
        "resamples of the pairs within each paradigm).",
        "",
        *summary_table(runs, args.seed, only_correct=False),
        "",
        "Of the pairs that the model gets right, P(good) > P(bad):",
        "",
        *summary_table(runs, args.seed, only_correct=True),
    ]
    if reading:
        lines += ["", reading.rstrip()]
    for name, results in runs.items():
        methods = [method for method in METHODS if method in next(iter(results.values())).ranks]
        lines += ["", f"## {name}", "", *paradigm_table(results, methods, args.seed), "", skips(results)]
    return "\n".join(lines) + "\n"


def skips(results: dict[str, MinimalPairResults]) -> str:
    """A sentence on the pairs that are not counted, and on those that any ranking gets right."""
    counts = sum((result.skipped for result in results.values()), Counter())
    reasons = "; ".join(f"{reason}: {count:,}" for reason, count in sorted(counts.items())) or "none"
    pairs = [pair for result in results.values() for pair in result.pairs]
    trivial = sum(len(pair.words) == len(pair.evidence) for pair in pairs)
    return (
        f"Skipped pairs: {reasons}. In {trivial:,} of the {len(pairs):,} pairs every word of the prefix is evidence."
    )


def kept_reading(output: Path) -> str:
    """The section "What it shows" of an earlier page."""
    _, found, rest = (output.read_text(encoding="utf-8") if output.exists() else "").partition(READING)
    return found + rest.partition("\n## ")[0]


def main() -> None:
    """Evaluates every model and writes the page."""
    args = arguments()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.basicConfig(format="%(message)s", level=logging.INFO if sys.stderr.isatty() else logging.WARNING)
    data = read_data(args)
    runs = {}
    for model in args.model:
        name, _, source = model.rpartition("=")
        runs[name or source] = evaluate(source, data, args)
    args.output.write_text(report(runs, args, kept_reading(args.output)), encoding="utf-8")
    logger.info("Wrote %s", args.output)


if __name__ == "__main__":
    main()
